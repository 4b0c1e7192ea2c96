"""Whether the weight files that are about to be published are whole."""

import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..conversion.describe import describe
from ..training.record import hash_weights


logger = logging.getLogger(__name__)


def check_weights(folder: Path) -> None:
    """Refuse weights that nobody could load, or that hold NaN.

    Args:
        folder: exactly what would be published. Looked into is every safetensors file, with those in subfolders.

    Raises:
        ValueError: for a damaged file, a NaN, a shard that is missing, and at the root in this library's format a weight
            that is missing or has another shape than config.json says; naming the file and the weight.
    """
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        _check_shards(index, index.relative_to(folder).as_posix())
    for file in sorted(folder.rglob("*.safetensors")):
        _check_values(file, file.relative_to(folder).as_posix())
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if str(config.get("model_type")).startswith("vitfm_") and not config.get("quantization_config"):
        _check_shapes(folder)


def note_other_weights(source: Path) -> None:
    """Warn if the weights of a run's folder are not those that its run.json records, whose numbers are on the card."""
    try:
        recorded = json.loads((source / "run.json").read_text(encoding="utf-8"))["weights"]
    except (KeyError, OSError, TypeError, ValueError):
        return
    if isinstance(recorded, dict) and recorded and hash_weights(source) != recorded:
        logger.warning(
            "The weights are not those that run.json records, so the numbers on the card may be another model's. "
            "`hf-vitfm verify` on the folder measures them."
        )


def _check_shards(index: Path, name: str) -> None:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{name} is damaged: it names no files. Save the model again.") from None
    lost = sorted(shard for shard in shards if not (index.parent / shard).is_file())
    if lost:
        raise ValueError(f"{', '.join(lost[:5])} is missing, which {name} names. Save the model again.")


def _check_values(file: Path, name: str) -> None:
    try:
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():
                value = weights.get_tensor(key)
                if value.is_floating_point() and torch.isnan(value.float()).any():
                    raise ValueError(
                        f"The weight {key!r} in {name} holds NaN: the training broke off before. Publish an "
                        "earlier checkpoint."
                    )
    except SafetensorError as error:
        raise ValueError(f"{name} is damaged, or cut: {error}. Save the model again.") from None


def _check_shapes(folder: Path) -> None:
    found = describe(folder)
    lost = [f"{name} is missing" for name in found.missing]
    lost += [f"{name} has the shape {saved}, config.json says {wanted}" for name, saved, wanted in found.mismatched]
    if lost:
        raise ValueError(f"The weights are not those of config.json: {'; '.join(lost[:5])}. Save the model again.")
