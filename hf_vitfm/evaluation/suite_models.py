"""Models of every kind, loaded for an evaluation on many data sets: with their preprocessing, and with texts or without."""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from ..conversion import load_image_processor, load_tokenizer
from ..conversion.describe import describe
from ..conversion.files import check_source
from ..data.samples import find_checkpoint
from .fingerprint import fingerprint_model, fingerprint_transform
from .predict import evaluation_transform


logger = logging.getLogger(__name__)

_HEAD = "ForImageClassification"  # in the name of every class that classifies, ours and transformers'


@dataclass(frozen=True, eq=False)
class SuiteModel:
    """A model ready to be evaluated.

    Args:
        name: in tables and file names.
        model: with its head, if it has one, in evaluation mode, on its device.
        transform: image -> float tensor (channels, height, width).
        tokenizer: of a model that compares images with texts; None for others.
        fingerprint: of class, configuration and weights (`fingerprint_model`).
        preprocessing: the same of the transform.
    """

    name: str
    model: nn.Module
    transform: Callable
    tokenizer: Any
    fingerprint: str
    preprocessing: str

    @property
    def has_texts(self) -> bool:
        """Whether it embeds texts beside images."""
        return self.tokenizer is not None

    @property
    def has_head(self) -> bool:
        """Whether it classifies images by itself."""
        return _HEAD in type(self.model).__name__ and self.model.config.num_labels > 0

    @property
    def dtype(self) -> str:
        """In which it computes."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")


def load_suite_model(
    source: str | os.PathLike, name: str | None = None, dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> SuiteModel:
    """Load a model of any format that this library reads, or any vision model of transformers.

    Args:
        source: folder, weight file, Hub id, or the name of a checkpoint that ships.
        name: in tables; None makes one of the source.
        dtype: of the weights.
        device: to compute on.

    Raises:
        FileNotFoundError: if the source is a path that does not exist.
        OSError: if files are missing or cannot be reached.
        ValueError: if it is no model that can be read, or lacks weights: its features would be random.
    """
    place = find_checkpoint(str(source))
    check_source(place)
    model = _load(place, dtype).to(device).eval()
    transform = evaluation_transform(load_image_processor(place))
    return SuiteModel(
        name=name or name_models([source])[0],
        model=model,
        transform=transform,
        tokenizer=load_tokenizer(place) if hasattr(model, "get_text_features") else None,
        fingerprint=fingerprint_model(model),
        preprocessing=fingerprint_transform(transform),
    )


def name_models(sources: Iterable[str | os.PathLike]) -> list[str]:
    """Short names, all different: the last part of a path, a Hub id as it is."""
    names: list[str] = []
    for source in map(str, sources):
        stem = Path(source).resolve().name if os.path.exists(source) else source
        count = sum(name == stem or name.startswith(f"{stem} (") for name in names)
        names.append(stem if not count else f"{stem} ({count + 1})")
    return names


def _load(place: str, dtype: torch.dtype) -> nn.Module:
    """By the one of our classes that takes most of the checkpoint, or else by transformers."""
    try:
        found = describe(place)
    except (OSError, ValueError) as error:
        logger.info("%s is left to transformers: %s", place, error)
        return _load_of_transformers(place, dtype, error)
    lacking = [*found.missing, *(name for name, *_ in found.mismatched)]
    if lacking:
        raise ValueError(_random(place, type(found.model), lacking))
    return type(found.model).from_pretrained(place, dtype=dtype)


def _load_of_transformers(place: str, dtype: torch.dtype, reason: Exception) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        has_head = any(_HEAD in name for name in config.architectures or ())
        auto_class = AutoModelForImageClassification if has_head else AutoModel
        model, info = auto_class.from_pretrained(place, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise type(error)(f"{place!r} is no model that can be read: {reason} By transformers: {error}") from error
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    lacking = sorted(name for name in missing if "pooler" not in name)  # many have none, and it is not needed
    if lacking:
        raise ValueError(_random(place, type(model), lacking))
    return model


def _random(place: str, model_class: type, lacking: list[str]) -> str:
    return (
        f"{place!r} lacks {len(lacking)} weights of {model_class.__name__}: {', '.join(lacking[:5])}. Its features would be "
        "random."
    )
