"""timm's Vision Transformers: files of its hub layout, of transformers' timm wrapper, and state dicts alone.

Read are the `vit_*` (augreg, orig, MAE, CLIP, DINOv2, registers), `deit*`, `eva_large_*` and `flexivit_*` models, which
differ in options only. `timm_config` has the configurations, `timm_processor` the preprocessing.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from ..models.configuration_base import as_pair
from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_vit import ViTModel, ViTPreTrainedModel
from .rules import Rule, named_for_vit, renamed, to_ours, to_theirs, with_bias
from .timm_config import Shapes, is_vit, our_fields, parse, their_arguments
from .timm_processor import image_processor, pretrained_fields


__all__ = ["NAME", "READERS", "WRITERS", "image_processor", "matches", "notes"]

NAME = "timm"
_WRAPPER_PREFIX = "timm_model."  # of transformers' timm wrapper

# Names of DINOv2's own files, and weights that no output depends on: timm leaves them out too.
_ORIGINAL_NAMES = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2.", "register_tokens": "reg_token"}
_UNUSED = ("pre_logits.", "mask_token")

_LAYER = "blocks.{i}"
_OUR_LAYER = "encoder.layers.{i}"
_LAYER_RULES = [
    *with_bias(f"{_OUR_LAYER}.norm1", f"{_LAYER}.norm1"),
    Rule(f"{_OUR_LAYER}.attention.qkv.weight", (f"{_LAYER}.attn.qkv.weight",)),
    *with_bias(f"{_OUR_LAYER}.attention.proj", f"{_LAYER}.attn.proj"),
    *with_bias(f"{_OUR_LAYER}.norm2", f"{_LAYER}.norm2"),
    *with_bias(f"{_OUR_LAYER}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *with_bias(f"{_OUR_LAYER}.mlp.fc2", f"{_LAYER}.mlp.fc2"),
]


def _rules(config: VitfmViTConfig) -> list[Rule]:
    """The weights that a model of this configuration has, except for its heads, which may be absent."""
    patches = "embeddings.patch_embeddings.projection"
    rules = [
        Rule("embeddings.position_embeddings", ("pos_embed",)),
        Rule(f"{patches}.weight", ("patch_embed.proj.weight",)),
        *_LAYER_RULES,
        *with_bias("classifier", "head", optional=True),
        *with_bias("distillation_classifier", "head_dist", optional=True),
    ]
    if config.patch_bias:
        rules.append(Rule(f"{patches}.bias", ("patch_embed.proj.bias",)))
    if config.use_class_token:
        rules.append(Rule("embeddings.cls_token", ("cls_token",)))
    if config.use_distillation_token:
        rules.append(Rule("embeddings.distillation_token", ("dist_token",)))
    if config.num_register_tokens:
        rules.append(Rule("embeddings.register_tokens", ("reg_token",)))
    if config.use_pre_norm:
        rules += with_bias("pre_layernorm", "norm_pre")
    if config.norm_place == "tokens":
        rules += with_bias("layernorm", "norm")
    if config.norm_place == "pooled":
        rules += with_bias("fc_norm", "fc_norm")
    if config.qkv_bias:
        rules.append(Rule(f"{_OUR_LAYER}.attention.qkv.bias", (f"{_LAYER}.attn.qkv.bias",)))
    if config.layer_scale_init_value is not None:
        rules += [Rule(f"{_OUR_LAYER}.layer_scale{i}.weight", (f"{_LAYER}.ls{i}.gamma",)) for i in (1, 2)]
    return rules


def _timm_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of timm's models, without what they leave out."""
    weights = renamed(state_dict, _timm_name)
    return {name: tensor for name, tensor in weights.items() if not name.startswith(_UNUSED)}


def _timm_name(name: str) -> str:
    name = name.removeprefix(_WRAPPER_PREFIX)
    for original, own in _ORIGINAL_NAMES.items():
        name = name.replace(original, own)
    return name


def matches(config: dict, keys: Collection[str]) -> bool:
    """Whether a file is one of timm's Vision Transformers.

    Args:
        config: its config.json, {} for weights alone.
        keys: the names of its weights.
    """
    if config:
        return (
            is_vit(str(config.get("architecture", ""))) and config.get("model_type", "timm_wrapper") == "timm_wrapper"
        )
    names = {name.removeprefix(_WRAPPER_PREFIX) for name in keys}
    return {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"} <= names and not any(
        name.startswith("decoder_") for name in names
    )


