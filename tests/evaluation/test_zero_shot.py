"""The zero-shot classifier and its accuracy, against open_clip's, transformers' and scikit-learn's answers."""

import copy
import logging

import datasets
import numpy as np
import pytest
import torch
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch.nn import functional as F
from transformers import CLIPConfig as TheirCLIPConfig
from transformers import CLIPModel as TheirCLIPModel
from transformers import SiglipConfig
from transformers import SiglipModel as TheirSiglipModel

from hf_vitfm import CLIPModel, ZeroShotClassifier, build_transform, evaluate_zero_shot
from hf_vitfm.data.decode import BadImageError, decode_image
from hf_vitfm.data.order import ImageView
from hf_vitfm.evaluation.features import extract_features
from hf_vitfm.evaluation.zero_shot import zero_shot_metrics
from tests.data.images import encode, noise
from tests.data.test_pair_collator import bert_tokenizer, clip_tokenizer, gpt2_tokenizer
from tests.evaluation.test_zero_shot_processes import CLASSES, SPECIAL, TEMPLATES, Counting, make_model
from tests.tiny import TEXT_FIELDS, VISION_FIELDS, random_images, randomize, tiny_clip


CONTEXT = SPECIAL["max_position_embeddings"]


class OpenCLIP:
    """A model and its tokenizer as open_clip knows them: text by text, padded to the context length."""

    def __init__(self, model, tokenizer, with_mask: bool = False):
        self.model, self.tokenizer, self.with_mask = model, tokenizer, with_mask

    def __call__(self, texts: list[str]) -> torch.Tensor:
        options = {"padding": "max_length", "max_length": CONTEXT, "truncation": True, "return_tensors": "pt"}
        batch = self.tokenizer(texts, **options)
        return torch.stack([batch.input_ids, batch.attention_mask], dim=1)

    def encode_text(self, texts: torch.Tensor, normalize: bool) -> torch.Tensor:
        rows = []
        for ids, mask in texts:
            mask = {"attention_mask": mask[None]} if self.with_mask else {}
            outputs = self.model.get_text_features(input_ids=ids[None], **mask)
            rows.append(outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output)
        return F.normalize(torch.cat(rows), dim=-1) if normalize else torch.cat(rows)


def expected_weights(model, tokenizer, classnames=CLASSES, templates=TEMPLATES, with_mask=False) -> torch.Tensor:
    model = copy.deepcopy(model).eval()
    wrapped = OpenCLIP(model, tokenizer, with_mask)
    return build_zero_shot_classifier(wrapped, wrapped, classnames, templates, num_classes_per_batch=2)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# The classifier


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_weights_are_those_of_open_clip(batch_size):
    model = make_model()
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES, batch_size)
    close(classifier.weights, expected_weights(model, clip_tokenizer()))
    close(classifier.weights.norm(dim=0), torch.ones(7, dtype=torch.float64))
    assert (classifier.classnames, classifier.templates) == (tuple(CLASSES), tuple(TEMPLATES))
    cosines = classifier.weights.T @ classifier.weights
    assert (cosines.fill_diagonal_(0).abs() < 0.999).all()  # the classes differ
    once = expected_weights(model, clip_tokenizer(), templates=list(dict.fromkeys(TEMPLATES)))
    assert (classifier.weights - once).abs().max() > 1e-3  # a template that is given twice counts double


def test_float32_weights_are_those_of_open_clip():
    model = make_model().float()
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES)
    assert classifier.weights.dtype == torch.float32
    close(classifier.weights, expected_weights(model, clip_tokenizer()), 1e-6)
    close(classifier.weights.double(), expected_weights(make_model(), clip_tokenizer()), 1e-6)


TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
TOWERS = {
    "bert": (bert_tokenizer, {"model_type": "bert", "vocab_size": 13, "eos_token_id": None}, "mean"),
    "gpt2": (gpt2_tokenizer, {"model_type": "gpt2", "vocab_size": 257, "eos_token_id": 256}, "last"),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tower", TOWERS)
def test_text_towers_of_other_kinds_see_each_prompt_as_if_alone(tower, side):
    build, fields, pooling = TOWERS[tower]
    tokenizer, model = build(), make_model(text={**TOWER, **fields}, text_pooling=pooling)
    classnames = ["cat", "two dogs", "x and another dog"]
    alone = copy.deepcopy(tokenizer)
    alone.pad_token = alone.pad_token or alone.eos_token
    expected = expected_weights(model, alone, classnames, with_mask=True)
    tokenizer.padding_side = side
    close(ZeroShotClassifier.build(model, tokenizer, classnames, TEMPLATES).weights, expected)


def their_config() -> dict:
    text = {**TEXT_FIELDS, **SPECIAL, "projection_dim": 24}
    return {"text_config": text, "vision_config": {**VISION_FIELDS, "projection_dim": 24}, "projection_dim": 24}


@pytest.mark.parametrize("returns", ["outputs", "tensors"])
def test_a_model_of_transformers_is_classified_with(returns, monkeypatch):
    model = randomize(TheirCLIPModel(TheirCLIPConfig(**their_config())))
    expected, logits = expected_weights(model, clip_tokenizer()), None
    rows = labelled(7)
    with torch.no_grad():
        images = F.normalize(model.get_image_features(pixel_values=pixels_of(rows)).pooler_output, dim=1)
        logits = 100 * images @ expected
    if returns == "tensors":
        for name in ("get_text_features", "get_image_features"):
            method = getattr(model, name)
            monkeypatch.setattr(model, name, lambda *args, method=method, **kw: method(*args, **kw).pooler_output)
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES)
    close(classifier.weights, expected, 1e-6)
    assert evaluate_zero_shot(model, rows, classifier) == accuracies(logits, rows)


def test_siglip_is_given_texts_filled_up_and_without_a_mask(tmp_path):
    text = {**TEXT_FIELDS, **SPECIAL, "projection_size": 32}
    model = randomize(TheirSiglipModel(SiglipConfig(text_config=text, vision_config=VISION_FIELDS))).double()
    tokenizer = clip_tokenizer()
    expected = expected_weights(model, tokenizer)
    close(ZeroShotClassifier.build(model, tokenizer, CLASSES, TEMPLATES).weights, expected)
    model.save_pretrained(tmp_path)
    ours = CLIPModel.from_pretrained(tmp_path)
    close(ZeroShotClassifier.build(ours, tokenizer, CLASSES, TEMPLATES).weights, expected)


def test_equal_prompts_are_embedded_once_and_padding_never():
    model, tokenizer = Counting(make_model()), clip_tokenizer()
    calls, call = [], type(tokenizer).__call__
    type(tokenizer).__call__ = lambda self, texts, **options: calls.append(len(texts)) or call(self, texts, **options)
    try:
        ZeroShotClassifier.build(model, tokenizer, CLASSES, TEMPLATES, batch_size=4)
    finally:
        type(tokenizer).__call__ = call
    prompts = {template.format(name) for name in CLASSES for template in TEMPLATES}
    lengths = sorted(len(tokenizer(prompt).input_ids) for prompt in prompts)
    assert len(prompts) == 3 * 7 and calls[0] == len(prompts)
    assert sum(rows * length for rows, length in model.shapes) == sum(lengths)
    assert sum(rows for rows, _ in model.shapes) == len(prompts) and max(rows for rows, _ in model.shapes) <= 4


