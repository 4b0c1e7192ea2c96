"""timm's configurations of Vision Transformers and ours, in both directions.

A file of timm names an architecture, whose arguments are in timm's code, and holds `model_args` only where they differ.
So the architecture is read off the shapes of the weights; what shapes do not tell follows from the architecture's name.
"""

import math
import re
from collections.abc import Mapping, Sequence

from ..models.configuration_base import as_pair
from ..models.configuration_vit import VitfmViTConfig


_KNOWN_NAME = re.compile(r"(vit|test_vit\d?|deit|deit3|flexivit|eva_large)_|test_vit\d?$")
_OTHER_WAY = (
    " `transformers.AutoModelForImageClassification.from_pretrained` opens all of timm's models, through timm itself."
)
# Parts of names and of weights' names that say that a model computes something else.
_REFUSED_NAMES = {
    "_rope": "rotary positions",
    "dinov3": "rotary positions",
    "_pe_": "rotary positions",
    "sapiens2": "rotary positions",
    "lingbot": "rotary positions",
    "_rpn_": "norms behind its branches",
    "relpos": "relative positions",
}
_REFUSED_WEIGHTS = {
    ".q_norm.": "norms of queries and keys",
    ".attn.norm.": "norms inside its attention",
    ".mlp.norm.": "norms inside its MLPs",
    ".lambda_": "differential attention",
    ".attns.": "parallel branches",
    ".in_norm.": "parallel branches",
    ".fc1_g.": "a gate of its own in its MLPs",
    ".rel_pos": "relative positions",
    "attn_pool.": "pooling by attention",
    "patch_embed.backbone.": "a convolutional stem",
    "patch_embed.norm.": "a norm of its patches",
}
# Weights that the architecture is read off -> their axes.
_REQUIRED_WEIGHTS = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc2.weight": 2,
}
_POOLINGS = {"token": "cls", "avg": "mean", "": "none"}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}
_TANH_NAMES = re.compile(
    r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip|vit_large_patch16_siglip_(gap_)?512"
)
# Widths whose heads are not 64 wide -> heads.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
_HEAD_WIDTH = 64

Shapes = Mapping[str, Sequence[int]]


def parse(config: dict) -> tuple[str, dict, dict]:
    """(architecture, `model_args`, `pretrained_cfg`) of a config.json; old ones have all on one level."""
    pretrained = config.get("pretrained_cfg") or config
    return config.get("architecture") or "", config.get("model_args") or {}, pretrained


def is_vit(architecture: str) -> bool:
    """Whether timm's architecture of this name is one of its Vision Transformers, of whatever kind."""
    return _KNOWN_NAME.match(architecture) is not None


def _refuse(architecture: str, args: dict, shapes: Shapes) -> None:
    """Refuse other kinds of transformers, saying what is different."""
    if architecture and not is_vit(architecture):
        raise ValueError(f"timm's {architecture!r} is not a plain Vision Transformer.{_OTHER_WAY}")
    reasons = [reason for part, reason in _REFUSED_NAMES.items() if part in architecture]
    reasons += [reason for part, reason in _REFUSED_WEIGHTS.items() if any(part in name for name in shapes)]
    if "blocks.0.norm1.bias" not in shapes and "blocks.0.norm1.weight" in shapes:
        reasons.append("norms without a mean")
    if "blocks.0.attn.proj.bias" not in shapes and "blocks.0.attn.proj.weight" in shapes:
        reasons.append("dense layers without a bias")
    reasons += [f"`{name}={args[name]!r}`" for name in ("pool_include_prefix",) if args.get(name)]
    if reasons:
        raise ValueError(f"timm's {architecture or 'model'!r} has {reasons[0]}, which is not supported.{_OTHER_WAY}")
    for name, axes in _REQUIRED_WEIGHTS.items():
        shape = tuple(shapes.get(name, ()))
        if len(shape) != axes or 0 in shape:
            found = f"has the shape {shape}" if name in shapes else "is missing"
            raise ValueError(
                f"{name!r} {found}, which needs {axes} axes: the file is damaged, or not a Vision Transformer of timm."
            )


