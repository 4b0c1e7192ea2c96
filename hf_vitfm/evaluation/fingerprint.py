"""Fingerprints of what features are made of: weights, rows and transforms, by their content.

A name tells nothing of what a folder holds today, and a time stamp little; so everything is read. SHA-256 takes about
a second for 1 GB, which is 10,000 photographs.
"""

import functools
import hashlib
import json
import numbers
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Subset

from ..data.order import ImageView
from ..version import __version__


COLUMNS = ("image", "pixel_values", "label", "labels")  # what of a row features and their labels depend on
# Their code changes with their version alone; any other's may change while its names stay.
_PACKAGES = ("PIL", "builtins", "hf_vitfm", "numpy", "open_clip", "timm", "torch", "torchvision", "transformers")
# Of a configuration: what says where a model came from, or what its weights tell already.
_IDLE_FIELDS = ("_commit_hash", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
_CHUNK = 1 << 20


def fingerprint_model(model: nn.Module, without: Sequence[str] = ()) -> str:
    """Digest of a model's class, configuration, weights, buffers and norms' `eps`; what hooks do to it is not seen.

    Processes that share the weights (`fully_shard`) all have to call it.

    Args:
        model: of transformers or this library.
        without: beginnings of the names of weights that play no part.

    Returns:
        64 hexadecimal digits, the same for equal weights wherever they were loaded from.

    Raises:
        ValueError: if a weight has no values of its own that could be read.
    """
    digest = _Digest()
    config = json.dumps(_without_idle(model.config.to_dict()), sort_keys=True, default=str)
    digest.add("model", f"{_name_of(type(model))} {config}".encode())
    for name, module in model.named_modules():  # transformers' configurations do not always tell that of a norm
        if isinstance(getattr(module, "eps", None), float) and not name.startswith(tuple(without)):
            digest.add("eps", f"{name} {module.eps!r}".encode())
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    for name in sorted(tensors):
        if name.startswith(tuple(without)):
            continue
        tensor = tensors[name].full_tensor() if isinstance(tensors[name], DTensor) else tensors[name]
        digest.add("weight", name.encode())
        try:
            digest.feed(tensor.detach())
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"The weight {name!r} ({type(tensor).__name__} on {tensor.device}) cannot be read for the cache: {error}. "
                "Load the weights first, or leave `cache_dir` out."
            ) from error
    return digest.hexadecimal()


def fingerprint_rows(rows: Sequence[dict], columns: Sequence[str] = COLUMNS) -> str:
    """Digest of what rows hold, in their order: it changes with any pixel, label or place.

    Images count as they are stored: a file's or an encoded image's bytes, wherever they lie, not its name. An image that
    cannot be read counts as that. Rows that make their content when they are asked for it are asked.

    Args:
        rows: a `datasets.Dataset`, a list of dictionaries, or any other sequence of such rows.
        columns: those that count, where a row has them.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if a row holds something that has no content to read.
    """
    digest = _Digest()
    if isinstance(rows, Subset):
        digest.add("subset", fingerprint_rows(rows.dataset, columns).encode())
        digest.feed([int(index) for index in rows.indices])
        return digest.hexadecimal()
    if isinstance(rows, ImageView):
        digest.add("view", fingerprint_rows(rows.rows, columns).encode())
        digest.add("transform", fingerprint_transform(rows.transform).encode())
        digest.feed([rows.seed, rows.captions, rows.bad_rows is None])
        return digest.hexadecimal()
    stored = ImageView(rows, None).rows  # images of a `datasets.Dataset` undecoded
    digest.add("rows", str(len(stored)).encode())
    for index in range(len(stored)):
        row = stored[index]
        for name in columns:
            if name in row:
                digest.add("column", name.encode())
                _feed_image(digest, row[name]) if name == "image" else digest.feed(row[name])
        digest.add("end")
    return digest.hexadecimal()


def fingerprint_transform(transform: Callable | None) -> str:
    """Digest of what a transform does: its class, the version of its library, and every parameter.

    Args:
        transform: built of classes and functions of this library, torchvision, transformers, timm, open_clip and the
            like; or anything with a text as attribute `fingerprint`, which then stands for it.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if it holds code that may change while its name stays, such as a lambda.
    """
    digest = _Digest()
    try:
        digest.feed(transform)
    except (RecursionError, ValueError) as error:
        raise ValueError(
            f"`transform` has no fingerprint, so that features made with it cannot be told from others in the cache: {error} "
            'Use `build_transform(image_processor)`, or set an attribute on it, `transform.fingerprint = "name and version"`, '
            "and change that text whenever the transform does something else; or leave `cache_dir` out."
        ) from error
    return digest.hexadecimal()


def fingerprint_values(values: Any) -> str:
    """Digest of tensors with their types and shapes, numbers and texts, in any nesting.

    Raises:
        ValueError: if something has no content to read.
    """
    digest = _Digest()
    digest.feed(values)
    return digest.hexadecimal()


