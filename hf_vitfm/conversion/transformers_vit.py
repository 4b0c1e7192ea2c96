"""transformers' ViT format (`model_type` "vit"): ViTModel and ViTForImageClassification, old and new weight names."""

import re

import transformers
from torch import Tensor

from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_vit import ViTModel
from .refusals import OWN_FORMAT, refuse_other
from .rules import Rule, named_for_vit, renamed, to_ours, to_theirs, with_bias


MODEL_TYPE = "vit"

# Fields that mean the same in both configurations.
SHARED_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "id2label",
    "label2id",
    "problem_type",
)

_LAYER = "encoder.layer.{i}"
QKV_BIAS = "encoder.layers.{i}.attention.qkv.bias"  # absent where the configuration says so
RULES = [
    Rule("embeddings.cls_token", ("embeddings.cls_token",)),
    Rule("embeddings.position_embeddings", ("embeddings.position_embeddings",)),
    *with_bias("embeddings.patch_embeddings.projection", "embeddings.patch_embeddings.projection"),
    *with_bias("encoder.layers.{i}.norm1", f"{_LAYER}.layernorm_before"),
    Rule(
        "encoder.layers.{i}.attention.qkv.weight",
        tuple(f"{_LAYER}.attention.attention.{part}.weight" for part in ("query", "key", "value")),
    ),
    Rule(QKV_BIAS, tuple(f"{_LAYER}.attention.attention.{part}.bias" for part in ("query", "key", "value"))),
    *with_bias("encoder.layers.{i}.attention.proj", f"{_LAYER}.attention.output.dense"),
    *with_bias("encoder.layers.{i}.norm2", f"{_LAYER}.layernorm_after"),
    *with_bias("encoder.layers.{i}.mlp.fc1", f"{_LAYER}.intermediate.dense"),
    *with_bias("encoder.layers.{i}.mlp.fc2", f"{_LAYER}.output.dense"),
    *with_bias("layernorm", "layernorm"),
    *with_bias("pre_logits", "pooler.dense", optional=True),
    *with_bias("classifier", "classifier", optional=True),
]

# Parameter names of transformers 5 -> the names that files on the Hub have.
_NEW_NAMES = (
    (r"^layers\.(\d+)\.attention\.([qkv])_proj\.", r"encoder.layer.\1.attention.attention.\2."),
    (r"^layers\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attention\.attention\.q\.", ".attention.attention.query."),
    (r"\.attention\.attention\.k\.", ".attention.attention.key."),
    (r"\.attention\.attention\.v\.", ".attention.attention.value."),
)


def file_name(name: str) -> str:
    """The name that files on the Hub have for a parameter of transformers' encoder."""
    name = name.removeprefix("vit.")
    for pattern, replacement in _NEW_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def complete(config_class: type, saved: dict) -> transformers.PreTrainedConfig:
    """Read a config.json as transformers does, with the defaults for what it leaves out or has as null.

    Files of earlier years have fewer fields, nulls where a field now must have a value, and fields that are no more.
    """
    return config_class(**{name: value for name, value in saved.items() if value is not None})


def take_pooler(theirs, state_dict: dict[str, Tensor], is_base: bool) -> tuple[dict[str, Tensor], dict]:
    """The weights that the model has a place for, and the fields of our configuration for a pooler among them.

    Raises:
        ValueError: if the pooler has another activation than tanh.
    """
    if not is_base:
        return {name: tensor for name, tensor in state_dict.items() if not name.startswith("pooler.")}, {}
    if "pooler.dense.weight" not in state_dict:
        return state_dict, {}
    if theirs.pooler_act != "tanh":
        raise ValueError(f"`pooler_act` must be 'tanh' to become a pre-logits layer; got {theirs.pooler_act!r}.")
    return state_dict, {"representation_size": theirs.pooler_output_size}


def read(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a configuration and its weights to ours.

    The pooler (dense, tanh) becomes the pre-logits layer of a base model; a classifier leaves it out, as
    transformers' does.
    """
    theirs = complete(transformers.ViTConfig, saved)
    config = {name: getattr(theirs, name) for name in SHARED_FIELDS}
    state_dict = renamed(state_dict, file_name)
    is_base = issubclass(model_class, ViTModel)
    state_dict, representation = take_pooler(theirs, state_dict, is_base)
    rules = [rule for rule in RULES if theirs.qkv_bias or rule.ours != QKV_BIAS]
    converted = to_ours(state_dict, rules, theirs.num_hidden_layers)
    return {**config, **representation}, named_for_vit(model_class, converted)


def _refuse(config: VitfmViTConfig, is_base: bool) -> None:
    """Refuse what the format cannot hold, naming the field."""
    required = {
        "pooling": "cls",
        "use_class_token": True,
        "num_register_tokens": 0,
        "use_distillation_token": False,
        "layer_scale_init_value": None,
        "use_gated_mlp": False,
        "use_pre_norm": False,
        "final_norm": "tokens",
    }
    if not is_base:
        required["representation_size"] = None
    own = OWN_FORMAT.removesuffix(".")
    advice = {name: f'{own}, or export it with `format="timm"`.' for name in required}
    for name in ("num_register_tokens", "layer_scale_init_value"):
        advice[name] = f'{own}, or export it with `format="dinov2"`.'
    refuse_other(config, required, "transformers' ViT", advice)


def write(model) -> tuple[transformers.PreTrainedConfig, dict[str, Tensor]]:
    """Convert one of our ViT models to transformers' configuration and weights (with the names of Hub files).

    Raises:
        ValueError: if the configuration has what the format cannot hold.
    """
    config, is_base = model.config, isinstance(model, ViTModel)
    _refuse(config, is_base)
    fields = {name: getattr(config, name) for name in SHARED_FIELDS}
    if config.representation_size:
        fields["pooler_output_size"] = config.representation_size
    theirs = transformers.ViTConfig(**fields, architectures=[type(model).__name__])
    state_dict = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    converted = to_theirs(state_dict, RULES, config.num_hidden_layers)
    return theirs, named_for_vit(type(model), converted)


def notes(config: dict, shapes: dict) -> list[str]:
    """Where the file differs from how the released weights were trained."""
    if config.get("layer_norm_eps", 1e-12) != 1e-12 or config.get("hidden_act", "gelu") != "gelu":
        return []
    return [
        "`layer_norm_eps` is 1e-12 and `hidden_act` 'gelu' (its exact form), the defaults of transformers' class; the JAX "
        "code that trained the released google/vit-* weights has 1e-6 and the tanh form. The file's own values are used; "
        "`from_pretrained(..., layer_norm_eps=1e-6, hidden_act='gelu_pytorch_tanh')` follows that code."
    ]
