"""Our ViT computes what timm's VisionTransformer computes."""

import re

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from hf_vitfm import ViTConfig, ViTForImageClassification
from tests.tiny import random_images, randomize, relative_error, tiny_config


LABELS = torch.tensor([0, 3])
# timm's names -> ours; its fused qkv has our layout.
RENAMES = (
    (r"^head\.", "classifier."),
    (r"^(cls_token)$", r"vit.embeddings.\1"),
    (r"^reg_token$", "vit.embeddings.register_tokens"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^fc_norm\.", "vit.fc_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"vit.encoder.layers.\1.attention."),
    (r"^blocks\.(\d+)\.ls([12])\.gamma$", r"vit.encoder.layers.\1.layer_scale\2.weight"),
    (r"^blocks\.", "vit.encoder.layers."),
)


def under_our_names(tensors: dict) -> dict:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


# our fields: timm's arguments
OPTIONS = {
    "plain": ({}, {}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "layer scale": ({"layer_scale_init_value": 0.1}, {"init_values": 0.1}),
    "mean of patches, then norm": ({"pooling": "mean"}, {"global_pool": "avg"}),
    "mean without class token": (
        {"pooling": "mean", "use_class_token": False},
        {"global_pool": "avg", "class_token": False},
    ),
    "mean with registers and layer scale": (
        {"pooling": "mean", "use_class_token": False, "num_register_tokens": 3, "layer_scale_init_value": 0.1},
        {"global_pool": "avg", "class_token": False, "reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
    ),
    "not square": ({"image_size": (16, 40), "patch_size": (4, 8)}, {"img_size": (16, 40), "patch_size": (4, 8)}),
}


def timm_model(**arguments) -> VisionTransformer:
    fields = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 4,
        "mlp_ratio": 1.5,
        "num_classes": 5,
    }
    return randomize(VisionTransformer(**{**fields, **arguments}))


def load_ours(theirs, **fields) -> ViTForImageClassification:
    ours = ViTForImageClassification(tiny_config(**fields)).eval()
    ours.load_state_dict(under_our_names(theirs.state_dict()), strict=True)
    return ours


def assert_same_logits_and_gradients(ours, theirs, images, tolerance=1e-5):
    labels = LABELS[: len(images)]
    found, expected = ours(images, labels=labels), theirs(images)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-5)
    found.loss.backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    gradients = under_our_names({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        pair = [parameter.grad, gradients.pop(name)]
        if name.endswith("qkv.bias"):  # the key third's true gradient is zero
            pair = [torch.cat(gradient.chunk(3)[::2]) for gradient in pair]
        assert relative_error(*pair) < tolerance, name
    assert gradients == {}


@pytest.mark.parametrize("option", OPTIONS)
def test_logits_and_gradients_are_equal(option):
    fields, arguments = OPTIONS[option]
    theirs = timm_model(**arguments)
    ours = load_ours(theirs, **fields)
    assert_same_logits_and_gradients(ours, theirs, random_images(2, *(fields.get("image_size") or (32, 32))))


def test_default_norm_epsilon_is_timms():
    norms = [module for module in timm_model().modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {tiny_config().layer_norm_eps} == {1e-6}


@torch.no_grad()
@pytest.mark.parametrize("no_embed_class", [True, False])
def test_registers_next_to_a_class_token_are_equal(no_embed_class):
    theirs = timm_model(reg_tokens=2, no_embed_class=no_embed_class)
    weights = under_our_names(theirs.state_dict())
    positions = weights["vit.embeddings.position_embeddings"]
    if no_embed_class:  # timm has positions for patches only
        positions = torch.cat([torch.zeros(1, 1, 32), positions], dim=1)
    else:  # timm gives registers positions; the sum of both is all that counts
        weights["vit.embeddings.register_tokens"] = weights["vit.embeddings.register_tokens"] + positions[:, 1:3]
        positions = torch.cat([positions[:, :1], positions[:, 3:]], dim=1)
    weights["vit.embeddings.position_embeddings"] = positions
    ours = ViTForImageClassification(tiny_config(num_register_tokens=2)).eval()
    ours.load_state_dict(weights, strict=True)
    torch.testing.assert_close(ours(random_images()).logits, theirs(random_images()), rtol=0, atol=1e-5)
    tokens = ours.vit(random_images()).last_hidden_state
    torch.testing.assert_close(tokens, theirs.forward_features(random_images()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_layers_are_equal_one_by_one():
    theirs = timm_model()
    expected = []
    for block in theirs.blocks:
        block.register_forward_hook(lambda module, args, output: expected.append(output))
    theirs(random_images())
    hidden_states = load_ours(theirs).vit(random_images(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(list(hidden_states[1:]), expected, rtol=0, atol=1e-5)


def test_drop_path_rates_are_timms():
    theirs = timm_model(drop_path_rate=0.3)
    ours = ViTForImageClassification(tiny_config(drop_path_rate=0.3))
    expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    assert [layer.drop_path.rate for layer in ours.vit.encoder.layers] == pytest.approx(expected)


@torch.no_grad()
def test_distilled_deit_is_equal_in_evaluation():
    theirs = timm.models.deit.VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_ratio=1.5, num_classes=5
    )
    weights = under_our_names(randomize(theirs).state_dict())
    weights["vit.embeddings.distillation_token"] = weights.pop("dist_token")
    for kind in ("weight", "bias"):
        weights[f"distillation_classifier.{kind}"] = weights.pop(f"head_dist.{kind}")
    ours = ViTForImageClassification(tiny_config(use_distillation_token=True)).eval()
    ours.load_state_dict(weights, strict=True)
    torch.testing.assert_close(ours(random_images()).logits, theirs(random_images()), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_vit_base_is_equal_in_logits_and_gradients():
    theirs = timm.create_model("vit_base_patch16_224").eval()
    torch.nn.init.normal_(theirs.head.weight, std=0.02)
    torch.nn.init.normal_(theirs.head.bias, std=0.1)
    ours = ViTForImageClassification(ViTConfig.from_variant("B/16", num_labels=1000)).eval()
    ours.load_state_dict(under_our_names(theirs.state_dict()), strict=True)
    assert_same_logits_and_gradients(ours, theirs, random_images(1, 224, 224))
