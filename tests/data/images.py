"""Encoded images and files of them for tests of what reads them."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def noise(height=8, width=8, seed=0, channels=3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image, kind="png", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_png(level: int) -> bytes:
    """A grey image whose level tells which row it is."""
    return encode(Image.new("L", (4, 4), level))


def write_tar(path, members: dict) -> None:
    """Write a tar; values are bytes, text, or something for JSON."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = content if isinstance(content, bytes | str) else json.dumps(content)
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