class _Digest:
    """SHA-256 of a tree of values; every piece comes with its kind and length, so that no two trees read alike."""

    def __init__(self):
        self._sha = hashlib.sha256()

    def hexadecimal(self) -> str:
        return self._sha.hexdigest()

    def add(self, kind: str, content: bytes | memoryview = b"") -> None:
        self._sha.update(f"{kind}:{len(content)}:".encode())
        self._sha.update(content)

    def feed(self, value: Any) -> None:
        """Add any value.

        Raises:
            ValueError: if it has no content to read.
        """
        if isinstance(value, Tensor | np.ndarray):
            self._feed_array(value)
        elif isinstance(value, Image.Image):
            _feed_image(self, value)
        elif isinstance(value, bytes | bytearray | memoryview):
            self.add("bytes", memoryview(value).cast("B"))
        elif isinstance(value, Enum):
            self.add("enum", f"{_name_of(type(value))} {value.name}".encode())
        elif value is None or isinstance(value, str | numbers.Number | range | slice | np.generic):
            self.add(type(value).__name__, repr(value).encode())
        elif isinstance(value, torch.dtype | torch.device | torch.Size | Path):
            self.add(type(value).__name__, str(value).encode())
        elif isinstance(value, Mapping):
            self._feed_all("mapping", chain.from_iterable(sorted(value.items(), key=lambda item: str(item[0]))))
        elif isinstance(value, list | tuple):
            self._feed_all("sequence", value)
        elif isinstance(value, Set):
            self._feed_all("set", sorted(value, key=str))
        else:
            self._feed_object(value)

    def _feed_all(self, kind: str, values: Iterable) -> None:
        self.add(kind)
        for value in values:
            self.feed(value)
        self.add("end")

    def _feed_array(self, array: Tensor | np.ndarray) -> None:
        if isinstance(array, Tensor):
            shape, dtype = array.shape, array.dtype
            array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        elif array.dtype.hasobject:
            raise ValueError("it holds an array of Python objects.")
        else:
            shape, dtype, array = array.shape, array.dtype, np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.add("array", f"{dtype} {tuple(shape)}".encode())
        self.add("values", memoryview(array))

    def _feed_object(self, value: Any) -> None:
        """A class, a function, or an object with what it holds."""
        own_name = getattr(value, "fingerprint", None)
        if isinstance(own_name, str):
            self.add("named", own_name.encode())
        elif isinstance(value, functools.partial):
            self._feed_all("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._feed_all("method", (value.__func__.__name__, value.__self__))
        elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            self.add("code", _known_name(value).encode())
        else:
            self.add("object", _known_name(type(value)).encode())
            # Image processors hold classes and functions that say nothing of what they do.
            state = value.to_dict() if hasattr(value, "to_dict") else getattr(value, "__dict__", None)
            if state is None:
                raise ValueError(f"it holds a {type(value).__name__}, whose parameters cannot be read.")
            self.feed(state)


def _feed_image(digest: _Digest, image: Any) -> None:
    """An image as a row holds it: encoded, as a path, decoded, or as pixels."""
    if isinstance(image, Mapping):
        data = image.get("bytes")
        image = image.get("path") if data is None else data
    if isinstance(image, str | Path):
        _feed_file(digest, str(image))
        return
    if not isinstance(image, Image.Image):
        digest.feed(image)
        return
    try:
        palette = image.getpalette(rawmode=None)
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        pixels = image.tobytes()
    except (OSError, SyntaxError, ValueError) as error:  # what decoding it will say, too
        digest.add("unreadable", str(error).encode())
        return
    digest.feed([image.mode, image.size, palette, image.info.get("transparency"), orientation])
    digest.add("pixels", pixels)


def _feed_file(digest: _Digest, path: str) -> None:
    file_hash = hashlib.sha256()
    try:
        if "://" in path:
            import fsspec  # it comes with huggingface_hub

            file = fsspec.open(path, "rb").open()
        else:
            file = open(path, "rb") if Path(path).is_file() else None  # opening a pipe would wait
        if file is None:
            digest.add("unreadable", path.encode())
            return
        with file:
            while chunk := file.read(_CHUNK):
                file_hash.update(chunk)
    except OSError as error:
        digest.add("unreadable", str(error).encode())
        return
    digest.add("file", file_hash.digest())


def _without_idle(fields: Any) -> Any:
    if isinstance(fields, Mapping):
        return {name: _without_idle(value) for name, value in fields.items() if name not in _IDLE_FIELDS}
    return fields


def _known_name(code: Any) -> str:
    """Name of a class or function that its library's version tells the content of."""
    module, name = getattr(code, "__module__", None) or "builtins", code.__qualname__
    if module.partition(".")[0] not in _PACKAGES or "<" in name:  # <lambda>, <locals>
        raise ValueError(f"it holds {module}.{name}, whose code may change while its name stays.")
    return _name_of(code)


def _name_of(code: Any) -> str:
    module = getattr(code, "__module__", None) or "builtins"
    package = module.partition(".")[0]
    version = __version__ if package == "hf_vitfm" else getattr(sys.modules.get(package), "__version__", "")
    return f"{package} {version} {module}.{code.__qualname__}"
