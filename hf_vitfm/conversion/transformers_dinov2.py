"""transformers' DINOv2 formats: `model_type` "dinov2" and "dinov2_with_registers", old and new weight names.

Their models hold LayerScale, registers and gated MLPs, so they are also what a ViT with those is written as.
"""

import re

import torch
import transformers
from torch import Tensor

from ..models.configuration_base import as_pair
from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_vit import ViTModel
from .rules import Rule, named_for_vit, renamed, to_ours, to_theirs, with_bias
from .transformers_vit import SHARED_FIELDS


NAME = "dinov2"
MODEL_TYPE = "dinov2"
REGISTERS_MODEL_TYPE = "dinov2_with_registers"

# Fields that mean the same in both configurations.
_OWN_WIDTH = ("intermediate_size", "hidden_act")  # that DINOv2 tells by a ratio and a kind of MLP
_SHARED_FIELDS = (*(name for name in SHARED_FIELDS if name not in _OWN_WIDTH), "drop_path_rate")
_PREFIXES = re.compile(r"^dinov2(_with_registers)?\.")

_LAYER = "encoder.layer.{i}"
_OUR_LAYER = "encoder.layers.{i}"
_QKV = tuple(f"{_LAYER}.attention.attention.{part}" for part in ("query", "key", "value"))
_COMMON_RULES = [
    Rule("embeddings.cls_token", ("embeddings.cls_token",)),
    Rule("embeddings.position_embeddings", ("embeddings.position_embeddings",)),
    *with_bias("embeddings.patch_embeddings.projection", "embeddings.patch_embeddings.projection"),
    *with_bias(f"{_OUR_LAYER}.norm1", f"{_LAYER}.norm1"),
    Rule(f"{_OUR_LAYER}.attention.qkv.weight", tuple(f"{name}.weight" for name in _QKV)),
    *with_bias(f"{_OUR_LAYER}.attention.proj", f"{_LAYER}.attention.output.dense"),
    Rule(f"{_OUR_LAYER}.layer_scale1.weight", (f"{_LAYER}.layer_scale1.lambda1",)),
    *with_bias(f"{_OUR_LAYER}.norm2", f"{_LAYER}.norm2"),
    Rule(f"{_OUR_LAYER}.layer_scale2.weight", (f"{_LAYER}.layer_scale2.lambda1",)),
    *with_bias("layernorm", "layernorm"),
    *with_bias("classifier", "classifier", optional=True),
]
_QKV_BIAS_RULE = Rule(f"{_OUR_LAYER}.attention.qkv.bias", tuple(f"{name}.bias" for name in _QKV))
_REGISTERS_RULE = Rule("embeddings.register_tokens", ("embeddings.register_tokens",))

# Parameter names of transformers 5 -> the names that files on the Hub have.
_NEW_NAMES = (
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.down_proj.", ".mlp.weights_out."),
)


