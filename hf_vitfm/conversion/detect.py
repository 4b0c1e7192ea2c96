"""Which format a source has, and what to say of those that are not ours to read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import logging

from ..models.modeling_clip import CLIPModel
from ..models.modeling_clip_towers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from ..models.modeling_mae import MAEForPreTraining, MAEModel
from ..models.modeling_vit import ViTForImageClassification, ViTModel
from .adapters import describe_adapters
from .formats import FORMATS, OURS, TRANSFORMERS, Format
from .source import Candidate, Source


logger = logging.get_logger(__name__)

_RESNET = ("visual.layer1.", "visual.attnpool.")  # names in CLIP's ResNets
# A name in weights of other architectures -> what they are, and transformers' class for them.
_OTHERS = (
    (r"(.*\.)?layers\.\d+\.blocks\.\d+\..*relative_position_bias_table", "Swin", "SwinModel"),
    (r".*standardized_conv2d/kernel", "BiT", "BitModel"),  # of its own repository
    (r"(bit\.)?(encoder\.)?stages\.\d+\.(layers|blocks)\.\d+\.norm1\.weight", "BiT", "BitModel"),
    (r"(.*\.)?layer1\.\d+\.bn1\.weight", "ResNet", "ResNetModel"),
    (r"(resnet\.)?encoder\.stages\.\d+\.layers\.\d+\.layer\.0\.normalization\.weight", "ResNet", "ResNetModel"),
)

MODEL_CLASSES = (
    ViTModel,
    ViTForImageClassification,
    MAEModel,
    MAEForPreTraining,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)


@dataclass(frozen=True)
class Detected:
    """A format, and the part of a source that has it."""

    format: Format
    candidate: Candidate

    @property
    def model_classes(self) -> list[type]:
        """Our classes that can be made of it."""
        return [model_class for model_class in MODEL_CLASSES if self.format.reader(model_class)]


def detect(source: Source, source_format: str | None = None, model_class: type | None = None) -> Detected:
    """Find the format to read a source by.

    Args:
        source: where to look.
        source_format: a name of `FORMATS`; None takes the first that matches, in the order of that table.
        model_class: our class that is to be built; formats that it cannot be made of do not count.

    Raises:
        ValueError: if there is none; the message says what was found and what can be read.
        OSError: if a configuration is damaged, or nothing can be reached.
    """
    names = list(dict.fromkeys(known.name for known in FORMATS))
    if source_format is not None and source_format not in names:
        raise ValueError(f"`source_format` must be one of {', '.join(names)}; got {source_format!r}.")
    candidates = source.candidates()
    matching = _matches(candidates)
    usable = [found for found in matching if model_class is None or found.format.reader(model_class)]
    chosen = next((found for found in usable if source_format in (None, found.format.name)), None)
    if chosen is None and source.damage:
        raise source.damage
    if chosen is None:
        raise ValueError(_nothing_fits(source, candidates, matching, source_format, model_class))
    if "auto_map" in chosen.candidate.config and chosen.format.name != OURS:
        logger.warning_once("%r names code of its own (`auto_map`), which is never run.", source.name)
    if source.damage:
        logger.warning_once("%r is read as %s; of another format, %s", source.name, chosen.format.name, source.damage)
    others = sorted({found.format.name for found in usable} - {chosen.format.name})
    if others and source_format is None:
        # One command looks several times: for the model, the image processor, the tokenizer.
        logger.warning_once(
            "%r is read as %s; `source_format=` would take %s.", source.name, chosen.format.name, ", ".join(others)
        )
    return chosen


def _matches(candidates: list[Candidate]) -> list[Detected]:
    """All formats that match; weights alone count only where no configuration does."""
    found = []
    for candidate in candidates:
        if candidate.config_file is None and (found or any(_other_architecture(other.config) for other in candidates)):
            break
        for known in FORMATS:
            try:
                if known.matches(candidate.config, candidate.shapes) and not _is_other(candidate):
                    found.append(Detected(known, candidate))
            except FileNotFoundError:  # the format looks at weights, and there are none
                continue
    return found


def _is_other(candidate: Candidate) -> bool:
    """Whether the architecture is not ours, though the names of files and fields are those of a known format."""
    if candidate.config:
        return _other_architecture(candidate.config) is not None
    return any(name.startswith(_RESNET) for name in candidate.shapes)


def _other_architecture(config: dict) -> str | None:
    """A sentence on an architecture that other libraries have and this one has not; None if there is none."""
    model_type, architecture = config.get("model_type"), config.get("architecture")
    is_known = any(known.matches(config, {}) for known in FORMATS)
    if isinstance(model_type, str) and model_type in MODEL_MAPPING_NAMES and not is_known:
        name = MODEL_MAPPING_NAMES[model_type]
        name = name if isinstance(name, str) else name[0]
        return (
            f"`model_type` {model_type!r} is another architecture: load it with transformers' `{name}` or its Auto classes "
            "(this library's trainers, evaluations and `hf-vitfm predict` take any image classifier of transformers)"
        )
    if isinstance(architecture, str) and not is_known:
        return (
            f"timm's architecture {architecture!r} is another one: load it with `timm.create_model` or transformers' "
            "`TimmWrapperForImageClassification`"
        )
    model = config.get("model_cfg")
    if isinstance(model, Mapping) and isinstance(model.get("vision_cfg"), Mapping):
        vision = model["vision_cfg"]
        kind = str(vision.get("timm_model_name", "one of CLIP's ResNets"))
        if isinstance(vision.get("layers"), list | tuple) or (
            "timm_model_name" in vision and not kind.startswith("vit")
        ):
            return (
                f"the image tower is {kind}, which is not a ViT: load it with `open_clip.create_model_and_transforms`"
            )
    return None


def _nothing_fits(
    source: Source,
    candidates: list[Candidate],
    matching: list[Detected],
    source_format: str | None,
    model_class: type | None,
) -> str:
    missing = source.why_absent() if len(candidates) == 1 else None
    if missing:
        return missing
    subject = model_class.__name__ if model_class else "hf_vitfm"
    if matching:
        others = [
            f"{found.format.name} (for {', '.join(known.__name__ for known in found.model_classes)})"
            for found in matching
        ]
        wanted = f" as `source_format={source_format!r}`" if source_format else ""
        return f"{subject} cannot read {source.name!r}{wanted}: it holds {'; '.join(others)}."
    if len(candidates) == 1 and (adapters := describe_adapters(source)):
        return adapters
    readable = _readable(model_class)
    found = "; ".join(_describe(candidate) for candidate in candidates[:-1]) or "no config.json with a `model_type`"
    if not any(_other_architecture(candidate.config) for candidate in candidates):
        found += _describe_weights(candidates[-1])
    return f"{subject} cannot read {source.name!r}: {found}. Readable are {readable}."


def _describe(candidate: Candidate) -> str:
    sentence = _other_architecture(candidate.config)
    if sentence is None:
        model_type = candidate.config.get("model_type")
        sentence = f"`model_type` {model_type!r}" if model_type else f"no {candidate.config_file} with a `model_type`"
    if "auto_map" in candidate.config:
        sentence += "; it names code of its own (`auto_map`), which is never run"
    return sentence


def _describe_weights(candidate: Candidate) -> str:
    try:
        names = list(candidate.shapes)
    except FileNotFoundError:
        subfolder = candidate.source.where.get("subfolder")
        return ", and no weights" + (f", in its subfolder {subfolder!r}" if subfolder else "")
    if any(name.startswith(_RESNET) for name in names):
        return ", and weights of one of CLIP's ResNets: load them with `open_clip.create_model_and_transforms`"
    for pattern, kind, name in _OTHERS:
        if any(re.fullmatch(pattern, found) for found in names):
            return (
                f", and weights of a {kind}, which is another architecture: load its folder with transformers' `{name}` "
                "or its Auto classes, and a file without a configuration with `timm.create_model(..., checkpoint_path=...)`"
            )
    return f", and weights named {', '.join(names[:3])}, ..."


def _readable(model_class: type | None) -> str:
    usable = [known for known in FORMATS if model_class is None or known.reader(model_class)]
    types = {
        name: [repr(model_type) for known in usable if known.name == name for model_type in known.model_types]
        for name in (OURS, TRANSFORMERS)
    }
    others = [name for name in dict.fromkeys(known.name for known in usable) if name not in types]
    parts = [
        f"what this library saved (`model_type` {', '.join(types[OURS])})",
        f"transformers' `model_type` {', '.join(types[TRANSFORMERS])}",
    ]
    return " and ".join([", ".join([*parts[:1], *others]), parts[1]]) if others else " and ".join(parts)
