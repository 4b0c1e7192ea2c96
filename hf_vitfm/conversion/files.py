"""Finding and reading the weight files of a folder or Hub repository; only formats that cannot run code."""

import json
import os
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file


# In the order of preference.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_source(source) -> None:
    """Say that a folder is not there, where a source can only be one: the Hub would complain about its form.

    Args:
        source: folder or Hub id.

    Raises:
        FileNotFoundError: if the source is absolute, begins with ., .. or ~, or has more than one slash, and does not
            exist.
    """
    text = os.fspath(source)
    is_path = os.path.isabs(text) or text.startswith(("./", "../", "~")) or text.strip("/").count("/") > 1
    if is_path and not os.path.exists(text):
        raise FileNotFoundError(
            f"{text!r} does not exist. Name a folder that holds a checkpoint, or a Hub id such as "
            "'google/vit-base-patch16-224'."
        )


def read_state_dict(source, **where) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, sharded or not, to the CPU.

    Args:
        source: folder or Hub id.
        **where: arguments of transformers' `cached_file`, such as `revision`, `token`, `subfolder`.

    Raises:
        FileNotFoundError: if no weight file is there.
        ValueError: if a file is damaged.
    """
    for name in SINGLE_FILES:
        path = _find(source, name, where)
        if path is not None:
            return _read(path)
    for name in INDEX_FILES:
        path = _find(source, name, where)
        if path is not None:
            shards = _shards(path)
            return {key: value for shard in shards for key, value in _read(_require(source, shard, where)).items()}
    raise FileNotFoundError(
        f"No weights in {str(source)!r}: looked for {', '.join(SINGLE_FILES + INDEX_FILES)}. "
        "Check the path, `subfolder` and `revision`."
    )


def _find(source, name: str, where: dict) -> str | None:
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )


def _require(source, name: str, where: dict) -> str:
    path = _find(source, name, where)
    if path is None:
        raise FileNotFoundError(f"The shard {name!r}, named in the index of {str(source)!r}, is missing.")
    return path


def _shards(index) -> list[str]:
    try:
        return sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{Path(index).name} is damaged: it has no `weight_map` that can be read.") from error


def _read(path) -> dict[str, Tensor]:
    try:
        if str(path).endswith(".safetensors"):
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{Path(path).name} is damaged, or holds pickled objects other than tensors, which are never loaded because "
            "they can run code. Fetch it again, or use a copy in safetensors format."
        ) from error
    except Exception as error:  # what a damaged pickle raises depends on where it is damaged
        raise ValueError(f"{Path(path).name} is damaged or cut off ({error}). Fetch it again.") from error