def _num_heads(architecture: str, args: dict, width: int) -> int | None:
    if "num_heads" in args:
        return args["num_heads"]
    if architecture.startswith(("vit_base_patch16_gap", "vit_giantopt")):
        return 16
    if architecture.startswith("test_vit"):
        return width // 32
    if width not in _HEADS and width % _HEAD_WIDTH:
        return None  # the caller has to say it
    return _HEADS.get(width, width // _HEAD_WIDTH)


def _activation(architecture: str, args: dict, is_gated: bool) -> str:
    name = args.get("act_layer")
    if name is None:
        name = "silu" if is_gated else "gelu"
        if "quickgelu" in architecture:
            name = "quick_gelu"
        elif _TANH_NAMES.match(architecture):
            name = "gelu_tanh"
    if name not in _ACTIVATIONS:
        raise ValueError(f"`act_layer` must be one of {', '.join(_ACTIVATIONS)}; got {name!r}.")
    return _ACTIVATIONS[name]


def _norm_eps(architecture: str, args: dict, shapes: Shapes) -> float:
    """1e-6, which is the default of timm's norm; its CLIP models have 1e-5."""
    name = str(args.get("norm_layer") or "layernorm").replace("_", "").lower()
    if name not in ("layernorm", "layernormfp32"):
        raise ValueError(f"`norm_layer` must be 'layernorm'; got {args['norm_layer']!r}.")
    is_clip = "_clip_" in architecture if architecture else "norm_pre.weight" in shapes
    return 1e-5 if is_clip and not args.get("norm_layer") else 1e-6


def _pooling(config: dict, args: dict, pretrained: dict, shapes: Shapes) -> str:
    saved = [source["global_pool"] for source in (args, pretrained, config) if source.get("global_pool") is not None]
    is_mean = "fc_norm.weight" in shapes or "cls_token" not in shapes
    name = saved[0] if saved else ("avg" if is_mean else "token")
    if name not in _POOLINGS:
        raise ValueError(f"`global_pool` must be one of {', '.join(map(repr, _POOLINGS))}; got {name!r}.{_OTHER_WAY}")
    return _POOLINGS[name]


def _grid(args: dict, pretrained: dict, patch: tuple[int, int], num_rows: int, prefixes: list[int]) -> tuple[int, int]:
    """(rows, columns) of the patches that `num_rows` positions belong to.

    Args:
        args: timm's arguments.
        pretrained: timm's pretrained_cfg.
        patch: (height, width) of a patch.
        num_rows: all positions.
        prefixes: the numbers of positions that tokens before the patches may have.
    """
    size = args.get("img_size") or list(pretrained.get("input_size") or ())[-2:]
    if size:
        height, width = as_pair(size)
        grid = height // patch[0], width // patch[1]
        if num_rows - grid[0] * grid[1] in prefixes:
            if height % patch[0] or width % patch[1]:
                raise ValueError(
                    f"Images of {height}x{width} pixels are not a whole number of patches of {patch[0]}x{patch[1]}, "
                    f"which this library asks for.{_OTHER_WAY}"
                )
            return grid
    for prefix in prefixes:
        side = math.isqrt(max(0, num_rows - prefix))
        if side > 0 and side * side == num_rows - prefix:
            return side, side
    raise ValueError(
        f"{num_rows} positions fit neither the image size of the configuration ({size or 'none'}) nor a square image. "
        "The file is damaged, or its config.json belongs to another."
    )


def _check_arguments(architecture: str, args: dict, fields: dict) -> None:
    """Say where the weights have another architecture than their configuration claims: then some are missing."""
    claimed = {
        "hidden_size": args.get("embed_dim"),
        "num_hidden_layers": args.get("depth"),
        "num_register_tokens": args.get("reg_tokens"),
        "use_class_token": args.get("class_token"),
        "use_pre_norm": args.get("pre_norm"),
        "num_channels": args.get("in_chans"),
    }
    registers = re.search(r"_reg(\d+)_", architecture)
    if registers and claimed["num_register_tokens"] is None:
        claimed["num_register_tokens"] = int(registers[1])
    for name, value in claimed.items():
        if value is not None and value != fields[name]:
            raise ValueError(
                f"The weights do not match their configuration: `{name}` is {fields[name]} by their shapes, and {value} "
                "by config.json. The file is damaged or of another kind."
            )


def _labels(config: dict, pretrained: dict, num_labels: int) -> dict:
    """Class names, described where descriptions are given; their number where there are none."""
    names = config.get("label_names") or pretrained.get("label_names") or config.get("labels") or ()
    described = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
    if len(names) != num_labels or num_labels == 0:
        return {"num_labels": num_labels}
    rows = names.items() if isinstance(names, dict) else enumerate(names)
    id2label = {int(i): str(described.get(name, name)) for i, name in rows}
    return {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}


def our_fields(config: dict, shapes: Shapes) -> dict:
    """Our configuration of one of timm's Vision Transformers.

    Args:
        config: its config.json, {} for weights alone.
        shapes: of its weights, under timm's names.

    Raises:
        ValueError: for what our models do not compute, or a configuration that the weights do not belong to.
    """
    architecture, args, pretrained = parse(config)
    _refuse(architecture, args, shapes)
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    intermediate = shapes["blocks.0.mlp.fc2.weight"][1]
    is_gated = shapes["blocks.0.mlp.fc1.weight"][0] == 2 * intermediate
    num_registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    pooling = _pooling(config, args, pretrained, shapes)
    fields = {
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "num_attention_heads": _num_heads(architecture, args, width),
        "intermediate_size": intermediate,
        "use_gated_mlp": is_gated,
        "hidden_act": _activation(architecture, args, is_gated),
        "layer_norm_eps": _norm_eps(architecture, args, shapes),
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "layer_scale_init_value": float(args.get("init_values") or 1e-5) if "blocks.0.ls1.gamma" in shapes else None,
        "num_channels": channels,
        "patch_size": _plain(patch),
        "num_register_tokens": num_registers,
        "use_class_token": "cls_token" in shapes,
        "use_distillation_token": "dist_token" in shapes,
        "use_pre_norm": "norm_pre.weight" in shapes,
        "pooling": pooling,
        "final_norm": _final_norm(architecture, args, pooling, shapes),
        "position_interpolation": _interpolation(architecture),
    }
    _check_arguments(architecture, args, fields)
    num_prefix = fields["use_class_token"] + fields["use_distillation_token"]
    grid = _grid(args, pretrained, tuple(patch), shapes["pos_embed"][1], [num_prefix, num_prefix + num_registers, 0])
    fields["image_size"] = _plain([count * side for count, side in zip(grid, patch, strict=True)])
    num_labels = shapes["head.weight"][0] if "head.weight" in shapes else 0
    return {**fields, **_labels(config, pretrained, num_labels)}


def _plain(pair: Sequence[int]) -> int | tuple[int, int]:
    """One number for a square."""
    return pair[0] if pair[0] == pair[1] else tuple(pair)


def _final_norm(architecture: str, args: dict, pooling: str, shapes: Shapes) -> str | None:
    """Where the final norm is, None for its usual place; only few models are known to have none."""
    is_left_out = args.get("final_norm") is False or "_radio_" in architecture or "_intern300m_" in architecture
    if is_left_out and not {"norm.weight", "fc_norm.weight"} & set(shapes):
        return "none"
    place = "pooled" if "fc_norm.weight" in shapes else "tokens"
    return None if place == ("pooled" if pooling == "mean" else "tokens") else place


def _interpolation(architecture: str) -> str:
    """How timm resizes the positions of a model when it loads it for another image size."""
    if "_radio_" in architecture:
        is_aligned = "base_patch16_radio_v3" in architecture or "huge_patch16_radio_v3" in architecture
        return "bilinear_align_corners" if is_aligned else "bilinear"
    return "bilinear" if "flexi" in architecture else "bicubic_antialias"


# Architectures that bring what `model_args` cannot say: the epsilon of the norms, and the class of the MLP.
_PLAIN_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}
_CLIP_NAME, _GATED_NAME = "vit_base_patch16_clip_224", "vit_giant_patch14_dinov2"
_DISTILLED_NAME = "deit_base_distilled_patch16_224"


