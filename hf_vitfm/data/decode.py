"""Encoded images to PIL images; whatever is wrong with one is said in a single kind of error that names it."""

import io
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


_BYTES = bytes | bytearray | memoryview
IMAGE_SOURCES = Image.Image | _BYTES | str | Path | Mapping | None  # what `decode_image` takes


class BadImageError(ValueError):
    """An image that cannot be used; the message names its path or row, and the reason.

    It is made from one string, so that it comes through the worker processes of a loader as it is.
    """


def decode_image(source: Any, name: str | None = None) -> Image.Image:
    """Decode an image: the first frame of an animation, upright as its EXIF orientation says, loaded in full.

    The colours stay as they are stored (palette, CMYK, 16 bits, ...); `build_transform` converts them.

    Args:
        source: encoded bytes, a path (local, or one with "://" that fsspec opens), a dictionary with `bytes` and
            `path` as `datasets` holds images, of which the bytes go first, or a PIL image.
        name: what to call the image in an error; by default its path.

    Returns:
        The image, independent of any open file.

    Raises:
        BadImageError: if it is missing, empty, truncated, no image, or larger than Pillow's limit against
            decompression bombs (twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million pixels).
        TypeError: if `source` is something else.
    """
    name, source = _name(source, name), _content(source)
    if not isinstance(source, IMAGE_SOURCES):
        raise TypeError(f"an image must be bytes, a path, a dictionary of these or a PIL image; got {type(source)}.")
    try:
        if isinstance(source, Image.Image):
            source.load()
            return _upright(source)
        with _open(source) as file, Image.open(file) as image:
            image.load()
        return _upright(image)
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # Pillow's formats raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise BadImageError(f"{name} cannot be decoded: {_reason(source, error)}.") from error


def _content(source: Any) -> Any:
    if not isinstance(source, Mapping):
        return source
    data = source.get("bytes")
    return source.get("path") if data is None else data


def _name(source: Any, name: str | None) -> str:
    path = source.get("path") if isinstance(source, Mapping) else source
    path = path if isinstance(path, str | Path) else None
    if name is None:
        return "an image without a path" if path is None else str(path)
    return name if path is None else f"{name} ({path})"


def _open(source: Any) -> Any:
    if source is None:
        raise ValueError("it has neither bytes nor a path")
    if isinstance(source, _BYTES):
        if len(source) == 0:
            raise ValueError("it is empty (0 bytes)")
        return io.BytesIO(source)
    if "://" in str(source):
        import fsspec  # it comes with huggingface_hub

        return fsspec.open(str(source), "rb").open()
    status = os.stat(source)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for somebody to write to it
        raise ValueError("it is no regular file")
    if status.st_size == 0:
        raise ValueError("the file is empty (0 bytes)")
    return open(source, "rb")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, OSError, struct.error):  # broken notes about an image leave its pixels whole
        return image
    return image if orientation in (None, 1) else ImageOps.exif_transpose(image)


def _reason(source: Any, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, UnidentifiedImageError):
        start = f"; it begins with {bytes(source[:16])!r}" if isinstance(source, _BYTES) else ""
        return f"it is not an image in a format that Pillow reads{start}"
    if isinstance(error, Image.DecompressionBombError):
        return f"it is larger than Pillow allows; raise `PIL.Image.MAX_IMAGE_PIXELS` if it is meant ({error})"
    return str(error).rstrip(".") or type(error).__name__
