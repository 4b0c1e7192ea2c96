"""The files of MAE's own code (.pth): its masked autoencoder, whole or the encoder alone, and its fine-tuned classifiers.

A file holds `{"model": state dict}` and no configuration. The masked autoencoder has eps 1e-6 and the exact GELU.
"""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from ..models.configuration_mae import VitfmMAEConfig
from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_mae import MAEModel, MAEPreTrainedModel
from ..models.modeling_vit import ViTPreTrainedModel
from .imagenet_processor import resize_and_crop
from .refusals import refuse_oblong, refuse_other
from .rules import Rule, named_for_vit, to_ours, to_theirs, with_bias
from .timm_names import (
    EMBEDDING_RULES,
    HEADS_NOTE,
    block_rules,
    count_layers,
    encoder_fields,
    image_and_prefix,
    is_plain_but_for,
    require_shape,
    shapes_of,
)


NAME = "mae"
FILE = "checkpoint.pth"

# All of the code's models have a decoder of this width and so many heads.
_DECODER_HEADS = {512: 16}
_DECODER_NAMES = ("decoder_", "mask_token")
_BACKBONE = [*EMBEDDING_RULES, *block_rules("encoder.layers.{i}", "blocks.{i}")]
_DECODER_RULES = [
    *with_bias("decoder.embed", "decoder_embed"),
    Rule("decoder.mask_token", ("mask_token",)),
    Rule("decoder.position_embeddings", ("decoder_pos_embed",)),
    *block_rules("decoder.encoder.layers.{i}", "decoder_blocks.{i}"),
    *with_bias("decoder.norm", "decoder_norm"),
    *with_bias("predict", "decoder_pred"),
]


def matches(config: Mapping, keys: Collection[str]) -> bool:
    """Whether names are those of a masked autoencoder, of its encoder, or of a classifier on the mean of its patches.

    A classifier on its class token has the names of a DeiT, which is the same in all but the name.
    """
    return (
        not config
        and is_plain_but_for(r"fc_norm\..*|decoder_.*|mask_token", keys)
        and ("fc_norm.weight" in keys or "decoder_pos_embed" in keys or "head.weight" not in keys)
    )


def _encoder_rules(is_mean: bool, has_head: bool) -> list[Rule]:
    norm = "fc_norm" if is_mean else "norm"
    head = with_bias("classifier", "head") if has_head else []
    return [*_BACKBONE, *with_bias("fc_norm" if is_mean else "layernorm", norm), *head]


