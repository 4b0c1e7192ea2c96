"""Tiny models with truly random weights, for tests that compare one computation with another."""

import torch
from torch import Tensor, nn

from hf_vitfm import CLIPConfig, CLIPModel, MAEConfig, MAEForPreTraining, ViTConfig


FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


MAE_FIELDS = {
    **{name: value for name, value in FIELDS.items() if name != "num_labels"},
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}


TOWER_FIELDS = {name: FIELDS[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
TEXT_FIELDS = {
    **TOWER_FIELDS,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "bos_token_id": 58,
    "eos_token_id": 59,
}
VISION_FIELDS = {**TOWER_FIELDS, "intermediate_size": 40, "image_size": 32, "patch_size": 8}


# What makes of `tiny_clip` a model such as SigLIP.
SIGLIP = {
    "text": {"is_causal": False, "pooling": "last", "projection_bias": True},
    "vision": {
        "use_projection": False,
        "pooling": "map",
        "use_class_token": False,
        "patch_bias": True,
        "use_pre_norm": False,
        "final_norm": "tokens",
    },
    "objective": "sigmoid",
    "projection_dim": 32,
}


def tiny_config(**fields) -> ViTConfig:
    """A configuration of 16 patches and three layers."""
    return ViTConfig(**{**FIELDS, **fields})


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values, also those that a fresh model has as zeros or ones; sets evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_scale = "norm" in name and name.endswith("weight")
        parameter.copy_(1 + 0.2 * values if is_scale else 0.2 * values)
    return model.eval()


def tiny_mae(**fields) -> MAEForPreTraining:
    """A masked autoencoder of that size with random weights."""
    return randomize(MAEForPreTraining(MAEConfig(**{**MAE_FIELDS, **fields})))


def tiny_clip_config(text: dict | None = None, vision: dict | None = None, **fields) -> CLIPConfig:
    """A configuration of two towers of three layers, a vocabulary of 60 and texts of at most 12 tokens."""
    towers = {"text_config": {**TEXT_FIELDS, **(text or {})}, "vision_config": {**VISION_FIELDS, **(vision or {})}}
    return CLIPConfig(**{**towers, "projection_dim": 24, **fields})


def tiny_clip(**fields) -> CLIPModel:
    """A CLIP model of that size with random weights; fields as `tiny_clip_config` takes them."""
    return randomize(CLIPModel(tiny_clip_config(**fields)))


def random_texts(batch: int = 2, length: int = 7, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Texts of different lengths between the tokens 58 and 59, padded with 1 on the right, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 58, (batch, length), generator=generator)
    ends = torch.tensor([length - 1 - row % (length - 2) for row in range(batch)])
    places = torch.arange(length)
    tokens[:, 0] = 58
    tokens[torch.arange(batch), ends] = 59
    mask = (places <= ends[:, None]).long()
    return torch.where(mask.bool(), tokens, 1), mask


def random_images(batch: int = 2, height: int = 32, width: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).norm() / expected.norm()).item()


OPTIONS = {
    "plain": {},
    "mean": {"pooling": "mean"},
    "mean of patches without class token": {"pooling": "mean", "use_class_token": False},
    "registers": {"num_register_tokens": 2},
    "distillation": {"use_distillation_token": True},
    "layer scale": {"layer_scale_init_value": 0.1},
    "sincos": {"position_embedding_type": "sincos"},
    "jax": {"weight_init": "jax"},
    "pre-logits": {"representation_size": 24},
    "head of small normals": {"head_init": "trunc_normal"},
    "no qkv bias": {"qkv_bias": False},
    "not square": {"image_size": (32, 48), "patch_size": (16, 8)},
    "gated with pre-norm": {
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "use_pre_norm": True,
        "pooling": "cls_mean",
        "num_register_tokens": 2,
    },
    "norm before the mean": {"pooling": "mean", "final_norm": "tokens"},
    "all with class token": {
        "num_register_tokens": 2,
        "use_distillation_token": True,
        "layer_scale_init_value": 0.1,
        "representation_size": 24,
        "weight_init": "jax",
    },
    "all with mean": {
        "pooling": "mean",
        "num_register_tokens": 2,
        "layer_scale_init_value": 0.1,
        "representation_size": 24,
        "position_embedding_type": "sincos",
        "head_init": "trunc_normal",
        "weight_init": "jax",
    },
}
