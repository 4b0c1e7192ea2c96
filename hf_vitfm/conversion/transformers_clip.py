"""transformers' CLIP format: `model_type` "clip" with both towers, "clip_text_model" and "clip_vision_model" with one.

A tower's file may hold a projection or not; either becomes our tower with or without one. Files of either kind and age
name a tower's weights with its prefix or, alone, without.
"""

import transformers
from torch import Tensor

from ..models.configuration_base import as_pair
from ..models.configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from ..models.modeling_clip import CLIPModel
from .refusals import open_clip_holds, refuse_foreign_tower, refuse_other
from .rules import Rule, to_ours, with_bias
from .towers import Tower, assemble, is_text, our_weights, part, prefixed, projection_of, their_weights


LIBRARY = "transformers' CLIP"
MODEL_TYPE = "clip"
TEXT_MODEL_TYPE = "clip_text_model"
VISION_MODEL_TYPE = "clip_vision_model"
OUR_MODEL_TYPE = VitfmCLIPConfig.model_type

# The end token of OpenAI's vocabulary. Configurations published before transformers 4.31 say 2 in its place, which
# transformers takes for "the highest id"; that goes wrong once tokens have been added behind the end token.
OPENAI_END, LEGACY_END = 49407, 2

# What a refusal sends to open_clip's format.
OPEN_CLIP_HOLDS = (
    "image_size",
    "is_causal",
    "layer_scale_init_value",
    "final_norm",
    "objective",
    "patch_size",
    "pooling",
    "position_embedding_type",
    "projection_bias",
    "use_pre_norm",
)

# Ours -> theirs, where both mean the same.
TOWER_FIELDS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "layer_norm_eps",
    "projection_dim": "projection_dim",
}
_TEXT_FIELDS = {
    **TOWER_FIELDS,
    **{
        name: name
        for name in ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    },
}
_VISION_FIELDS = {**TOWER_FIELDS, **{name: name for name in ("image_size", "patch_size", "num_channels")}}

