"""open_clip's format: open_clip_config.json beside open_clip_model.safetensors (or .bin), or its state dict alone.

Read are models of open_clip's own vision transformer and text transformer, as its classes `CLIP` and `CustomTextCLIP`
(`text.` before the names of the text tower) save them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

from ..models.configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from ..models.modeling_clip import CLIPModel
from ..models.modeling_clip_towers import (
    CLIPTextModel,
    CLIPTextPreTrainedModel,
    CLIPVisionModel,
    CLIPVisionPreTrainedModel,
)
from . import open_clip_images
from .open_clip_config import HEAD_WIDTHS, infer_model_cfg, our_fields, their_model_cfg
from .rules import Rule, renamed, to_ours, to_theirs, with_bias
from .towers import check_pixels, is_text


logger = logging.get_logger(__name__)

NAME = "open_clip"
CONFIG_FILE, WEIGHT_FILE = "open_clip_config.json", "open_clip_model.safetensors"
OPENAI_TOKENIZER = "openai/clip-vit-large-patch14"  # where open_clip itself takes its default tokenizer's files from
UNKNOWN_ACTIVATION = (
    "Weights alone do not tell their activation: GELU is taken, as in open_clip's models without -quickgelu in their "
    'name. If they are of OpenAI\'s models, or go back to those, pass `source_format="openai"`.'
)
# Numbers that OpenAI's archives keep among the weights, and that say nothing which the shapes do not.
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
_TEXT_MODULES = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")
# Our weights that have axes of length 1 in front which theirs lack, and those that are multiplied from the other side.
_LEADING = {"vision_model.embeddings.cls_token": 2, "vision_model.embeddings.position_embeddings": 1}
_PROJECTIONS = ("text_projection.weight", "visual_projection.weight")


def matches(config: Mapping, keys: Mapping | set) -> bool:
    """Whether a parsed configuration, or the names of weights without one, are open_clip's."""
    if config:
        return "model_cfg" in config
    is_named = "logit_scale" in keys and any(name.startswith("visual.") for name in keys)
    return is_named and not any(name in keys for name in OPENAI_NUMBERS)