def test_prompts_that_are_too_long_are_cut_before_the_end_token(caplog):
    model, names = make_model(), ["cat", "ox " * 20, "hen " * 20]
    with caplog.at_level(logging.WARNING):
        classifier = ZeroShotClassifier.build(model, clip_tokenizer(), names, ["{} in a photo"])
    assert "the text tower takes 30" in caplog.text
    close(classifier.weights, expected_weights(model, clip_tokenizer(), names, ["{} in a photo"]))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = make_model(text={**SPECIAL, "hidden_dropout_prob": 0.5}).train(training)
    model.vision_model.eval()
    model.logit_scale.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    tokenizer, state = clip_tokenizer(), torch.random.get_rng_state()
    first = ZeroShotClassifier.build(model, tokenizer, CLASSES, TEMPLATES)
    second = ZeroShotClassifier.build(model, tokenizer, CLASSES, TEMPLATES)
    assert torch.equal(first.weights, second.weights)  # no dropout
    evaluate_zero_shot(model, labelled(3), first)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled() and not first.weights.requires_grad
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["logit_scale"]
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(IndexError):
        monkey = Counting(model)
        monkey.get_text_features = lambda **_: [][0]
        ZeroShotClassifier.build(monkey, tokenizer, CLASSES, TEMPLATES)
    assert [module.training for module in model.modules()] == modes


def test_half_precision_models_are_summed_up_in_float32():
    model = make_model().bfloat16()
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES)
    assert classifier.weights.dtype == torch.float32
    close(classifier.weights.norm(dim=0), torch.ones(7), 1e-6)
    cosines = (classifier.weights.double() * expected_weights(make_model(), clip_tokenizer())).sum(0)
    assert (cosines > 0.99).all()


def test_logits_are_a_hundred_cosines_under_autocast_too():
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(5, 6, generator=generator), torch.randn(6, 3, generator=generator)
    classifier = ZeroShotClassifier(F.normalize(weights, dim=0), ("a", "b", "c"), ("{}",))
    expected = 100 * F.cosine_similarity(images[:, :, None].double(), weights[None].double(), dim=1)
    close(classifier(images).double(), expected, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classifier(7 * images)
    assert found.dtype == torch.float32
    close(found.double(), expected, 1e-5)
    assert classifier(images.bfloat16()).dtype == torch.float32 and classifier(images.double()).dtype == torch.float64
    for wrong in (images[0], images[:, :5]):
        with pytest.raises(ValueError, match=r"`image_embeds` must be \(images, 6\)"):
            classifier(wrong)


# The accuracy


def labelled(count: int, num_classes: int = 7) -> list[dict]:
    """The first class most often, the third never."""
    classes = [0, 0, 0, *(number for number in range(num_classes) if number != 2)]
    return [
        {"pixel_values": image, "label": classes[i % len(classes)]} for i, image in enumerate(random_images(count))
    ]


def pixels_of(rows: list[dict]) -> torch.Tensor:
    return torch.stack([row["pixel_values"] for row in rows])


def accuracies(logits: torch.Tensor, rows: list[dict]) -> dict:
    labels, logits = [row["label"] for row in rows], logits.numpy()
    top1, top5 = (top_k_accuracy_score(labels, logits, k=k, labels=range(logits.shape[1])) for k in (1, 5))
    mean = balanced_accuracy_score(labels, logits.argmax(1))
    return {"top1": pytest.approx(top1), "top5": pytest.approx(top5), "mean_per_class": pytest.approx(mean)}


@torch.no_grad()
def logits_of(model, rows, weights) -> torch.Tensor:
    images = model.get_image_features(pixel_values=pixels_of(rows).to(weights.dtype)).pooler_output
    return 100 * F.normalize(images, dim=1) @ weights


@pytest.mark.parametrize("chunk", [1, 50, 1 << 24], ids=["image by image", "some images", "at once"])
def test_accuracy_is_that_of_scikit_learn(monkeypatch, chunk):
    monkeypatch.setattr("hf_vitfm.evaluation.zero_shot._CHUNK", chunk)
    model, rows = make_model(), labelled(61)
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES)
    # Random towers find nothing; these classes are where some of their images are.
    images = extract_features(model, rows, pooling="projected")[0].double()
    towards = torch.stack([images[i] for i in (0, 4, 20, 5, 6, 7, 8)])
    classifier = ZeroShotClassifier(F.normalize(towards.T, dim=0), classifier.classnames, classifier.templates)
    logits = logits_of(model, rows, classifier.weights)
    close(classifier(images).float(), logits.float(), 1e-4)
    found = evaluate_zero_shot(model, rows, classifier, batch_size=8)
    assert found == accuracies(logits, rows)
    assert 0 < found["top1"] < found["top5"] < 1 and abs(found["top1"] - found["mean_per_class"]) > 1e-3
    assert all(isinstance(value, float) for value in found.values())


