"""Our CLIP computes what open_clip's computes, for the same weights: embeddings, logits, loss and gradients."""

import re

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from hf_vitfm import CLIPConfig, CLIPModel
from tests.tiny import TEXT_FIELDS, VISION_FIELDS, random_images, random_texts, randomize, relative_error


# open_clip's names, which are OpenAI's, and ours.
RENAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.cls_token"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embeddings"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.", "vision_model."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.", "text_model.transformer."),
    (r"\.transformer\.resblocks\.", ".encoder.layers."),
    (r"\.attn\.in_proj_", ".attention.qkv."),
    (r"\.attn\.out_proj\.", ".attention.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ln_([12])\.", r".norm\1."),
)
TRANSPOSED = ("visual.proj", "text_projection")
LAYERS = VISION_FIELDS["num_hidden_layers"]
TINY = {  # the published configuration's fields, at the sizes of tests/tiny.py
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": LAYERS,
        "width": 32,
        "head_width": 8,
        "mlp_ratio": 1.25,
        "patch_size": 8,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 60, "width": 32, "heads": 4, "layers": LAYERS, "mlp_ratio": 1.5},
}
activations = pytest.mark.parametrize("quick_gelu", [True, False])


def under_our_names(tensors: dict) -> dict:
    renamed = {}
    for name, tensor in tensors.items():
        tensor = tensor.mT if name in TRANSPOSED else tensor
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def load_weights(ours: CLIPModel, theirs: open_clip.CLIP) -> CLIPModel:
    """Every weight of one in the other; ours has leading dimensions of 1 for tokens and positions."""
    weights, expected = under_our_names(theirs.state_dict()), ours.state_dict()
    assert set(weights) == set(expected)
    ours.load_state_dict({name: weight.reshape(expected[name].shape) for name, weight in weights.items()})
    return ours.eval()


def tiny_pair(quick_gelu: bool, pooling: str = "cls", **fields) -> tuple[CLIPModel, open_clip.CLIP]:
    means = {"pool_type": "avg", "final_ln_after_pool": True} if pooling == "mean" else {}
    vision = {**TINY["vision_cfg"], **means}
    theirs = open_clip.CLIP(**{**TINY, "vision_cfg": vision}, quick_gelu=quick_gelu, **fields)
    scalars = {name: value.clone() for name, value in theirs.state_dict().items() if not value.ndim}
    randomize(theirs).load_state_dict(scalars, strict=False)  # the initial temperature
    activation = {"hidden_act": "quick_gelu" if quick_gelu else "gelu"}
    config = CLIPConfig(
        text_config={**TEXT_FIELDS, **activation},
        vision_config={**VISION_FIELDS, **activation, "pooling": pooling},
        projection_dim=24,
        objective="sigmoid" if "init_logit_bias" in fields else "softmax",
    )
    return load_weights(CLIPModel(config), theirs), theirs


def full_texts(batch: int):
    """Texts of the whole context length, padded with open_clip's 0; it takes no others."""
    tokens, mask = random_texts(batch, length=12)
    return tokens * mask


def assert_embeddings_and_logits(ours, theirs, images, tokens):
    found = ours(tokens, images)
    image, text, scale = theirs(images, tokens)
    assert scale.item() == pytest.approx(1 / 0.07) and (text[0] - text[1]).norm() > 1e-3
    assert relative_error(found.image_embeds, image) <= 1e-6
    assert relative_error(found.text_embeds, text) <= 1e-6
    expected = theirs.get_logits(images, tokens)
    for logits, wanted in zip((found.logits_per_image, found.logits_per_text), expected, strict=True):
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@activations
@torch.no_grad()
def test_embeddings_and_logits_are_equal(quick_gelu, pooling):
    ours, theirs = tiny_pair(quick_gelu, pooling)
    images, tokens = random_images(5), full_texts(5)
    assert_embeddings_and_logits(ours, theirs, images, tokens)
    other, _ = tiny_pair(not quick_gelu, pooling)
    assert relative_error(other(tokens, images).image_embeds, theirs.encode_image(images, normalize=True)) > 1e-3


@torch.no_grad()
def test_published_size_is_equal():
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu")).eval()
    with torch.device("meta"):
        ours = CLIPModel(CLIPConfig.from_variant("B/32"))
    ours = load_weights(ours.to_empty(device="cpu"), theirs)
    tokens = torch.zeros(2, 77, dtype=torch.long)
    for row, length in enumerate((9, 77)):
        tokens[row, :length] = torch.randint(1, 49406, (length,))
        tokens[row, [0, length - 1]] = torch.tensor([49406, 49407])
    assert_embeddings_and_logits(ours, theirs, random_images(2, 224, 224), tokens)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
@activations
def test_loss_and_gradients_are_equal(quick_gelu, objective):
    fields = {"init_logit_scale": 2.0, "init_logit_bias": -3.0} if objective == "sigmoid" else {}
    ours, theirs = (model.double() for model in tiny_pair(quick_gelu, **fields))
    images, tokens = random_images(6).double(), full_texts(6)
    found = ours(tokens, images, return_loss=True).loss
    expected = (SigLipLoss() if fields else ClipLoss())(*theirs(images, tokens))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    found.backward()
    expected.backward()
    wanted = under_our_names({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        pair = parameter.grad, wanted[name].reshape(parameter.shape)
        if name.endswith("qkv.bias"):  # the key third's true gradient is zero
            pair = [torch.cat(gradient.chunk(3)[::2]) for gradient in pair]
        assert relative_error(*pair) <= 1e-10, name