def _layer_rules(ours: str, theirs: str, config) -> list[Rule]:
    ours, theirs = f"{ours}encoder.layers.{{i}}", f"{theirs}transformer.resblocks.{{i}}"
    rules = [
        *with_bias(f"{ours}.norm1", f"{theirs}.ln_1"),
        Rule(f"{ours}.attention.qkv.weight", (f"{theirs}.attn.in_proj_weight",)),
        Rule(f"{ours}.attention.qkv.bias", (f"{theirs}.attn.in_proj_bias",)),
        *with_bias(f"{ours}.attention.proj", f"{theirs}.attn.out_proj"),
        *with_bias(f"{ours}.norm2", f"{theirs}.ln_2"),
        *with_bias(f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc"),
        *with_bias(f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj"),
    ]
    if config.layer_scale_init_value is not None:
        rules += [Rule(f"{ours}.layer_scale{i}.weight", (f"{theirs}.ls_{i}.gamma",)) for i in (1, 2)]
    return rules


def _text_rules(config) -> list[Rule]:
    projection = with_bias("text_projection", "text.text_projection")
    if not config.projection_bias:
        projection = [Rule("text_projection.weight", ("text.text_projection",))]
    embeddings = "text_model.embeddings"
    return [
        Rule(f"{embeddings}.token_embedding.weight", ("text.token_embedding.weight",)),
        Rule(f"{embeddings}.position_embedding.weight", ("text.positional_embedding",)),
        *_layer_rules("text_model.", "text.", config),
        *with_bias("text_model.final_layer_norm", "text.ln_final"),
        *projection,
    ]


def _vision_rules(config) -> list[Rule]:
    embeddings = "vision_model.embeddings"
    return [
        Rule(f"{embeddings}.cls_token", ("visual.class_embedding",)),
        Rule(f"{embeddings}.position_embeddings", ("visual.positional_embedding",)),
        Rule(f"{embeddings}.patch_embeddings.projection.weight", ("visual.conv1.weight",)),
        *(with_bias("vision_model.pre_layrnorm", "visual.ln_pre") if config.use_pre_norm else []),
        *_layer_rules("vision_model.", "visual.", config),
        *with_bias("vision_model.post_layernorm", "visual.ln_post"),
        Rule("visual_projection.weight", ("visual.proj",)),
    ]


@dataclass(frozen=True)
class _Side:
    """A tower and its projection.

    Attributes:
        theirs: what their names begin with.
        ours: what our names begin with, of the tower and of the projection.
        config: the tower's place in our configuration.
        rules: makes the table of names for a tower's configuration.
    """

    theirs: str
    ours: tuple[str, str]
    config: str
    rules: Callable[[VitfmCLIPTextConfig | VitfmCLIPVisionConfig], list[Rule]]


_TEXT = _Side("text.", ("text_model.", "text_projection."), "text_config", _text_rules)
_VISION = _Side("visual.", ("vision_model.", "visual_projection."), "vision_config", _vision_rules)


def _factor_rules(config: VitfmCLIPConfig) -> list[Rule]:
    names = ("logit_scale", "logit_bias") if config.objective == "sigmoid" else ("logit_scale",)
    return [Rule(name, (name,)) for name in names]


def _turned(name: str, tensor: Tensor, config: VitfmCLIPConfig) -> Tensor:
    """A projection's matrix the other way round, which is bare, (in, out), unless there is a bias; others as they are."""
    is_dense = name.startswith("text") and config.text_config.projection_bias
    return tensor.t() if name in _PROJECTIONS and not is_dense else tensor


def with_text_prefix(weights: Mapping) -> dict:
    """The weights, those of the text tower with their prefix in `CustomTextCLIP`, which `CLIP` leaves out.

    Raises:
        ValueError: if one is there with the prefix and without.
    """
    return renamed(weights, lambda name: f"{_TEXT.theirs}{name}" if name.startswith(_TEXT_MODULES) else name)


def convert(model_class: type, model_cfg: Mapping, weights: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert both towers, or the one that a class of ours has; halves become float32, as open_clip loads them.

    Args:
        model_class: our class.
        model_cfg: open_clip's configuration.
        weights: its weights, with prefix for both towers.
    """
    fields = our_fields(model_cfg)
    config = VitfmCLIPConfig.from_dict(fields)
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    if issubclass(model_class, CLIPModel):
        prefixes = (_TEXT.theirs, _VISION.theirs)
        factors = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
        if config.objective == "sigmoid" and "logit_scale" in factors:
            # What open_clip does where training with the bias begins at a model without.
            factors.setdefault("logit_bias", torch.zeros_like(factors["logit_scale"]))
        factors = to_ours(factors, _factor_rules(config), num_layers=0)
        factors = {name: tensor.reshape(()) for name, tensor in factors.items()}
        return fields, {**factors, **_our_side(_TEXT, config, weights), **_our_side(_VISION, config, weights)}
    side = _TEXT if is_text(model_class) else _VISION
    converted = _our_side(side, config, weights)
    if issubclass(model_class, CLIPTextModel | CLIPVisionModel):
        tower, _ = side.ours
        converted = {name.removeprefix(tower): tensor for name, tensor in converted.items() if name.startswith(tower)}
    return {**fields[side.config], "projection_dim": config.projection_dim}, converted


def _our_side(side: _Side, config: VitfmCLIPConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a tower and its projection, under their names in our whole model."""
    tower = {name: tensor for name, tensor in weights.items() if name.startswith(side.theirs)}
    tower_config = getattr(config, side.config)
    converted = to_ours(tower, side.rules(tower_config), tower_config.num_hidden_layers)
    return {name: _turned(name, tensor[(None,) * _LEADING.get(name, 0)], config) for name, tensor in converted.items()}


def read(model_class: type, saved: Mapping, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a model, or a tower of it.

    Args:
        model_class: our class.
        saved: the content of open_clip_config.json, {} if there is none.
        state_dict: the weights.
    """
    weights, model_cfg = with_text_prefix(state_dict), saved.get("model_cfg")
    if model_cfg is None:
        if not any(tensor.is_meta for tensor in weights.values()):  # a description has it among its notes
            logger.warning(UNKNOWN_ACTIVATION)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        model_cfg = infer_model_cfg(shapes, quick_gelu=False, head_widths=HEAD_WIDTHS)
    return convert(model_class, model_cfg, weights)


READERS = {CLIPModel: read, CLIPTextPreTrainedModel: read, CLIPVisionPreTrainedModel: read}


def their_weights(model: CLIPModel) -> dict[str, Tensor]:
    """The weights of one of our models under the names of open_clip's `CLIP`.

    Args:
        model: one whose configuration the format can hold.
    """
    config = model.config
    weights = {
        name: _turned(name, tensor[(0,) * _LEADING.get(name, 0)], config)
        for name, tensor in model.state_dict().items()
    }
    factors = {name: tensor for name, tensor in weights.items() if not name.startswith((*_TEXT.ours, *_VISION.ours))}
    converted = to_theirs(factors, _factor_rules(config), num_layers=0)
    for side in (_TEXT, _VISION):
        tower = {name: tensor for name, tensor in weights.items() if name.startswith(side.ours)}
        tower_config = getattr(config, side.config)
        converted |= to_theirs(tower, side.rules(tower_config), tower_config.num_hidden_layers)
    return {name.removeprefix(_TEXT.theirs): tensor for name, tensor in converted.items()}


def write(model: CLIPModel, image_processor=None) -> dict[str, dict]:
    """The files of a model: open_clip_config.json and open_clip_model.safetensors.

    Without an image processor, preprocessing is open_clip's default, which is OpenAI's.

    Raises:
        ValueError: if the configuration, or the image processor, has what the format cannot hold.
    """
    model_cfg = their_model_cfg(model.config)
    preprocess_cfg = open_clip_images.their_preprocess_cfg(image_processor, model.config.vision_config.image_size)
    return {
        CONFIG_FILE: {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg},
        WEIGHT_FILE: their_weights(model),
    }


WRITERS = {VitfmCLIPConfig.model_type: write}


def image_processor(config: Mapping, shapes: Mapping[str, tuple], backend: str | None = None):
    """Build the image processor of transformers with the pixels of open_clip's own transform for evaluation.

    Args:
        config: the content of open_clip_config.json, {} if there is none.
        shapes: of the weights by name, which tell the size of the images where there is no configuration.
        backend: "torchvision" or "pil"; by default torchvision.
    """
    model_cfg = config.get("model_cfg")
    if model_cfg is None:
        model_cfg = infer_model_cfg(with_text_prefix(shapes), quick_gelu=False, head_widths=HEAD_WIDTHS)
    image_size = (model_cfg.get("vision_cfg") or {}).get("image_size") or 224
    check_pixels("image_size", image_size)
    return open_clip_images.our_image_processor(config.get("preprocess_cfg") or {}, image_size, backend)


def tokenizer(config: Mapping, **kwargs):
    """Load transformers' tokenizer for a source without files of one: the one it names, or OpenAI's.

    Args:
        config: the content of open_clip_config.json, {} if there is none.
        **kwargs: passed on (`cache_dir`, `local_files_only`, ...).

    Raises:
        OSError: if that cannot be fetched and is not in the cache.
    """
    text_cfg = (config.get("model_cfg") or {}).get("text_cfg") or {}
    name = text_cfg.get("hf_tokenizer_name") or OPENAI_TOKENIZER
    try:
        loaded = AutoTokenizer.from_pretrained(name, **kwargs)
    except OSError as error:
        raise OSError(
            f"the files of the tokenizer are in another repository, {name!r}, which cannot be read. Where there is a "
            f"network, `hf download {name}` fetches it."
        ) from error
    loaded.model_max_length = text_cfg.get("context_length") or 77
    return loaded


def notes(config: Mapping, shapes: Mapping[str, tuple]) -> list[str]:
    """What is known to differ from how the weights were trained."""
    if not config:
        return [UNKNOWN_ACTIVATION]
    found, text_cfg = [], config["model_cfg"].get("text_cfg") or {}
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    if kwargs.get("clean") == "canonicalize":
        found.append(
            "open_clip's tokenizer first makes texts lower case and takes away their punctuation; do the same."
        )
    if kwargs.get("strip_sep_token"):
        found.append("open_clip's tokenizer puts 0 in the place of the separator token; do the same.")
    return found