def _rules(config: VitfmViTConfig, has_halves: bool = False) -> list[Rule]:
    """The weights that a model has; with `has_halves`, gated MLPs' first layers are two tensors (transformers 5)."""
    if config.use_gated_mlp:
        halves = (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj")
        first, second = halves if has_halves else (f"{_LAYER}.mlp.weights_in",), f"{_LAYER}.mlp.weights_out"
    else:
        first, second = (f"{_LAYER}.mlp.fc1",), f"{_LAYER}.mlp.fc2"
    rules = [
        *_COMMON_RULES,
        *with_bias(f"{_OUR_LAYER}.mlp.fc1", *first),
        *with_bias(f"{_OUR_LAYER}.mlp.fc2", second),
    ]
    if config.qkv_bias:
        rules.append(_QKV_BIAS_RULE)
    if config.num_register_tokens:
        rules.append(_REGISTERS_RULE)
    return rules


def _file_name(name: str) -> str:
    """The name that files on the Hub have for a parameter, without the prefix of a classifier's encoder."""
    name = _PREFIXES.sub("", name)
    for new, old in _NEW_NAMES:
        name = name.replace(new, old)
    return name


def _mlp_width(hidden_size: int, mlp_ratio: int, is_gated: bool) -> int:
    """Gated MLPs have two thirds of the width, rounded up to a multiple of eight."""
    width = int(hidden_size * mlp_ratio)
    return (int(width * 2 / 3) + 7) // 8 * 8 if is_gated else width


def read(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a configuration and its weights to ours; the mask token, which nothing here uses, is left out.

    A base model pools the class token, a classifier the class token beside the mean of the patches, as transformers'.
    """
    has_registers = saved.get("model_type") == REGISTERS_MODEL_TYPE
    config_class = transformers.Dinov2WithRegistersConfig if has_registers else transformers.Dinov2Config
    theirs = config_class(**saved)  # fills in the defaults that a config.json leaves out
    is_base, is_gated = issubclass(model_class, ViTModel), theirs.use_swiglu_ffn
    fields = {
        **{name: getattr(theirs, name) for name in _SHARED_FIELDS},
        "intermediate_size": _mlp_width(theirs.hidden_size, theirs.mlp_ratio, is_gated),
        "use_gated_mlp": is_gated,
        "hidden_act": "silu" if is_gated else theirs.hidden_act,
        "layer_scale_init_value": float(theirs.layerscale_value),
        "num_register_tokens": theirs.num_register_tokens if has_registers else 0,
        "pooling": "cls" if is_base else "cls_mean",
        "position_interpolation": "bicubic_antialias" if has_registers else "bicubic",
    }
    weights = renamed(state_dict, _file_name)
    weights.pop("embeddings.mask_token", None)
    has_halves = any(".mlp.gate_proj." in name for name in weights)
    weights = to_ours(weights, _rules(VitfmViTConfig(**fields), has_halves), theirs.num_hidden_layers)
    return fields, named_for_vit(model_class, weights)


def _refuse(config: VitfmViTConfig, is_base: bool) -> None:
    """Refuse what the format cannot hold, naming the field."""
    required = {
        "use_class_token": (True,),
        "use_distillation_token": (False,),
        "use_pre_norm": (False,),
        "representation_size": (None,),
        "pooling": ("cls",) if is_base else ("cls_mean", "cls", "mean"),
        "final_norm": (None, "tokens") if config.pooling != "mean" else ("tokens",),
    }
    for name in ("image_size", "patch_size"):
        side = as_pair(getattr(config, name))[0]
        required[name] = (side, (side, side))
    if config.use_gated_mlp:
        required["hidden_act"] = ("silu", "swish")
    for name, values in required.items():
        if getattr(config, name) not in values:
            raise ValueError(
                f"transformers' DINOv2 cannot hold `{name}={getattr(config, name)!r}` (only "
                f"{' or '.join(map(repr, values))}). Save the model with `save_pretrained`, in this library's own "
                'format, or export it with `format="timm"`.'
            )


def _mlp_ratio(config: VitfmViTConfig) -> int:
    """The whole number from which transformers computes the width of the MLP."""
    for ratio in range(1, 3 * config.intermediate_size // config.hidden_size + 3):
        if _mlp_width(config.hidden_size, ratio, config.use_gated_mlp) == config.intermediate_size:
            return ratio
    raise ValueError(
        f"transformers' DINOv2 cannot hold `intermediate_size={config.intermediate_size}` for `hidden_size="
        f"{config.hidden_size}` (only a multiple, or with `use_gated_mlp` two thirds of one, rounded up to a multiple "
        'of eight). Export the model with `format="timm"`.'
    )


def write(model) -> tuple[transformers.PreTrainedConfig, dict[str, Tensor]]:
    """Convert one of our ViT models to transformers' configuration and weights (with the names of Hub files).

    A model without LayerScale gets one of ones. A classifier of the class token or of the mean alone gets zeros for
    the other, beside which DINOv2's classifiers see it.

    Raises:
        ValueError: if the configuration has what the format cannot hold.
    """
    config, is_base = model.config, isinstance(model, ViTModel)
    _refuse(config, is_base)
    has_registers = config.num_register_tokens > 0
    fields = {
        **{name: getattr(config, name) for name in _SHARED_FIELDS},
        "image_size": as_pair(config.image_size)[0],
        "patch_size": as_pair(config.patch_size)[0],
        "hidden_act": "gelu" if config.use_gated_mlp else config.hidden_act,
        "mlp_ratio": _mlp_ratio(config),
        "use_swiglu_ffn": config.use_gated_mlp,
        "layerscale_value": 1.0 if config.layer_scale_init_value is None else config.layer_scale_init_value,
        **({"num_register_tokens": config.num_register_tokens} if has_registers else {}),
    }
    kind = "Dinov2WithRegisters" if has_registers else "Dinov2"
    architecture = f"{kind}{'Model' if is_base else 'ForImageClassification'}"
    theirs = getattr(transformers, f"{kind}Config")(**fields, architectures=[architecture])
    weights = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    _fill_up(weights, config)
    weights = to_theirs(weights, _rules(config), config.num_hidden_layers)
    weights["embeddings.mask_token"] = weights["embeddings.cls_token"].new_zeros(1, config.hidden_size)
    if is_base:
        return theirs, weights
    prefix = f"{theirs.model_type}."
    return theirs, {
        name if name.startswith("classifier.") else f"{prefix}{name}": tensor for name, tensor in weights.items()
    }


def _fill_up(weights: dict[str, Tensor], config: VitfmViTConfig) -> None:
    """Add what the format always has, in values that change nothing."""
    if config.layer_scale_init_value is None:
        ones = torch.ones_like(weights["layernorm.weight"])
        for i in range(config.num_hidden_layers):
            for branch in (1, 2):
                weights[f"encoder.layers.{i}.layer_scale{branch}.weight"] = ones.clone()
    head = weights.get("classifier.weight")
    if head is not None and config.pooling != "cls_mean":
        halves = [head, torch.zeros_like(head)]
        weights["classifier.weight"] = torch.cat(halves if config.pooling == "cls" else halves[::-1], dim=1)


def notes(config: dict, shapes) -> list[str]:
    """What is known to surprise about the published files."""
    if config.get("image_size") != 518:
        return []
    return [
        "The positions of these weights are for images of 518 pixels, while their image processor crops to 224. "
        "Transformers resizes the positions in every call; load with `image_size=224` to do it once."
    ]
