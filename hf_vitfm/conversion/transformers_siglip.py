"""transformers' SigLIP format: `model_type` "siglip" with both towers, "siglip_text_model", "siglip_vision_model" with one.

SigLIP 2 at a fixed resolution has this `model_type` too. The text tower's head, which transformers counts among the tower,
is our text projection; the vision tower has no projection. Files of either kind and age name a tower's weights with its
prefix or, alone, without.
"""

import transformers
from torch import Tensor

from ..models.configuration_base import as_pair
from ..models.configuration_clip import VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from ..models.modeling_clip import CLIPModel
from .refusals import refuse_foreign_tower, refuse_other
from .rules import Rule, to_ours, with_bias
from .towers import Tower, assemble, image_fields, is_text, our_weights, part, prefixed, projection_of, their_weights
from .transformers_clip import LAYER_RULES, TOWER_FIELDS


LIBRARY = "transformers' SigLIP"
MODEL_TYPE = "siglip"
TEXT_MODEL_TYPE = "siglip_text_model"
VISION_MODEL_TYPE = "siglip_vision_model"

# What SigLIP's towers and whole have that no field of theirs says.
_TEXT_NATURE = {"is_causal": False, "pooling": "last", "projection_bias": True}
_VISION_NATURE = {
    "use_projection": False,
    "pooling": "map",
    "use_class_token": False,
    "patch_bias": True,
    "use_pre_norm": False,
    "final_norm": "tokens",
}

