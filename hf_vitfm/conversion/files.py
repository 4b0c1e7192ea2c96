"""The weight files of a checkpoint: one or several, on this machine or on the Hub."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .archives import read_shapes, read_tensors, read_whole_numbers
from .hide_tokens import hide_tokens
from .nested import without_prefixes


# In the order of preference, which is transformers'; an index stands for its shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LONGEST_NAME = 500  # names are shown in messages
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz")


def check_source(source) -> None:
    """Say that a folder is not there, where a source can only be one: the Hub would complain about its form.

    What looks like a token in it is not repeated.

    Args:
        source: folder, file or Hub id.

    Raises:
        FileNotFoundError: if the source is absolute, begins with ., .. or ~, ends like a weight file, or has more than
            one slash, and does not exist; or if it is a link to nothing.
        ValueError: if it is a URL.
    """
    text = os.fspath(source)
    if "://" in text:
        raise ValueError(
            f"{hide_tokens(text)!r} is a URL, which is not read. Name a Hub id such as 'google/vit-base-patch16-224', a "
            "folder or a weight file; `hf download` fetches what is on the Hub."
        )
    check_link(text)
    is_path = os.path.isabs(text) or text.startswith(("./", "../", "~")) or text.strip("/").count("/") > 1
    if (is_path or text.endswith(SUFFIXES)) and not os.path.exists(text):
        raise FileNotFoundError(
            f"{hide_tokens(text)!r} does not exist. Name a folder that holds a checkpoint, a weight file, or a Hub id such as "
            "'google/vit-base-patch16-224'."
        )


def check_link(path) -> None:
    """Say that a link leads nowhere, which else looks as if there were no file.

    Raises:
        FileNotFoundError: if so.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(
            f"{hide_tokens(os.fspath(path))!r} is a link to {hide_tokens(os.readlink(path))!r}, which leads to no file: that is "
            "gone, or the links go in a circle. Fetch the file again, or copy folders with what their links lead to "
            "(`cp -rL`)."
        )


@dataclass(frozen=True)
class Weights:
    """Weight files that together hold a model.

    Attributes:
        files: their paths.
    """

    files: tuple[str, ...]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by name, read without the tensors where the files allow it."""
        return without_prefixes(self._named_shapes)

    @property
    def is_wrapped(self) -> bool:
        """Whether a wrapper's prefix stands before every name in the files, which `shapes` and `state_dict` leave out."""
        return self._named_shapes.keys() != self.shapes.keys()

    def whole_numbers(self) -> list[str]:
        """Names of the tensors that are no floating-point numbers."""
        return [name for file in self.files for name in read_whole_numbers(file)]

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU.

        Raises:
            ValueError: if a file is damaged or could run code.
        """
        return without_prefixes(self._join(read_tensors))

    @cached_property
    def _named_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._join(read_shapes)

    def _join(self, read: Callable[[str], dict]) -> dict:
        found: dict = {}
        for file in self.files:
            part = read(file)
            strange = [name for name in part if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME]
            if strange:
                raise ValueError(
                    f"{os.path.basename(file)} names a weight {strange[0][:50]!r}, which no model does: a name is a word of "
                    f"1 to {_LONGEST_NAME} printable characters. The file is damaged, or meant to deceive."
                )
            twice = sorted(found.keys() & part.keys())
            if twice:
                raise ValueError(
                    f"{os.path.basename(file)} holds {twice[0]!r}, as another shard does; fetch both again."
                )
            found |= part
        return found


def shard_names(index) -> list[str]:
    """The files that an index file names.

    Raises:
        ValueError: if it cannot be read, or names files elsewhere.
    """
    name = Path(index).name
    try:
        shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        is_beside = all(shard == os.path.basename(shard) and shard.endswith(SUFFIXES) for shard in shards)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: it has no `weight_map` that can be read.") from error
    if not is_beside:
        raise ValueError(f"{name} is damaged: it names files that are no weight files beside it.")
    return shards