def _cannot_hold(name: str, value, allowed: str, instead: str) -> ValueError:
    return ValueError(f"timm cannot hold `{name}={value!r}` (only {allowed}). {instead}")


def _check_writable(config: VitfmViTConfig) -> None:
    ours = "Save the model with `save_pretrained`, in this library's own format."
    if config.pooling == "cls_mean":
        raise _cannot_hold("pooling", config.pooling, "'cls', 'mean' or 'none'", 'Export with `format="dinov2"`.')
    if config.representation_size:
        raise _cannot_hold("representation_size", config.representation_size, "None", ours)
    if config.hidden_act not in _ACTIVATIONS.values():
        raise _cannot_hold("hidden_act", config.hidden_act, ", ".join(map(repr, _ACTIVATIONS.values())), ours)
    if config.use_distillation_token and config.num_register_tokens:
        raise _cannot_hold("num_register_tokens", config.num_register_tokens, "0 beside a distillation token", ours)
    special = config.use_gated_mlp or config.use_distillation_token
    if config.layer_norm_eps not in ((1e-6,) if special else (1e-6, 1e-5)):
        advice = f"Load the model with `layer_norm_eps=1e-6`, which changes its outputs a little, or keep it. {ours}"
        raise _cannot_hold("layer_norm_eps", config.layer_norm_eps, "1e-6" if special else "1e-6 or 1e-5", advice)
    if config.use_gated_mlp and config.use_distillation_token:
        raise _cannot_hold("use_gated_mlp", True, "False beside a distillation token", ours)