_FIELDS = {ours: theirs for ours, theirs in TOWER_FIELDS.items() if ours != "projection_dim"}
_TEXT_NAMES = ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
_TEXT = Tower(
    "text_model",
    "text_projection",
    VitfmCLIPTextConfig,
    transformers.SiglipTextConfig,
    {**_FIELDS, "projection_dim": "projection_size", **{name: name for name in _TEXT_NAMES}},
    [
        Rule("embeddings.token_embedding.weight", ("embeddings.token_embedding.weight",)),
        Rule("embeddings.position_embedding.weight", ("embeddings.position_embedding.weight",)),
        *LAYER_RULES,
        *with_bias("final_layer_norm", "final_layer_norm"),
    ],
)
_VISION = Tower(
    "vision_model",
    "visual_projection",
    VitfmCLIPVisionConfig,
    transformers.SiglipVisionConfig,
    {**_FIELDS, **{name: name for name in ("image_size", "patch_size", "num_channels")}},
    [
        Rule("embeddings.position_embeddings", ("embeddings.position_embedding.weight",)),
        *with_bias("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
        *LAYER_RULES,
        *with_bias("post_layernorm", "post_layernorm"),
        Rule("attention_pooling.query", ("head.probe",)),
        Rule("attention_pooling.attention.qkv.weight", ("head.attention.in_proj_weight",)),
        Rule("attention_pooling.attention.qkv.bias", ("head.attention.in_proj_bias",)),
        *with_bias("attention_pooling.attention.proj", "head.attention.out_proj"),
        *with_bias("attention_pooling.norm", "head.layernorm"),
        *with_bias("attention_pooling.mlp.fc1", "head.mlp.fc1"),
        *with_bias("attention_pooling.mlp.fc2", "head.mlp.fc2"),
    ],
    {"embeddings.position_embeddings": 1},
)
_HEAD, _PROJECTION = "head.", "text_projection."


def _tower_of(model_class: type) -> Tower:
    return _TEXT if is_text(model_class) else _VISION


def _our_fields(tower: Tower, theirs: transformers.PreTrainedConfig) -> dict:
    if tower is _VISION and not theirs.vision_use_head:
        raise ValueError(
            "transformers' SigLIP without its head (`vision_use_head=False`) pools nothing, which this library's CLIP "
            "cannot do. Load it with transformers' `SiglipVisionModel`."
        )
    fields = {ours: getattr(theirs, name) for ours, name in tower.fields.items()}
    if tower is _VISION:
        fields |= image_fields(theirs.image_size, theirs.patch_size)
    if not isinstance(fields.get("eos_token_id", 0), int):
        del fields["eos_token_id"]  # none or several; the pooling does not look at it
    return {**fields, **(_TEXT_NATURE if tower is _TEXT else _VISION_NATURE)}


def _our_tower(tower: Tower, weights: dict[str, Tensor], num_layers: int) -> tuple[dict, dict]:
    """The weights of a tower, and of its projection under their names in a whole."""
    if tower is _VISION:
        return our_weights(tower, weights, num_layers), {}
    head = prefixed(part(weights, _HEAD), _PROJECTION)
    body = {name: tensor for name, tensor in weights.items() if not name.startswith(_HEAD)}
    return our_weights(tower, body, num_layers), to_ours(head, with_bias(tower.projection, tower.projection), 0)


def read(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert both towers."""
    theirs = transformers.SiglipConfig(**saved)  # fills in the defaults that a config.json leaves out
    config = {"projection_dim": theirs.text_config.projection_size, "objective": "sigmoid"}
    rest, converted = dict(state_dict), {}
    for tower in (_TEXT, _VISION):
        tower_config = getattr(theirs, tower.config)
        config[tower.config] = _our_fields(tower, tower_config)
        weights, projection = _our_tower(tower, part(rest, tower.prefix), tower_config.num_hidden_layers)
        converted |= {**prefixed(weights, tower.prefix), **projection}
        rest = {name: tensor for name, tensor in rest.items() if not name.startswith(tower.prefix)}
    factors = to_ours(rest, [Rule(name, (name,)) for name in ("logit_scale", "logit_bias")], num_layers=0)
    return config, {**converted, **{name: tensor.reshape(()) for name, tensor in factors.items()}}


def read_tower(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert one tower, of a file of both or of it alone; a text tower without projection leaves the head out."""
    tower = _tower_of(model_class)
    if saved.get("model_type") == MODEL_TYPE:
        theirs, prefix = getattr(transformers.SiglipConfig(**saved), tower.config), tower.prefix
    else:
        theirs = tower.theirs(**saved)
        prefix = tower.prefix if any(name.startswith(tower.prefix) for name in state_dict) else ""
    fields = _our_fields(tower, theirs)
    weights, projection = _our_tower(tower, part(state_dict, prefix), theirs.num_hidden_layers)
    return fields, assemble(model_class, tower, weights, projection)


def _their_config(tower: Tower, config, **more) -> transformers.PreTrainedConfig:
    """Their configuration; refuses what the format cannot hold, naming the field."""
    refuse_foreign_tower(config, tower.ours, LIBRARY, tower.config)
    required = {"layer_scale_init_value": None, "qkv_bias": True, "use_gated_mlp": False}
    if tower is _VISION:
        required |= {**_VISION_NATURE, "num_register_tokens": 0, "position_embedding_type": "learned"}
        for name in ("image_size", "patch_size"):
            side = as_pair(getattr(config, name))[0]
            required[name] = side if isinstance(getattr(config, name), int) else (side, side)
    else:
        required |= _TEXT_NATURE
    refuse_other(config, required, LIBRARY, place=tower.config)
    fields = {name: getattr(config, ours) for ours, name in tower.fields.items()}
    if tower is _VISION:
        fields |= {name: as_pair(fields[name])[0] for name in ("image_size", "patch_size")}
    return tower.theirs(**fields, **more)


def _their_tower(tower: Tower, weights: dict[str, Tensor], projection: dict[str, Tensor], num_layers: int) -> dict:
    """The weights of a tower in a whole."""
    head = {name.replace(_PROJECTION, _HEAD): tensor for name, tensor in projection.items()}
    return prefixed({**their_weights(tower, weights, num_layers), **head}, tower.prefix)


def write(model) -> tuple[transformers.PreTrainedConfig, dict[str, Tensor]]:
    """Convert one of our CLIP models to transformers' configuration and weights (with the names of Hub files).

    Raises:
        ValueError: if the configuration has what the format cannot hold.
    """
    config, state_dict = model.config, model.state_dict()
    if not isinstance(model, CLIPModel):
        tower = _tower_of(type(model))
        theirs = _their_config(tower, config, architectures=[f"Siglip{tower.name.title().replace('_', '')}"])
        projection = projection_of(tower, state_dict)
        if tower is _TEXT and not projection:
            raise ValueError(
                "transformers' SigLIP cannot hold a text tower without its head. Export a "
                "`CLIPTextModelWithProjection`, or save the model with `save_pretrained`, in this library's own format."
            )
        weights = {name: tensor for name, tensor in state_dict.items() if name not in projection}
        weights = {name.removeprefix(tower.prefix): tensor for name, tensor in weights.items()}
        return theirs, _their_tower(tower, weights, projection, config.num_hidden_layers)
    refuse_other(config, {"objective": "sigmoid"}, LIBRARY)
    towers = {tower.config: _their_config(tower, getattr(config, tower.config)) for tower in (_TEXT, _VISION)}
    theirs = transformers.SiglipConfig(
        **{name: tower.to_dict() for name, tower in towers.items()}, architectures=["SiglipModel"]
    )
    converted = {name: state_dict[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    for tower in (_TEXT, _VISION):
        num_layers, weights = getattr(config, tower.config).num_hidden_layers, part(state_dict, tower.prefix)
        converted |= _their_tower(tower, weights, projection_of(tower, state_dict), num_layers)
    return theirs, converted
