"""Writing our models in foreign formats."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .formats import FORMATS, TRANSFORMERS


def export_checkpoint(model, directory, format: str = "transformers", processing_class=None) -> Path:
    """Write a model's configuration, weights and preprocessing in another library's format.

    Args:
        model: one of our models.
        directory: where to write; made if absent. Files of the same names are replaced, others stay.
        format: name of the format ("transformers", ...); the message about an unknown one lists them all.
        processing_class: transformers' image processor, tokenizer, or processor of both, written in the same format.

    Returns:
        The directory.

    Raises:
        ValueError: if the format is not known for this model, or cannot hold something that the model has (the
            message names the configuration field). Nothing is written then.
    """
    model_type = getattr(model.config, "model_type", None)
    writers = [known.writers[model_type] for known in FORMATS if known.name == format and model_type in known.writers]
    if not writers:
        names = sorted({known.name for known in FORMATS if model_type in known.writers})
        names = names or sorted({known.name for known in FORMATS if known.writers})
        raise ValueError(
            f"`format` must be one of {', '.join(names)} and the model one of this library's; got {format!r} and "
            f"{type(model).__name__}."
        )
    _check_weights(model)
    image_processor, tokenizer = _parts(processing_class)
    files = _write(writers, model, image_processor)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as staging:
        for name, content in files.items():
            _save(Path(staging, name), content)
        if format == TRANSFORMERS and processing_class is not None:
            processing_class.save_pretrained(staging)
        elif tokenizer is not None:
            tokenizer.save_pretrained(staging)
        _publish(Path(staging), directory)
    return directory


def _check_weights(model) -> None:
    """Refuse weights that are not there, and those of adapters, which no format has a place for."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"The weight {name!r} is on the meta device and has no values. Load the model's weights first."
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
    if path.suffix == ".json":
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    elif path.suffix == ".safetensors":
        save_file(_own_memories(content), path, metadata={"format": "pt"})
    elif path.suffix == ".npz":
        np.savez(path, **{name: _to_numpy(value) for name, value in content.items()})
    else:
        torch.save(content, path)


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


def _publish(staging: Path, directory: Path) -> None:
    """Move whole files to their names; configurations last, so that a folder with one has its weights."""
    paths = sorted(staging.rglob("*"), key=lambda path: (path.suffix == ".json", path))
    for path in (path for path in paths if path.is_file()):
        target = directory / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
