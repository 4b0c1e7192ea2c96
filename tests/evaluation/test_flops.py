"""Counted operations equal those that PyTorch counts while the model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vitfm import CLIPTextModelWithProjection, CLIPVisionModel, MAEModel, ViTForImageClassification, ViTModel
from hf_vitfm.evaluation.flops import count_flops
from tests.tiny import SIGLIP, tiny_clip, tiny_clip_config, tiny_config, tiny_mae


IMAGES, TEXTS = {"pixel_values": (1, 3, 32, 32)}, {"input_ids": (1, 12)}
MODELS = {
    "classifier": (lambda: ViTForImageClassification(tiny_config(representation_size=24)), IMAGES),
    "mean of patches": (lambda: ViTModel(tiny_config(pooling="mean", use_class_token=False)), IMAGES),
    "registers": (lambda: ViTModel(tiny_config(num_register_tokens=2)), IMAGES),
    "distillation": (lambda: ViTForImageClassification(tiny_config(use_distillation_token=True)), IMAGES),
    "MAE": (tiny_mae, IMAGES),
    "MAE's encoder": (lambda: MAEModel(tiny_mae().config), IMAGES),
    "CLIP": (tiny_clip, {**IMAGES, **TEXTS}),
    "SigLIP": (lambda: tiny_clip(**SIGLIP), {**IMAGES, **TEXTS}),
    "text tower": (lambda: CLIPTextModelWithProjection(tiny_clip_config().text_config), TEXTS),
    "image tower": (lambda: CLIPVisionModel(tiny_clip_config().vision_config), IMAGES),
}


def measured(model, shapes) -> int:
    inputs = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}
    if "input_ids" in inputs:
        inputs["input_ids"] = torch.full(shapes["input_ids"], 59)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().requires_grad_(False)(**inputs)  # the counter stumbles over views of parameters
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_count_equals_what_pytorch_counts(name):
    build, shapes = MODELS[name]
    model = build()
    expected = measured(model, shapes)
    if name in ("CLIP", "SigLIP"):
        expected -= 2 * model.config.projection_dim  # the one product of an image and a text
    assert sum(cost.flops for cost in count_flops(model).values()) == expected


def test_published_count_of_vit_b_16_on_the_meta_device():
    with torch.device("meta"):
        model = ViTModel(
            tiny_config(
                hidden_size=768,
                num_hidden_layers=12,
                num_attention_heads=12,
                intermediate_size=3072,
                image_size=224,
                patch_size=16,
            )
        )
    cost = count_flops(model)["encoder"]
    assert cost.tokens == 197
    # DeiT (Touvron et al. 2021) counts 17.6 billion multiply-adds in all layers, norms included.
    assert cost.flops / 2 == pytest.approx(17.6e9, rel=0.01)
    assert cost.per_token == cost.flops / 197


def test_parts_of_a_masked_autoencoder():
    costs = count_flops(tiny_mae())
    assert (costs["encoder"].tokens, costs["decoder"].tokens) == (1 + 4, 1 + 16)
