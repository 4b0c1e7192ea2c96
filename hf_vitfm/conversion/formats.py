"""The formats that are read and written, in one table."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..models.configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from ..models.configuration_mae import VitfmMAEConfig
from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_clip import CLIPModel
from ..models.modeling_clip_towers import CLIPTextPreTrainedModel, CLIPVisionPreTrainedModel
from ..models.modeling_mae import MAEPreTrainedModel
from ..models.modeling_vit import ViTPreTrainedModel
from . import (
    transformers_clip,
    transformers_deit,
    transformers_dinov2,
    transformers_mae,
    transformers_siglip,
    transformers_vit,
)


OURS, TRANSFORMERS = "hf_vitfm", "transformers"
# Modules that describe a format by NAME, matches, READERS, WRITERS and the like, in the order of preference. A source
# that several formats match is read by the first.
MODULES: tuple[str, ...] = ("open_clip", "openai", "mae_original", "deit", "jax", "timm")


@dataclass(frozen=True)
class Format:
    """How one library or repository saves models.

    Attributes:
        name: what `source_format=` and `export_checkpoint(format=)` call it; transformers' architectures share one.
        model_types: values of `model_type` in config.json by which it is known; () if `matches` decides.
        recognise: (configuration, shapes by name) -> whether a source has this format; the configuration is {} for
            weights without one.
        readers: base class of ours -> reader(model class, configuration, state dict) -> (fields of our
            configuration, weights under our names).
        writers: our `model_type` -> writer(model, image_processor) -> content by file name: dictionaries for JSON
            files, state dicts for weight files.
        image_processor: (configuration, shapes) -> transformers' image processor; None if the files have one.
        tokenizer: (configuration, **arguments of the download) -> transformers' tokenizer; None if the files have one.
        notes: (configuration, shapes) -> sentences on how the file differs from how its weights were trained.
    """

    name: str
    model_types: tuple[str, ...] = ()
    recognise: Callable[[dict, Mapping[str, tuple]], bool] | None = None
    readers: dict[type, Callable] = field(default_factory=dict)
    writers: dict[str, Callable] = field(default_factory=dict)
    image_processor: Callable | None = None
    tokenizer: Callable | None = None
    notes: Callable | None = None

    def matches(self, config: dict, shapes: Mapping[str, tuple]) -> bool:
        """Whether a source has this format."""
        if self.model_types:
            return config.get("model_type") in self.model_types
        return self.recognise(config, shapes)

    def reader(self, model_class: type) -> Callable | None:
        """What makes this model class of it; None if nothing does."""
        return next((read for base, read in self.readers.items() if issubclass(model_class, base)), None)


def _as_saved(model_class: type, saved: dict, state_dict: dict) -> tuple[dict, dict]:
    return saved, state_dict


def _files(write: Callable) -> Callable:
    """A writer of transformers' format, which gives (configuration, weights), as one that gives files."""

    def write_files(model, image_processor=None) -> dict[str, dict]:
        config, state_dict = write(model)
        config.dtype = next(iter(state_dict.values())).dtype
        return {"config.json": json.loads(config.to_json_string()), "model.safetensors": state_dict}

    return write_files


def _transformers(
    model_type: str, readers: dict, write: Callable | None = None, *ours: type, notes: Callable | None = None
) -> Format:
    writers = {config.model_type: _files(write) for config in ours}
    return Format(TRANSFORMERS, (model_type,), readers=readers, writers=writers, notes=notes)


def _own(config: type, readers: dict) -> Format:
    return Format(OURS, (config.model_type,), readers=readers)


def _described(name: str) -> Format:
    """The format that a module describes."""
    module = importlib.import_module(f".{name}", __package__)
    return Format(
        module.NAME,
        getattr(module, "MODEL_TYPES", ()),
        getattr(module, "matches", None),
        module.READERS,
        getattr(module, "WRITERS", {}),
        getattr(module, "image_processor", None),
        getattr(module, "tokenizer", None),
        getattr(module, "notes", None),
    )


_CLIP_TOWERS = {
    CLIPTextPreTrainedModel: transformers_clip.read_tower,
    CLIPVisionPreTrainedModel: transformers_clip.read_tower,
}
_SIGLIP_TOWERS = {
    CLIPTextPreTrainedModel: transformers_siglip.read_tower,
    CLIPVisionPreTrainedModel: transformers_siglip.read_tower,
}
FORMATS = (
    _own(VitfmViTConfig, {ViTPreTrainedModel: _as_saved}),
    # MAE's encoder is a ViT, so a ViT takes it from an MAE.
    _own(VitfmMAEConfig, {MAEPreTrainedModel: _as_saved, ViTPreTrainedModel: transformers_mae.read_our_encoder}),
    _own(
        VitfmCLIPConfig,
        {
            CLIPModel: _as_saved,
            CLIPTextPreTrainedModel: transformers_clip.read_our_tower,
            CLIPVisionPreTrainedModel: transformers_clip.read_our_tower,
        },
    ),
    _own(VitfmCLIPTextConfig, {CLIPTextPreTrainedModel: _as_saved}),
    _own(VitfmCLIPVisionConfig, {CLIPVisionPreTrainedModel: _as_saved}),
    _transformers(
        transformers_vit.MODEL_TYPE,
        {ViTPreTrainedModel: transformers_vit.read},
        transformers_vit.write,
        VitfmViTConfig,
        notes=transformers_vit.notes,
    ),
    _transformers(  # after "vit", which writes what both can hold
        transformers_deit.MODEL_TYPE,
        {ViTPreTrainedModel: transformers_deit.read},
        transformers_deit.write,
        VitfmViTConfig,
        notes=transformers_deit.notes,
    ),
    _transformers(
        transformers_mae.MODEL_TYPE,
        {MAEPreTrainedModel: transformers_mae.read, ViTPreTrainedModel: transformers_mae.read_encoder},
        transformers_mae.write,
        VitfmMAEConfig,
        notes=transformers_mae.notes,
    ),
    _transformers(
        transformers_clip.MODEL_TYPE,
        {CLIPModel: transformers_clip.read, **_CLIP_TOWERS},
        transformers_clip.write,
        VitfmCLIPConfig,
        VitfmCLIPTextConfig,
        VitfmCLIPVisionConfig,
    ),
    _transformers(transformers_clip.TEXT_MODEL_TYPE, {CLIPTextPreTrainedModel: transformers_clip.read_tower}),
    _transformers(transformers_clip.VISION_MODEL_TYPE, {CLIPVisionPreTrainedModel: transformers_clip.read_tower}),
    _transformers(
        transformers_siglip.MODEL_TYPE,
        {CLIPModel: transformers_siglip.read, **_SIGLIP_TOWERS},
        transformers_siglip.write,
        VitfmCLIPConfig,
        VitfmCLIPTextConfig,
        VitfmCLIPVisionConfig,
    ),
    _transformers(transformers_siglip.TEXT_MODEL_TYPE, {CLIPTextPreTrainedModel: transformers_siglip.read_tower}),
    _transformers(transformers_siglip.VISION_MODEL_TYPE, {CLIPVisionPreTrainedModel: transformers_siglip.read_tower}),
    Format(
        transformers_dinov2.NAME,
        (transformers_dinov2.MODEL_TYPE, transformers_dinov2.REGISTERS_MODEL_TYPE),
        readers={ViTPreTrainedModel: transformers_dinov2.read},
        writers={VitfmViTConfig.model_type: _files(transformers_dinov2.write)},
        notes=transformers_dinov2.notes,
    ),
    *(_described(name) for name in MODULES),
)