def _split(state_dict: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """(encoder and head, decoder)."""
    decoder = {name: tensor for name, tensor in state_dict.items() if name.startswith(_DECODER_NAMES)}
    return {name: tensor for name, tensor in state_dict.items() if name not in decoder}, decoder


def read_encoder(model_class: type, config: Mapping, state_dict: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """Infer a ViT's configuration and convert its weights; a decoder is left out, as MAE's fine-tuning does.

    Args:
        model_class: our class that is to be built.
        config: {}, for these files have none.
        state_dict: the file's tensors.

    Raises:
        ValueError: if the weights are not those of such a model.
    """
    encoder, _ = _split(state_dict)
    shapes = shapes_of(encoder)
    fields, _ = encoder_fields(shapes, [1])
    is_mean, has_head = "fc_norm.weight" in encoder, "head.weight" in encoder
    fields["pooling"] = "mean" if is_mean else "cls"
    if has_head:
        fields["num_labels"] = require_shape(shapes, "head.weight", 2)[0]
    converted = to_ours(encoder, _encoder_rules(is_mean, has_head), fields["num_hidden_layers"])
    return fields, named_for_vit(model_class, converted)


def read(model_class: type, config: Mapping, state_dict: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """Infer a masked autoencoder's configuration and convert its weights; a base model leaves the decoder out.

    Args:
        model_class: our class that is to be built.
        config: {}, for these files have none.
        state_dict: the file's tensors.

    Raises:
        ValueError: if the model needs a decoder and there is none, or the weights are not those of such a model.
    """
    encoder, rest = _split(state_dict)
    if "fc_norm.weight" in encoder or "head.weight" in encoder:
        raise ValueError(
            f"The checkpoint is a classifier that was fine-tuned from a masked autoencoder; {model_class.__name__} cannot "
            "hold it. Load it with `ViTForImageClassification` or `ViTModel`."
        )
    fields, _ = encoder_fields(shapes_of(encoder), [1])
    fields["position_embedding_type"] = "sincos"
    converted = to_ours(encoder, _encoder_rules(is_mean=False, has_head=False), fields["num_hidden_layers"])
    if rest:
        fields |= _decoder_fields(shapes_of(rest))
    if issubclass(model_class, MAEModel):
        return fields, converted
    if not rest:
        raise ValueError(
            f"The checkpoint holds the encoder alone; {model_class.__name__} needs its decoder too. Load it with "
            "`MAEModel` or `ViTModel`, or take one of the files whose names end in `_full.pth`."
        )
    decoder = to_ours(rest, _DECODER_RULES, fields["decoder_num_hidden_layers"])
    return fields, {**{f"vit.{name}": tensor for name, tensor in converted.items()}, **decoder}


def _decoder_fields(shapes: Mapping[str, Sequence[int]]) -> dict:
    width = require_shape(shapes, "decoder_embed.weight", 2)[0]
    return {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": count_layers(shapes, r"decoder_blocks\.(\d+)\."),
        "decoder_num_attention_heads": _DECODER_HEADS.get(width),
        "decoder_intermediate_size": require_shape(shapes, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
    }


READERS = {ViTPreTrainedModel: read_encoder, MAEPreTrainedModel: read}


_OWNER = "MAE's own format"
_ADVICE = 'Save the model with `save_pretrained`, in this library\'s own format, or export it with `format="timm"`.'
_MAE_ADVICE = "Save the model with `save_pretrained`, in this library's own format."
_SAME = {
    "use_gated_mlp": False,
    "num_register_tokens": 0,
    "layer_scale_init_value": None,
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}


def write(model, image_processor=None) -> dict:
    """Convert one of our ViT models to a file of MAE's fine-tuning code; mean pooling is its `--global_pool`.

    Args:
        model: a ViT.
        image_processor: not written; the format has no place for it.

    Raises:
        ValueError: if the configuration has what the code's model cannot compute.
    """
    config, is_mean = model.config, model.config.pooling == "mean"
    required = {
        "pooling": "mean" if is_mean else "cls",
        "final_norm": "pooled" if is_mean else "tokens",
        "use_pre_norm": False,
        "use_class_token": True,
        "use_distillation_token": False,
        "representation_size": None,
    }
    refuse_other(config, {**required, **_SAME}, _OWNER, _ADVICE)
    refuse_oblong(config, _OWNER, _ADVICE)
    state_dict = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    has_head = "classifier.weight" in state_dict
    converted = to_theirs(state_dict, _encoder_rules(is_mean, has_head), config.num_hidden_layers)
    return {FILE: {"model": converted}}


def write_mae(model, image_processor=None) -> dict:
    """Convert one of our masked autoencoders to a file of MAE's code; a base model to one of the encoder alone.

    Args:
        model: a masked autoencoder.
        image_processor: not written; the format has no place for it.

    Raises:
        ValueError: if the configuration has what the code's model cannot compute.
    """
    config = model.config
    required = {"position_embedding_type": "sincos", "masking": "random"}
    refuse_other(config, {**required, **_SAME}, _OWNER, _MAE_ADVICE)
    refuse_oblong(config, _OWNER, _MAE_ADVICE)
    rules = _encoder_rules(is_mean=False, has_head=False)
    state_dict = model.state_dict()
    if isinstance(model, MAEModel):
        return {FILE: {"model": to_theirs(state_dict, rules, config.num_hidden_layers)}}
    if config.intermediate_size * config.decoder_hidden_size != config.decoder_intermediate_size * config.hidden_size:
        raise ValueError(
            f"{_OWNER} cannot hold `decoder_intermediate_size={config.decoder_intermediate_size}`: its decoder has the "
            f"encoder's ratio of widths, {config.intermediate_size} to {config.hidden_size}. {_MAE_ADVICE}"
        )
    encoder = {name.removeprefix("vit."): tensor for name, tensor in state_dict.items() if name.startswith("vit.")}
    decoder = {name: tensor for name, tensor in state_dict.items() if not name.startswith("vit.")}
    converted = to_theirs(encoder, rules, config.num_hidden_layers)
    return {FILE: {"model": {**converted, **to_theirs(decoder, _DECODER_RULES, config.decoder_num_hidden_layers)}}}


WRITERS = {VitfmViTConfig.model_type: write, VitfmMAEConfig.model_type: write_mae}


def image_processor(config: Mapping, shapes: Mapping[str, Sequence[int]], backend: str | None = None):
    """The evaluation transform of MAE's fine-tuning: the short side to 256, the middle 224; larger images uncut."""
    size, _ = image_and_prefix(shapes, [1])
    return resize_and_crop(size, 224 / 256 if size <= 224 else 1.0, backend)


def notes(config: Mapping, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """What the file does not say."""
    found = [HEADS_NOTE]
    if "decoder_pos_embed" in shapes:
        found.append(
            "Whether the decoder predicts normalised pixels is not in the file (`norm_pix_loss`, False unless given): of "
            "the released ones, the best were trained with it, those for visualisation without."
        )
    return found
