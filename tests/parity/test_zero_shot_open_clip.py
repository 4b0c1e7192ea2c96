"""Zero-shot predictions are open_clip's: the same weights, its own tokenizer's ids, the same prompts and images."""

import open_clip
import pytest
import torch
from open_clip.zero_shot_classifier import build_zero_shot_classifier, build_zero_shot_classifier_legacy
from transformers import CLIPTokenizer

from hf_vitfm import CLIPConfig, CLIPModel, ZeroShotClassifier, evaluate_zero_shot, extract_features
from tests.parity.test_clip_open_clip import TINY, load_weights
from tests.tiny import TEXT_FIELDS, VISION_FIELDS, random_images, randomize


CONTEXT, WORDS = 24, 49408
CLASSES = ["Hen", "black  bear", "an ibex of the Alps, seen from far above", "train's driver", "ox", "3D-printed vase"]
TEMPLATES = ["a photo of a {}.", "{}", "Two drawings of the {}, side by side!", "a {} in the year 1984"]


def their_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=CONTEXT)


def our_tokenizer() -> CLIPTokenizer:
    """Transformers' tokenizer with open_clip's vocabulary."""
    theirs = their_tokenizer()
    tokens = [*list(theirs.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]  # it writes the last two otherwise
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, list(theirs.bpe_ranks), model_max_length=CONTEXT)


IMAGES = random_images(400)
PROMPTS = [template.format(name) for name in CLASSES for template in TEMPLATES]


@torch.no_grad()
def centre(model: open_clip.CLIP) -> None:
    """Take from the embeddings what they have in common, which would give all images one class, by the last norms."""
    texts = model.encode_text(their_tokenizer()(PROMPTS)).mean(0)
    model.ln_final.bias -= texts @ torch.linalg.pinv(model.text_projection)
    model.visual.ln_post.bias -= model.encode_image(IMAGES).mean(0) @ torch.linalg.pinv(model.visual.proj)


def pair() -> tuple[CLIPModel, open_clip.CLIP]:
    theirs = open_clip.CLIP(
        **{**TINY, "text_cfg": {**TINY["text_cfg"], "context_length": CONTEXT, "vocab_size": WORDS}}
    )
    scale = theirs.logit_scale.detach().clone()
    randomize(theirs).logit_scale.data.copy_(scale)
    centre(theirs)
    special = {
        "vocab_size": WORDS,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": WORDS - 2,
        "eos_token_id": WORDS - 1,
    }
    config = CLIPConfig(
        text_config={**TEXT_FIELDS, **special, "hidden_act": "gelu"},
        vision_config={**VISION_FIELDS, "hidden_act": "gelu"},
        projection_dim=24,
    )
    return load_weights(CLIPModel(config), theirs), theirs


@pytest.mark.parametrize("build", [build_zero_shot_classifier, build_zero_shot_classifier_legacy])
@torch.no_grad()
def test_all_predictions_are_equal(build):
    ours, theirs = pair()
    expected_weights = build(theirs, their_tokenizer(), CLASSES, TEMPLATES)
    classifier = ZeroShotClassifier.build(ours, our_tokenizer(), CLASSES, TEMPLATES)
    torch.testing.assert_close(classifier.weights, expected_weights, rtol=0, atol=1e-6)
    expected = 100 * theirs.encode_image(IMAGES, normalize=True) @ expected_weights
    embeds, _ = extract_features(ours, [{"pixel_values": image} for image in IMAGES], pooling="projected")
    found = classifier(embeds)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # of 100; the margins are wider
    assert torch.equal(found.argmax(1), expected.argmax(1)) and len(found.argmax(1).unique()) > 2
    assert torch.equal(found.topk(5).indices, expected.topk(5).indices)
    labels = torch.arange(400) % len(CLASSES)
    rows = [{"pixel_values": image, "label": int(label)} for image, label in zip(IMAGES, labels, strict=True)]
    accuracy = evaluate_zero_shot(ours, rows, classifier)
    top5 = (expected.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    assert accuracy["top1"] == pytest.approx((expected.argmax(1) == labels).double().mean().item())
    assert accuracy["top5"] == pytest.approx(top5)


def test_tokens_are_those_of_open_clip():
    texts = [*PROMPTS, "a photo of " + "a very " * 30 + "long train", "über  naïve café — 北京 🙂"]
    ids = our_tokenizer()(texts, padding="max_length", truncation=True, return_tensors="pt")
    expected = their_tokenizer()(texts)
    assert torch.equal(ids.input_ids * ids.attention_mask, expected)