_LAYER = "encoder.layers.{i}"
LAYER_RULES = [
    *with_bias(f"{_LAYER}.norm1", f"{_LAYER}.layer_norm1"),
    *with_bias(f"{_LAYER}.attention.qkv", *(f"{_LAYER}.self_attn.{part}_proj" for part in "qkv")),
    *with_bias(f"{_LAYER}.attention.proj", f"{_LAYER}.self_attn.out_proj"),
    *with_bias(f"{_LAYER}.norm2", f"{_LAYER}.layer_norm2"),
    *with_bias(f"{_LAYER}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *with_bias(f"{_LAYER}.mlp.fc2", f"{_LAYER}.mlp.fc2"),
]
_TEXT_RULES = [
    Rule("embeddings.token_embedding.weight", ("embeddings.token_embedding.weight",)),
    Rule("embeddings.position_embedding.weight", ("embeddings.position_embedding.weight",)),
    *LAYER_RULES,
    *with_bias("final_layer_norm", "final_layer_norm"),
]
_VISION_RULES = [
    Rule("embeddings.cls_token", ("embeddings.class_embedding",)),
    Rule("embeddings.position_embeddings", ("embeddings.position_embedding.weight",)),
    Rule("embeddings.patch_embeddings.projection.weight", ("embeddings.patch_embedding.weight",)),
    *with_bias("pre_layrnorm", "pre_layrnorm"),
    *LAYER_RULES,
    *with_bias("post_layernorm", "post_layernorm"),
]


_TEXT = Tower(
    "text_model",
    "text_projection",
    VitfmCLIPTextConfig,
    transformers.CLIPTextConfig,
    _TEXT_FIELDS,
    _TEXT_RULES,
)
_VISION = Tower(
    "vision_model",
    "visual_projection",
    VitfmCLIPVisionConfig,
    transformers.CLIPVisionConfig,
    _VISION_FIELDS,
    _VISION_RULES,
    {"embeddings.cls_token": 2, "embeddings.position_embeddings": 1},
)


def _tower_of(model_class: type) -> Tower:
    return _TEXT if is_text(model_class) else _VISION


def _our_fields(tower: Tower, theirs: transformers.PreTrainedConfig) -> dict:
    fields = {ours: getattr(theirs, name) for ours, name in tower.fields.items()}
    if fields.get("eos_token_id") == LEGACY_END:
        fields |= {"eos_token_id": OPENAI_END} if theirs.vocab_size > OPENAI_END else {"pooling": "argmax"}
    return fields


def read(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert both towers."""
    theirs = transformers.CLIPConfig(**saved)  # also reads `text_config_dict`, and fills in defaults
    config = {"projection_dim": theirs.projection_dim, "logit_scale_init_value": theirs.logit_scale_init_value}
    rest = dict(state_dict)
    converted = {}
    for tower in (_TEXT, _VISION):
        tower_config = getattr(theirs, tower.config)
        config[tower.config] = _our_fields(tower, tower_config)
        weights = our_weights(tower, part(rest, tower.prefix), tower_config.num_hidden_layers)
        converted |= prefixed(weights, tower.prefix)
        rest = {name: tensor for name, tensor in rest.items() if not name.startswith(tower.prefix)}
    names = (f"{_VISION.projection}.weight", f"{_TEXT.projection}.weight", "logit_scale")
    converted |= to_ours(rest, [Rule(name, (name,)) for name in names], num_layers=0)
    converted["logit_scale"] = converted["logit_scale"].reshape(())
    return config, converted


def read_tower(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert one tower, of a file of both or of it alone; a projection that the model has and the file not is new."""
    tower = _tower_of(model_class)
    projection = projection_of(tower, state_dict)
    if saved.get("model_type") == MODEL_TYPE:
        whole = transformers.CLIPConfig(**saved)
        theirs, width = getattr(whole, tower.config), whole.projection_dim
        weights = part(state_dict, tower.prefix)
    else:
        theirs = tower.theirs(**saved)
        width = theirs.projection_dim
        weights = {name: tensor for name, tensor in state_dict.items() if name not in projection}
        has_prefix = any(name.startswith(tower.prefix) for name in weights)
        weights = part(weights, tower.prefix if has_prefix else "")
    fields = {**_our_fields(tower, theirs), "projection_dim": width}
    weights = our_weights(tower, weights, theirs.num_hidden_layers)
    return fields, assemble(model_class, tower, weights, projection)


def read_our_tower(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Take a tower from a CLIP model that this library saved.

    Raises:
        ValueError: if its tower is another library's.
    """
    tower = _tower_of(model_class)
    config = getattr(VitfmCLIPConfig.from_dict(saved), tower.config)
    if not isinstance(config, tower.ours):
        raise ValueError(
            f"The tower of this model has a {type(config).__name__}, it is not one of this library's. Load the whole by "
            f"`CLIPModel.from_pretrained` and take its `{tower.name}`."
        )
    weights = assemble(model_class, tower, part(state_dict, tower.prefix), projection_of(tower, state_dict))
    return {name: value for name, value in config.to_dict().items() if name in config.field_names()}, weights


def _refuse(tower: Tower, config) -> None:
    """Refuse what the format cannot hold, naming the field."""
    refuse_foreign_tower(config, tower.ours, LIBRARY, tower.config)
    required = {"layer_scale_init_value": None, "qkv_bias": True, "use_gated_mlp": False}
    if tower is _VISION:
        required |= {"use_projection": True, "pooling": "cls", "use_class_token": True, "patch_bias": False}
        required |= {"use_pre_norm": True, "final_norm": "pooled", "trim_images": False}
        required |= {"num_register_tokens": 0, "position_embedding_type": "learned"}
        for name in ("image_size", "patch_size"):
            side = as_pair(getattr(config, name))[0]
            required[name] = side if isinstance(getattr(config, name), int) else (side, side)
    else:
        required |= {"is_causal": True, "projection_bias": False}
        if config.pooling == "last":
            required["pooling"] = "eos"
        elif config.pooling == "eos" and config.eos_token_id == LEGACY_END:
            required["eos_token_id"] = "any but 2, which means the highest id"
    held = {*OPEN_CLIP_HOLDS} - ({"pooling"} if config.pooling == "map" else set())
    refuse_other(config, required, LIBRARY, open_clip_holds(held), place=tower.config)


def _their_config(tower: Tower, config, **more) -> transformers.PreTrainedConfig:
    _refuse(tower, config)
    fields = {name: getattr(config, ours) for ours, name in tower.fields.items()}
    if tower is _TEXT and config.pooling == "argmax":
        fields["eos_token_id"] = LEGACY_END
    if tower is _VISION:
        fields |= {name: as_pair(fields[name])[0] for name in ("image_size", "patch_size")}
    return tower.theirs(**fields, **more)


def write(model) -> tuple[transformers.PreTrainedConfig, dict[str, Tensor]]:
    """Convert one of our CLIP models to transformers' configuration and weights (with the names of Hub files).

    Raises:
        ValueError: if the configuration has what the format cannot hold.
    """
    config, state_dict, architecture = model.config, model.state_dict(), [type(model).__name__]
    if not isinstance(model, CLIPModel):
        tower = _tower_of(type(model))
        theirs = _their_config(tower, config, architectures=architecture)
        rest = {name: state_dict.pop(name) for name in projection_of(tower, state_dict)}
        weights = {name.removeprefix(tower.prefix): tensor for name, tensor in state_dict.items()}
        weights = their_weights(tower, weights, config.num_hidden_layers)
        return theirs, {**prefixed(weights, tower.prefix), **rest}
    refuse_other(config, {"objective": "softmax"}, LIBRARY, open_clip_holds(OPEN_CLIP_HOLDS))
    towers = {tower.config: _their_config(tower, getattr(config, tower.config)) for tower in (_TEXT, _VISION)}
    theirs = transformers.CLIPConfig(
        **{name: tower.to_dict() for name, tower in towers.items()},
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
        architectures=architecture,
    )
    converted = {name: tensor for name, tensor in state_dict.items() if "_model." not in name}
    for tower in (_TEXT, _VISION):
        num_layers = getattr(config, tower.config).num_hidden_layers
        weights = their_weights(tower, part(state_dict, tower.prefix), num_layers)
        converted |= prefixed(weights, tower.prefix)
    return theirs, converted