def test_with_few_classes_all_are_in_the_top_five():
    model, rows = make_model(), labelled(20, 5)
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES[:5], TEMPLATES)
    found = evaluate_zero_shot(model, rows, classifier)
    assert found["top5"] == 1 and found["top1"] < 1


def test_images_are_transformed_and_decoded_by_other_processes():
    from transformers import CLIPImageProcessor

    model = make_model()
    processor = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    transform = build_transform(processor)
    rows = [{"image": encode(noise(40, 36, seed=i)), "label": i % 7} for i in range(9)]
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES)
    expected = accuracies(
        logits_of(
            model, [{"pixel_values": transform(decode_image(row["image"]))} for row in rows], classifier.weights
        ),
        rows,
    )
    for workers in (0, 1):
        assert evaluate_zero_shot(model, rows, classifier, transform, 4, num_workers=workers) == expected


def test_bad_images_that_are_skipped_do_not_count():
    transform = build_transform_for(32)
    good = [{"image": encode(noise(32, 32, seed=i)), "label": i % 7} for i in range(9)]
    rows = [*good[:4], {"image": b"no image", "label": 1}, *good[4:]]
    model = make_model()
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES)
    skipping = ImageView(rows, transform, on_bad_image="skip")
    expected = evaluate_zero_shot(model, good, classifier, transform)
    assert evaluate_zero_shot(model, skipping, classifier) == expected and expected["top1"] > 0
    with pytest.raises(BadImageError, match="row 4"):
        evaluate_zero_shot(model, rows, classifier, transform)


def build_transform_for(size: int):
    from transformers import CLIPImageProcessor

    return build_transform(CLIPImageProcessor(size={"height": size, "width": size}, do_center_crop=False))


# What is refused


@pytest.mark.parametrize(
    ("classnames", "templates", "message"),
    [
        ([], ["{}"], "`classnames` must be a list of names, one per class; got []"),
        ("cat", ["{}"], "`classnames` must be a list of names, one per class; got 'cat'"),
        (["ox", " "], ["{}"], "that of class 1 is ' '"),
        (["ox", None], ["{}"], "that of class 1 is None"),
        (["ox"], [], r'`templates` must be a list of texts such as "a photo of a {}."; got []'),
        (["ox"], "{}", "`templates` must be a list"),
        (["ox"], ["{}", "a photo"], "as \"a photo of a {}.\" does; got 'a photo'"),
        (["ox"], ["{} or {}"], "got '{} or {}'"),
        (["ox"], ["a {c}"], "got 'a {c}'"),
        (["ox"], ["a {0}"], "got 'a {0}'"),
        (["ox"], ["a {:>9}"], "got 'a {:>9}'"),
        (["ox"], ["a {!r}"], "got 'a {!r}'"),
        (["ox"], ["a {} }"], "got 'a {} }'"),
        (["ox"], ["a {"], "got 'a {'"),
        (["ox"], ["a {{}}"], "got 'a {{}}'"),
        (["ox"], [None], "got None"),
    ],
)
def test_names_and_templates_that_are_wrong_are_named(classnames, templates, message):
    with pytest.raises(ValueError) as error:
        ZeroShotClassifier.build(make_model(), clip_tokenizer(), classnames, templates)
    assert message in str(error.value)


def test_a_model_or_a_tokenizer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Linear has no `get_text_features`"):
        ZeroShotClassifier.build(torch.nn.Linear(1, 1), clip_tokenizer(), CLASSES, TEMPLATES)
    with pytest.raises(ValueError, match="the tokenizer has ids up to 513"):
        ZeroShotClassifier.build(tiny_clip(), clip_tokenizer(), CLASSES, TEMPLATES)
    model = make_model()
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES)
    with pytest.raises(ValueError, match="CLIPTextModel has no `get_image_features`"):
        evaluate_zero_shot(model.text_model, labelled(2), classifier)


