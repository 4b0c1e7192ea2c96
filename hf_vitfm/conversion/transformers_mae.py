"""transformers' ViTMAE format (`model_type` "vit_mae"), and an MAE's encoder as a ViT."""

import re

import transformers
from torch import Tensor

from ..models.configuration_mae import VitfmMAEConfig
from ..models.modeling_mae import MAEModel
from ..models.modeling_vit import ViTModel
from . import transformers_vit
from .rules import Rule, renamed, to_ours, to_theirs, with_bias


MODEL_TYPE = "vit_mae"
OUR_MODEL_TYPE = VitfmMAEConfig.model_type

# Fields that mean the same in both configurations, beside those of the encoder.
_OWN_FIELDS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
)
_HEAD_FIELDS = ("id2label", "label2id", "problem_type")
_ENCODER_FIELDS = tuple(name for name in transformers_vit.SHARED_FIELDS if name not in _HEAD_FIELDS)
_ENCODER_RULES = [rule for rule in transformers_vit.RULES if not rule.ours.startswith(("pre_logits.", "classifier."))]

_LAYER = "decoder.decoder_layers.{i}"
_DECODER_RULES = [
    *with_bias("decoder.embed", "decoder.decoder_embed"),
    Rule("decoder.mask_token", ("decoder.mask_token",)),
    Rule("decoder.position_embeddings", ("decoder.decoder_pos_embed",)),
    *[
        Rule(
            rule.ours.replace("encoder.", "decoder.encoder.", 1),
            tuple(name.replace("encoder.layer.{i}", _LAYER) for name in rule.theirs),
        )
        for rule in _ENCODER_RULES
        if rule.ours.startswith("encoder.layers.")
    ],
    *with_bias("decoder.norm", "decoder.decoder_norm"),
    *with_bias("predict", "decoder.decoder_pred"),
]


def _file_name(name: str) -> str:
    """The name that files on the Hub have, from that of transformers 5 or of its files."""
    if not name.startswith("decoder."):
        return transformers_vit.file_name(name)
    layer = re.match(r"decoder\.decoder_(?:layers|encoder\.layer)\.(\d+)\.(.*)", name)
    if not layer:
        return name
    inner = transformers_vit.file_name(f"layers.{layer[1]}.{layer[2]}")
    return inner.replace("encoder.layer.", "decoder.decoder_layers.", 1)


def _rules(rules: list[Rule], qkv_bias: bool) -> list[Rule]:
    return [rule for rule in rules if qkv_bias or not rule.ours.endswith("attention.qkv.bias")]


def _convert(saved: dict, state_dict: dict[str, Tensor]):
    """(transformers' configuration, encoder's weights under our names, the rest under the file's names)."""
    theirs = transformers_vit.complete(transformers.ViTMAEConfig, saved)
    state_dict = renamed(state_dict, _file_name)
    rest = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith("decoder.")}
    rules = _rules(_ENCODER_RULES, theirs.qkv_bias)
    return theirs, to_ours(state_dict, rules, theirs.num_hidden_layers), rest


def read(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a configuration and its weights to ours; a base model leaves the decoder out.

    Raises:
        ValueError: if the model needs a decoder and there is none, or the weights do not match their configuration.
    """
    theirs, encoder, rest = _convert(saved, state_dict)
    config = {name: getattr(theirs, name) for name in (*_ENCODER_FIELDS, *_OWN_FIELDS)}
    config["position_embedding_type"] = "sincos"
    if issubclass(model_class, MAEModel):
        return config, encoder
    if not rest:
        raise ValueError(
            f"The checkpoint holds the encoder alone; {model_class.__name__} needs its decoder too. Load it with "
            "`MAEModel` or `ViTModel`, or name a checkpoint with a decoder."
        )
    rules = _rules(_DECODER_RULES, theirs.qkv_bias)
    decoder = to_ours(rest, rules, theirs.decoder_num_hidden_layers)
    return config, {**{f"vit.{name}": tensor for name, tensor in encoder.items()}, **decoder}


def read_encoder(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert the encoder to a ViT's weights, as MAE's fine-tuning does it: the positions are learned from now on."""
    theirs, encoder, _ = _convert(saved, state_dict)
    config = {name: getattr(theirs, name) for name in _ENCODER_FIELDS}
    prefix = "" if issubclass(model_class, ViTModel) else "vit."
    return config, {f"{prefix}{name}": tensor for name, tensor in encoder.items()}


def read_our_encoder(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """The same from an MAE that this library saved."""
    theirs = VitfmMAEConfig.from_dict(saved)
    known = set(model_class.config_class.field_names()) - {*_HEAD_FIELDS, "position_embedding_type", "num_labels"}
    config = {name: value for name, value in theirs.to_dict().items() if name in known}
    is_whole = any(name.startswith("vit.") for name in state_dict)  # an encoder alone has no prefix
    encoder = {
        name.removeprefix("vit."): tensor
        for name, tensor in state_dict.items()
        if name.startswith("vit.") or not is_whole
    }
    prefix = "" if issubclass(model_class, ViTModel) else "vit."
    return config, {f"{prefix}{name}": tensor for name, tensor in encoder.items()}


def write(model) -> tuple[transformers.PreTrainedConfig, dict[str, Tensor]]:
    """Convert one of our MAE models to transformers' configuration and weights (with the names of Hub files).

    Raises:
        ValueError: if the configuration has what the format cannot hold.
    """
    config = model.config
    required = {"num_register_tokens": 0, "layer_scale_init_value": None, "position_embedding_type": "sincos"}
    for name, value in {**required, "use_gated_mlp": False, "masking": "random"}.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"transformers' ViTMAE cannot hold `{name}={getattr(config, name)!r}` (only {value!r}). "
                "Save the model with `save_pretrained`, in this library's own format."
            )
    fields = {name: getattr(config, name) for name in (*_ENCODER_FIELDS, *_OWN_FIELDS)}
    architecture = "ViTMAEModel" if isinstance(model, MAEModel) else "ViTMAEForPreTraining"
    theirs = transformers.ViTMAEConfig(**fields, architectures=[architecture])
    state_dict = model.state_dict()
    if isinstance(model, MAEModel):
        return theirs, to_theirs(state_dict, _ENCODER_RULES, config.num_hidden_layers)
    decoder = {name: state_dict.pop(name) for name in list(state_dict) if not name.startswith("vit.")}
    encoder = {name.removeprefix("vit."): tensor for name, tensor in state_dict.items()}
    converted = to_theirs(encoder, _ENCODER_RULES, config.num_hidden_layers)
    return theirs, {
        **{f"vit.{name}": tensor for name, tensor in converted.items()},
        **to_theirs(decoder, _DECODER_RULES, config.decoder_num_hidden_layers),
    }


def notes(config: dict, shapes: dict) -> list[str]:
    """Where the file differs from how the released weights were trained."""
    found = []
    if config.get("layer_norm_eps", 1e-12) == 1e-12:
        found.append(
            "`layer_norm_eps` is 1e-12, the default of transformers' class; the code that trained the released facebook/"
            "vit-mae-* weights has 1e-6. The file's own value is used; `from_pretrained(..., layer_norm_eps=1e-6)` follows "
            "that code."
        )
    if not config.get("norm_pix_loss", False):
        found.append(
            "`norm_pix_loss` is False, the default of transformers' class; the released facebook/vit-mae-* weights were "
            "trained with True, without which their loss is of another size."
        )
    return found