def _init_values(config: VitfmViTConfig) -> float:
    """Of LayerScale; 0.0 leaves it out, as None would if timm took that for an argument."""
    return 0.0 if config.layer_scale_init_value is None else config.layer_scale_init_value or 1e-5


def their_arguments(config: VitfmViTConfig) -> tuple[str, dict]:
    """The architecture and the `model_args` by which timm builds one of our models.

    Raises:
        ValueError: for what timm cannot hold, naming the field.
    """
    _check_writable(config)
    name = _PLAIN_NAMES.get(config.hidden_size, "vit_base_patch16_224")
    if config.layer_norm_eps == 1e-5:
        name = _CLIP_NAME
    if config.use_gated_mlp:
        name = _GATED_NAME
    if config.use_distillation_token:
        name = _DISTILLED_NAME
    width = config.intermediate_size * (2 if config.use_gated_mlp else 1)
    ratio = width / config.hidden_size
    if int(config.hidden_size * ratio) != width:  # timm rounds down
        ratio = (width + 0.5) / config.hidden_size
    args = {
        "img_size": list(as_pair(config.image_size)),
        "patch_size": list(as_pair(config.patch_size)),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": ratio,
        "qkv_bias": config.qkv_bias,
        "init_values": _init_values(config),
        "class_token": config.use_class_token,
        "no_embed_class": config.num_register_tokens > 0,
        "reg_tokens": config.num_register_tokens,
        "pre_norm": config.use_pre_norm,
        "final_norm": config.norm_place != "none",
        "fc_norm": config.norm_place == "pooled",
        "global_pool": {ours: theirs for theirs, ours in _POOLINGS.items()}[config.pooling],
        "act_layer": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.hidden_act],
    }
    return name, args
