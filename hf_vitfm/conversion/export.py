"""Writing our models in foreign formats."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from . import transformers_dinov2
from .formats import FORMATS, TRANSFORMERS
from .publish import check_directory, staged


logger = logging.get_logger(__name__)

_SHARDED = (TRANSFORMERS, transformers_dinov2.NAME)  # formats whose loaders read several weight files


def export_checkpoint(
    model, directory, format: str = "transformers", processing_class=None, max_shard_size: int | str | None = None
) -> Path:
    """Write a model's configuration, weights and preprocessing in another library's format.

    The files appear together when all are written; after an error or an interrupt the directory is as it was.

    Args:
        model: one of our models.
        directory: where to write; made if absent. Files of the same names are replaced, others stay.
        format: name of the format ("transformers", ...); the message about an unknown one lists them all.
        processing_class: transformers' image processor, tokenizer, or processor of both, written in the same format.
        max_shard_size: the largest size of a weight file, in bytes or as "5GB", for transformers' formats; None writes
            one file.

    Returns:
        The directory.

    Raises:
        ValueError: if the format is not known for this model, or cannot hold something that the model has (the
            message names the configuration field), or not be cut into shards. Nothing is written then.
        NotADirectoryError: if a file is where the directory should be.
    """
    writers = find_writers(format, getattr(getattr(model, "config", None), "model_type", None), type(model).__name__)
    if max_shard_size is not None:
        _check_shard_size(max_shard_size, format)
    check_directory(directory)
    _check_weights(model)
    warn_of_no_numbers(model)
    image_processor, tokenizer = _parts(processing_class)
    files = _write(writers, model, image_processor)
    with staged(directory) as staging:
        for name, content in files.items():
            if max_shard_size is not None and name.endswith(".safetensors"):
                _save_shards(staging, content, max_shard_size)
            else:
                _save(staging / name, content)
        if format == TRANSFORMERS and processing_class is not None:
            processing_class.save_pretrained(staging)
        elif tokenizer is not None:
            tokenizer.save_pretrained(staging)
    return Path(directory)


def find_writers(format: str, model_type: str | None, owner: str) -> list:
    """What writes models of a type in a format, in the order of preference.

    Args:
        format: name of the format.
        model_type: of our configuration.
        owner: what has that type, for the message.

    Raises:
        ValueError: if nothing does.
    """
    writers = [known.writers[model_type] for known in FORMATS if known.name == format and model_type in known.writers]
    if not writers:
        names = sorted({known.name for known in FORMATS if model_type in known.writers}) or written_formats()
        raise ValueError(
            f"`format` must be one of {', '.join(names)} and the model one of this library's; got {format!r} and "
            f"{owner}. This library's own format is written by `model.save_pretrained(directory)`."
        )
    return writers


def written_formats() -> list[str]:
    """The names of all formats that models can be written in, sorted."""
    return sorted({known.name for known in FORMATS if known.writers})


def _check_shard_size(size, format: str) -> None:
    if format not in _SHARDED:
        raise ValueError(
            f"`max_shard_size` is for {' and '.join(_SHARDED)}; got {size!r} for {format!r}, whose loaders read one weight "
            "file. Leave it out."
        )
    is_count = isinstance(size, int) and not isinstance(size, bool) and size > 0
    is_text = isinstance(size, str) and re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)? ?[KMGT]B", size, re.IGNORECASE)
    if not (is_count or is_text):
        raise ValueError(
            f"`max_shard_size` must be a whole number of bytes above 0, or a text such as '5GB' (KB, MB, GB, TB); got {size!r}."
        )


def warn_of_no_numbers(model) -> None:
    """Say which weights are infinite or no numbers: nothing that such a model computes is worth anything."""
    broken = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if broken:
        logger.warning(
            "%d weights hold NaN or infinite values, the first %r: the training diverged, or the file is damaged.",
            len(broken),
            broken[0],
        )


def _check_weights(model) -> None:
    """Refuse weights that are not there, and those of adapters, which no format has a place for."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"The weight {name!r} is on the meta device and has no values here: it was never loaded, or is offloaded. "
                'Load the whole model into memory, with `device_map="cpu"` if the accelerator is too small for it.'
            )
        if name.startswith(("_orig_mod.", "module.")):
            raise ValueError(
                f"The model is wrapped (at {name!r}), as `torch.compile` does. Export what it wraps: "
                "`accelerator.unwrap_model(model)`, or `model._orig_mod`."
            )
        if ".base_layer." in name:
            raise ValueError(
                f"The model has adapters (at {name!r}), which no format here can hold. Merge them first: "
                "`model = model.merge_and_unload()` of PEFT's model."
            )


def _write(writers: list, model, image_processor) -> dict[str, dict]:
    """The files of the first writer that can hold the model; transformers has several classes for a ViT."""
    refusals = []
    for writer in writers:
        try:
            return writer(model, image_processor=image_processor)
        except ValueError as error:
            refusals.append(error)
    raise refusals[0]


def _parts(processing_class) -> tuple:
    """(image processor, tokenizer) of either or of both; None for what it has not."""
    if processing_class is None:
        return None, None
    is_tokenizer = isinstance(processing_class, PreTrainedTokenizerBase)
    image_processor = getattr(processing_class, "image_processor", None if is_tokenizer else processing_class)
    return image_processor, processing_class if is_tokenizer else getattr(processing_class, "tokenizer", None)


def _save(path: Path, content: dict) -> None:
    """Write one file by its suffix; what libraries raise of a full disk is an OSError."""
    try:
        _write_file(path, content)
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise OSError(
            f"{path.name} cannot be written ({reason}). See whether the disk is full; nothing was changed."
        ) from error


def _write_file(path: Path, content: dict) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    elif path.suffix == ".safetensors":
        save_file(_own_memories(content), path, metadata={"format": "pt"})
    elif path.suffix == ".npz":
        np.savez(path, **{name: _to_numpy(value) for name, value in content.items()})
    else:
        torch.save(content, path)


def _save_shards(folder: Path, weights: dict[str, Tensor], max_shard_size: int | str) -> None:
    """model.safetensors, or several files and their index where that would be larger than allowed."""
    weights = _own_memories(weights)
    parts = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file_name, names in parts.filename_to_tensors.items():
        _save(folder / file_name, {name: weights[name] for name in names})
    if parts.is_sharded:
        index = {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}
        _save(folder / "model.safetensors.index.json", index)


def _own_memories(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU of which none shares its memory with another, as safetensors wants them."""
    found, seen = {}, set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        is_view = storage.nbytes() != tensor.numel() * tensor.element_size()
        found[name] = tensor.clone() if is_view or storage.data_ptr() in seen else tensor
        seen.add(storage.data_ptr())
    return found


def _to_numpy(value) -> np.ndarray:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
