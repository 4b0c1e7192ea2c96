"""From images to one vector each: which of a vision model's outputs stands for an image.

Shapes: B batch, T tokens, D width.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..models.configuration_base import as_pair
from ..models.modeling_vit import ViTModel


TOKEN_POOLINGS = ("cls", "mean")
POOLINGS = (*TOKEN_POOLINGS, "pooler", "pre_projection", "projected")


def check_pooling(pooling: str, layer: int | None) -> None:
    """Refuse a pooling that there is not, or a layer with one that is made of the last layer alone.

    Raises:
        ValueError: saying what is allowed.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}; got {pooling!r}.")
    if layer is not None and pooling not in TOKEN_POOLINGS:
        raise ValueError(
            f"`layer` goes with `pooling` {' or '.join(TOKEN_POOLINGS)}, since {pooling!r} is made of the last layer; got "
            f"`layer={layer!r}`. Leave `layer` out, or pool the tokens."
        )


def vision_tower(base: nn.Module) -> nn.Module:
    """The part of a model that turns images into tokens: of an image-text model its vision tower, else the model."""
    return getattr(base, "vision_model", base)


def pool_images(base: nn.Module, pixel_values: Tensor, pooling: str, layer: int | None = None) -> Tensor:
    """Compute a vector for every image.

    Args:
        base: a vision model or an image-text model, without a head.
        pixel_values: (B, channels, height, width).
        pooling: one of `POOLINGS`, as `extract_features` explains them.
        layer: which of the hidden states to pool, of -L - 1 to L; None for the last with its norm.

    Returns:
        (B, D).

    Raises:
        ValueError: if the model has no such output.
    """
    if pooling == "projected":
        return joint_embeds(_with_joint_space(base).get_image_features(pixel_values=pixel_values))
    if pooling == "pre_projection":
        return _before_projection(_with_joint_space(base), pixel_values)
    tower = vision_tower(base)
    if layer is not None:
        return _pool_tokens(tower, _hidden_state(tower, pixel_values, layer), pixel_values, pooling)
    outputs = tower(pixel_values=pixel_values)
    if pooling == "pooler":
        return _pooled(tower, outputs)
    hidden = getattr(outputs, "last_hidden_state", None)
    if hidden is None or hidden.ndim not in (3, 4):
        raise ValueError(
            f"{type(tower).__name__} gives no `last_hidden_state` of tokens or of a map. Pass a vision model, such as "
            "`AutoModel` loads."
        )
    pooled = _pool_tokens(tower, hidden, pixel_values, pooling)
    return tower.fc_norm(pooled) if isinstance(tower, ViTModel) else pooled


def joint_embeds(features: Tensor | ModelOutput) -> Tensor:
    """The embeddings (B, D) in what `get_image_features` or `get_text_features` returned; models differ in the form."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _with_joint_space(base: nn.Module) -> nn.Module:
    if not hasattr(base, "get_image_features"):
        raise ValueError(
            f"{type(base).__name__} has no `get_image_features`. Pass an image-text model, such as `AutoModel` loads "
            "from a CLIP checkpoint."
        )
    return base


def _before_projection(base: nn.Module, pixel_values: Tensor) -> Tensor:
    """What the visual projection is given; what the tower pools where there is none, as in SigLIP."""
    projection = getattr(base, "visual_projection", None)
    if projection is None:
        tower = vision_tower(base)
        return _pooled(tower, tower(pixel_values=pixel_values))
    given = []
    hook = projection.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        base.get_image_features(pixel_values=pixel_values)
    finally:
        hook.remove()
    return given[0]


def _pooled(tower: nn.Module, outputs: ModelOutput) -> Tensor:
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is None:
        raise ValueError(f'{type(tower).__name__} gives no `pooler_output`. Pass `pooling="cls"` or "mean".')
    return pooled.flatten(1)  # convolutional networks keep (B, D, 1, 1)


def _hidden_state(tower: nn.Module, pixel_values: Tensor, layer: int) -> Tensor:
    states = getattr(tower(pixel_values=pixel_values, output_hidden_states=True), "hidden_states", None)
    if not states:
        raise ValueError(f"{type(tower).__name__} gives no `hidden_states`. Leave `layer` out.")
    if not -len(states) <= layer < len(states):
        raise ValueError(
            f"`layer` must be in {-len(states)}..{len(states) - 1}, since {type(tower).__name__} gives {len(states)} hidden "
            f"states, that of the embeddings first; got {layer}."
        )
    return states[layer]


def _pool_tokens(tower: nn.Module, hidden: Tensor, pixel_values: Tensor, pooling: str) -> Tensor:
    """Tokens (B, T, D) or a map (B, D, rows, columns) to (B, D)."""
    if hidden.ndim == 4:
        hidden, num_prefix = hidden.flatten(2).transpose(1, 2), 0
    else:
        num_prefix = _count_prefix(tower.config, hidden.shape[1], pixel_values.shape[-2:])
    if pooling == "mean":
        return hidden[:, num_prefix:].mean(dim=1)
    if num_prefix and getattr(tower.config, "use_class_token", True):
        return hidden[:, 0]
    raise ValueError(f'{type(tower).__name__} has no class token. Pass `pooling="mean"`.')


def _count_prefix(config: Any, num_tokens: int, image_size: Sequence[int]) -> int:
    """Tokens that stand before those of the patches: class, distillation, registers."""
    patch_size = getattr(config, "patch_size", None)
    if patch_size is None:
        return 0
    num_patches = math.prod(length // patch for length, patch in zip(image_size, as_pair(patch_size), strict=True))
    return max(0, num_tokens - num_patches)  # a network that merges patches, as Swin does, has no other tokens
