"""How timm names a ViT's tensors, as the code of MAE and DeiT that grew from it does, and what their shapes tell."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

from ..models.configuration_base import VARIANTS
from .rules import Rule, with_bias


EMBEDDING_RULES = [
    Rule("embeddings.cls_token", ("cls_token",)),
    Rule("embeddings.position_embeddings", ("pos_embed",)),
    *with_bias("embeddings.patch_embeddings.projection", "patch_embed.proj"),
]

_PLAIN = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|head|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
HEADS_NOTE = "The number of heads is not in the file; it is that of the published model of this width."
# The published models' by width, for no tensor's shape tells them; 512 is DeiT III's medium model.
HEADS = {**{sizes["hidden_size"]: sizes["num_attention_heads"] for sizes in VARIANTS.values()}, 512: 8}


def block_rules(ours: str, theirs: str, layer_scale: str | None = None) -> list[Rule]:
    """The rules for a stack of layers.

    Args:
        ours: our name of a layer, with "{i}".
        theirs: theirs.
        layer_scale: name of the factors of LayerScale before its number, None for none.
    """
    rules = [
        *with_bias(f"{ours}.norm1", f"{theirs}.norm1"),
        *with_bias(f"{ours}.attention.qkv", f"{theirs}.attn.qkv"),
        *with_bias(f"{ours}.attention.proj", f"{theirs}.attn.proj"),
        *with_bias(f"{ours}.norm2", f"{theirs}.norm2"),
        *with_bias(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1"),
        *with_bias(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2"),
    ]
    if layer_scale is not None:
        rules += [Rule(f"{ours}.layer_scale{n}.weight", (f"{theirs}.{layer_scale}{n}",)) for n in (1, 2)]
    return rules


def is_plain_but_for(pattern: str, names: Collection[str]) -> bool:
    """Whether names are those of a ViT that MAE and DeiT build upon, apart from some of their own.

    timm's newer models have more: other norms, registers, gates.

    Args:
        pattern: a regular expression that names of their own match.
        names: names of tensors.
    """
    needed = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}
    return needed <= set(names) and all(_PLAIN.fullmatch(name) or re.fullmatch(pattern, name) for name in names)


def require_shape(shapes: Mapping[str, Sequence[int]], name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there.

    Raises:
        ValueError: if it is not there, or has not so many dimensions.
    """
    if name not in shapes:
        raise ValueError(f"The checkpoint has no tensor {name!r}. The file is damaged or of another kind.")
    shape = tuple(shapes[name])
    if len(shape) != ndim or min(shape) < 1:
        raise ValueError(
            f"The checkpoint's tensor {name!r} must have {ndim} dimensions, none empty; got {shape}. The file is damaged "
            "or of another kind."
        )
    return shape


def count_layers(names, pattern: str) -> int:
    """How many numbers the only group of a pattern takes among names."""
    return len({found[1] for found in map(re.compile(pattern).match, names) if found})


def square_grid(num_patches: int) -> int | None:
    """Side of a square grid of so many patches, None if there is none."""
    side = math.isqrt(num_patches) if num_patches > 0 else 0
    return side if side and side * side == num_patches else None


def image_and_prefix(shapes: Mapping[str, Sequence[int]], prefixes: Sequence[int]) -> tuple[int, int]:
    """Side of the images in pixels, and the number of rows before the positions of the patches.

    Args:
        shapes: shapes by name.
        prefixes: how many such rows there may be, the likeliest first.

    Raises:
        ValueError: if tensors are missing, or images or patches are not square.
    """
    height, width = require_shape(shapes, "patch_embed.proj.weight", 4)[2:]
    rows = require_shape(shapes, "pos_embed", 3)[1]
    for count in prefixes:
        side = square_grid(rows - count)
        if side is not None and height == width:
            return side * height, count
    raise ValueError(
        f"`pos_embed` has {rows} rows for patches of {height}x{width} pixels, which are not those of a square image and "
        f"{' or '.join(map(str, prefixes))} tokens before it. Other models cannot be read without a configuration."
    )


def encoder_fields(shapes: Mapping[str, Sequence[int]], prefixes: Sequence[int]) -> tuple[dict, int]:
    """What shapes under timm's names tell about an encoder; the rest is as MAE's and DeiT's code have it.

    Args:
        shapes: shapes by name.
        prefixes: see `image_and_prefix`.

    Returns:
        Fields of our configuration, and the number of rows before the positions of the patches. `num_attention_heads`
        is None for a width that no published model has: then it has to be given.

    Raises:
        ValueError: if tensors are missing, or have other shapes than in a ViT of square images.
    """
    width, channels, patch_size, _ = require_shape(shapes, "patch_embed.proj.weight", 4)
    image_size, num_prefix = image_and_prefix(shapes, prefixes)
    fields = {
        "hidden_size": width,
        "num_hidden_layers": count_layers(shapes, r"blocks\.(\d+)\."),
        "num_attention_heads": HEADS.get(width),
        "intermediate_size": require_shape(shapes, "blocks.0.mlp.fc1.weight", 2)[0],
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "position_interpolation": "bicubic",
    }
    return fields, num_prefix


def shapes_of(state_dict: Mapping) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