def _split_positions(weights: dict[str, Tensor], config: VitfmViTConfig) -> None:
    """Bring positions into our layout: a row for class and distillation token each, none for registers.

    Positions that timm gives to registers are added to them, which is what they come to anyway.
    """
    name = "embeddings.position_embeddings"
    positions = weights[name]
    (height, width), (patch_height, patch_width) = as_pair(config.image_size), as_pair(config.patch_size)
    num_patches = (height // patch_height) * (width // patch_width)
    num_ours = config.use_class_token + config.use_distillation_token
    num_theirs = positions.shape[1] - num_patches
    prefix, patches = positions[:, :num_theirs], positions[:, num_theirs:]
    if num_theirs == 0:
        prefix = positions.new_zeros(1, num_ours, positions.shape[2])
    elif num_theirs > num_ours:
        registers = "embeddings.register_tokens"
        weights[registers] = weights[registers] + prefix[:, num_ours:]
    weights[name] = torch.cat([prefix[:, :num_ours], patches], dim=1)


def read(model_class: type, config: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a configuration, {} for weights alone, and its weights to ours; a base model leaves the heads out.

    Raises:
        ValueError: for what our models do not compute, or weights that do not match their configuration.
    """
    state_dict = _timm_names(state_dict)
    fields = our_fields(config, {name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    # No shape depends on the number of heads, which weights alone may not tell.
    ours = VitfmViTConfig(**{**fields, "num_attention_heads": fields["num_attention_heads"] or 1})
    weights = to_ours(state_dict, _rules(ours), ours.num_hidden_layers)
    _split_positions(weights, ours)
    return fields, named_for_vit(model_class, weights)


def write(model, image_processor=None) -> dict[str, dict]:
    """One of our ViT models as timm's hub layout, which `timm.create_model("local-dir:...")` opens.

    Args:
        model: the model.
        image_processor: what to write as its preprocessing; None leaves that to timm's defaults.

    Returns:
        File names -> what they hold: a dictionary for JSON, or weights.

    Raises:
        ValueError: for what timm cannot hold, naming the field.
    """
    config = model.config
    architecture, args = their_arguments(config)
    weights = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    num_labels = 0 if isinstance(model, ViTModel) else config.num_labels
    preprocessing = {} if image_processor is None else pretrained_fields(image_processor, config)
    pretrained = {
        "custom_load": False,
        "input_size": [config.num_channels, *as_pair(config.image_size)],
        "fixed_input_size": True,
        **preprocessing,
        "num_classes": num_labels,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if config.use_distillation_token else "head",
    }
    saved = {
        "architecture": architecture,
        "num_classes": num_labels,
        "num_features": config.hidden_size,
        "global_pool": args["global_pool"],
        "model_args": args,
        "pretrained_cfg": pretrained,
    }
    names = [config.id2label[i] for i in range(num_labels)]
    if names != [f"LABEL_{i}" for i in range(num_labels)]:
        saved["label_names"] = names
    if config.num_register_tokens:
        _fold_class_position(weights)
    return {"config.json": saved, "model.safetensors": to_theirs(weights, _rules(config), config.num_hidden_layers)}


def _fold_class_position(weights: dict[str, Tensor]) -> None:
    """Add the class token's position to it: timm has either positions for registers too, or for patches only."""
    positions, token = "embeddings.position_embeddings", "embeddings.cls_token"
    if token in weights:
        weights[token] = weights[token] + weights[positions][:, :1]
        weights[positions] = weights[positions][:, 1:]


def notes(config: dict, shapes: Shapes) -> list[str]:
    """What is known to differ between a file's configuration and how its weights were trained."""
    architecture, _, pretrained = parse(config)
    notes = []
    is_quick = "quickgelu" in str(pretrained.get("notes")).lower()
    if is_quick and "quickgelu" not in architecture:
        notes.append(
            "These weights were trained with QuickGELU; timm computes GELU under this name. Load with "
            '`hidden_act="quick_gelu"` for the original results.'
        )
    if str(pretrained.get("tag")).startswith(("augreg_", "orig_", "sam_")):
        notes.append(
            "These weights were trained in JAX with the tanh form of GELU; timm computes the erf form. Load with "
            '`hidden_act="gelu_pytorch_tanh"` for the original results.'
        )
    return notes


READERS = {ViTPreTrainedModel: read}
WRITERS = {VitfmViTConfig.model_type: write}
