"""Adapters of PEFT beside or instead of a model: transformers loads them where PEFT is installed, and only into its own files."""

import json
from pathlib import Path

from transformers.utils import is_peft_available, logging

from .source import Source


logger = logging.get_logger(__name__)

CONFIG_FILE = "adapter_config.json"
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def check_adapters(place: Source) -> None:
    """Refuse adapters beside a model of this library that transformers, which loads them with it, could not load.

    Raises:
        ValueError: naming what is wrong, and what to do.
    """
    path = place.find(CONFIG_FILE) if is_peft_available() else None
    if path is None:
        return
    if not _read(path).get("peft_type"):
        problem = f"{CONFIG_FILE} is no JSON object with a `peft_type`"
    elif not any(map(place.find, _WEIGHT_FILES)):
        problem = f"neither {' nor '.join(_WEIGHT_FILES)} is there"
    else:
        return
    raise ValueError(
        f"{place.name!r} holds a model with adapters of PEFT beside it, and {problem}. Fetch the adapters again, or take "
        f"{CONFIG_FILE} away to load the model without them."
    )


def warn_of_adapters(place: Source) -> None:
    """Say that adapters beside a model of another library are left out, for they are made for that one's modules."""
    path = place.find(CONFIG_FILE) if place.file is None else None
    if path is not None:
        logger.warning(
            f"{place.name!r} holds adapters ({CONFIG_FILE}), which fit the model of the library that made them and are left out "
            "here. To have them, merge them there (`merge_and_unload()` of PEFT's model), save it, and load that."
        )


def describe_adapters(place: Source) -> str | None:
    """A sentence on adapters without a model; None if there are none."""
    path = place.find(CONFIG_FILE) if place.file is None else None
    if path is None:
        return None
    base = _read(path).get("base_model_name_or_path")
    return (
        f"{place.name!r} holds adapters of PEFT and no model. Load the model that they were trained on"
        f"{f' ({base!r})' if isinstance(base, str) else ''}, then give it to `peft.PeftModel.from_pretrained(model, "
        f"{place.name!r})`."
    )


def _read(path) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
