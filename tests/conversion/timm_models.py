"""Tiny models of timm, and their folders in timm's own layout."""

from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from tests.tiny import randomize


ARGUMENTS = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 1.5,
    "num_classes": 5,
}
GATED = {"mlp_ratio": 3.0}  # both halves together
# what it shows -> timm's architecture and arguments beside the tiny ones
FAMILIES = {
    "augreg": ("vit_base_patch16_224", {}),
    "no qkv bias": ("vit_base_patch16_224_miil", {}),
    "mean of patches, then norm": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "norm of the class token alone": ("vit_base_patch16_224", {"fc_norm": True}),
    "gap: norm, then mean": ("vit_medium_patch16_gap_240", {}),
    "clip": ("vit_base_patch32_clip_224", {}),
    "clip quickgelu": ("vit_base_patch32_clip_quickgelu_224", {}),
    "siglip gap: tanh GELU": ("vit_base_patch32_siglip_gap_256", {}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", {}),
    "dinov2 giant": ("vit_giant_patch14_reg4_dinov2", GATED),
    "registers, mean": ("vit_little_patch16_reg4_gap_256", {}),
    "registers with positions": ("vit_so150m_patch16_reg4_gap_256", {}),
    "class token and registers with positions": ("vit_base_patch16_224", {"reg_tokens": 2}),
    "deit distilled": ("deit_base_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "no final norm": ("vit_base_patch16_radio_v3", {}),
    "not square, any size": (
        "vit_base_patch16_224",
        {"img_size": (16, 40), "patch_size": (4, 8), "dynamic_img_size": True},
    ),
    "one channel": ("vit_base_patch16_224", {"in_chans": 1}),
}
FAST = ("augreg", "registers with positions", "dinov2 giant")


def timm_model(family: str, **arguments) -> nn.Module:
    """A model of a family, of random weights."""
    architecture, own = FAMILIES[family]
    return randomize(timm.create_model(architecture, **{**ARGUMENTS, **own, **arguments}))


def save_timm(model: nn.Module, folder: Path, **config) -> Path:
    """Save a model as timm does, with these fields of its config.json."""
    save_for_hf(model, folder, safe_serialization=True, model_config=config)
    return folder


def images_for(model: nn.Module, batch: int = 2) -> Tensor:
    channels, size = model.patch_embed.proj.in_channels, model.patch_embed.img_size
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))