def test_embeddings_that_are_not_finite_are_an_error():
    model = make_model()
    letter = clip_tokenizer()("dog").input_ids[1]
    model.text_model.embeddings.token_embedding.weight.data[letter] = float("nan")
    with pytest.raises(ValueError, match="The texts of 1 classes .* the first 'dog'"):
        ZeroShotClassifier.build(model, clip_tokenizer(), ["ox", "dog", "hen"], ["{}"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "`dataset` must hold at least one row; got none"),
        ([{**row, "label": 7} for row in labelled(3)], r"class ids in 0..6, since there are 7 .* got 7 to 7"),
        ([{**row, "label": -1} for row in labelled(3)], r"got -1 to -1"),
        ([{**row, "label": 1.5} for row in labelled(3)], "one class id per image; got torch.float32"),
        (
            [{**row, "label": [0, 1]} for row in labelled(3)],
            r"one class id per image; got torch.float32 of shape \(3, 2\)",
        ),
        ([{"pixel_values": row["pixel_values"]} for row in labelled(3)], "No image has a label"),
        ([{"image": encode(noise(8, 8)), "label": 0}], "`transform` is missing"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(rows, message):
    classifier = ZeroShotClassifier(F.normalize(torch.ones(24, 7), dim=0), tuple(CLASSES), ("{}",))
    with pytest.raises(ValueError, match=message):
        evaluate_zero_shot(make_model(), rows, classifier)


def test_a_model_that_diverged_finds_nothing():
    classifier = ZeroShotClassifier(torch.eye(7), tuple(CLASSES), ("{}",))
    found = zero_shot_metrics(classifier, torch.full((3, 7), float("nan")), torch.tensor([0, 1, 2]))
    assert found == {"top1": 0.0, "top5": 0.0, "mean_per_class": 0.0}
    assert np.isfinite(list(found.values())).all()


def named_rows(names: list[str], labels: list[int]) -> datasets.Dataset:
    features = datasets.Features(
        {"pixel_values": datasets.Array3D((3, 32, 32), "float32"), "label": datasets.ClassLabel(names=names)}
    )
    pixels = random_images(len(labels)).numpy()
    return datasets.Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features).with_format(
        "torch"
    )


@pytest.mark.parametrize(
    ("classnames", "message"),
    [
        (["hen", "black bear", "ox", "cow"], "each of the data set's 3 labels, in their order; got 4"),
        (["hen", "Black bear", "ox"], "in another order: class 0 is 'black_bear' in the data and 'hen'"),
    ],
)
def test_class_names_that_are_not_those_of_the_labels_are_refused(classnames, message):
    model = make_model()
    rows = named_rows(["black_bear", "hen", "ox"], [0, 1, 2])
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), classnames, ["{}"])
    with pytest.raises(ValueError, match=message):
        evaluate_zero_shot(model, rows, classifier)


@pytest.mark.parametrize("classnames", [["black bear", "hen", "ox"], ["grizzly", "ox", "cattle"]])
def test_names_in_the_order_of_the_labels_and_other_words_are_taken(classnames):
    model, labels = make_model(), [2, 0, 1, 1]
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), classnames, ["{}"])
    plain = [{"pixel_values": image, "label": label} for image, label in zip(random_images(4), labels, strict=True)]
    rows = named_rows(["black_bear", "hen", "ox"], labels)
    assert evaluate_zero_shot(model, rows, classifier) == evaluate_zero_shot(model, plain, classifier)


@pytest.mark.parametrize("classnames", [{"ox", "hen"}, (name for name in ("ox", "hen"))])
def test_class_names_without_an_order_are_refused(classnames):
    with pytest.raises(ValueError, match="`classnames` must be a list of names"):
        ZeroShotClassifier.build(make_model(), clip_tokenizer(), classnames, ["{}"])
