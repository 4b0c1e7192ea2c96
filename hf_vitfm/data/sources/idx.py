"""The files of MNIST and its kin: `train-images-idx3-ubyte.gz` beside `train-labels-idx1-ubyte.gz`."""

import gzip
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .splits import split_of


if TYPE_CHECKING:
    from datasets import Dataset

_IMAGES = re.compile(r"(?P<part>.*?)images(?P<mark>[-.])idx3-ubyte(?P<gz>\.gz)?")
_MOST_BYTES = 1 << 36


def is_idx_images(path: Path) -> bool:
    """Tell from its name whether a file holds images in this format."""
    return _IMAGES.fullmatch(path.name) is not None


def open_idx(datasets: Any, files: list[Path], labels: bool) -> dict[str, "Dataset"]:
    """Open files of images and, with `labels`, those of labels beside them; t10k is the split test.

    Raises:
        ValueError: if a file is corrupt, two files are the same split, or images and labels differ in number.
        FileNotFoundError: if there is no file of labels.
    """
    splits = {}
    for file in files:
        split = "test" if "t10k" in file.name else split_of(file.name)
        if split in splits:
            raise ValueError(f"{file} is a second file of images for the split {split}; move one elsewhere.")
        pixels = _read(file, dimensions=3)
        columns = {"image": [{"bytes": data, "path": None} for data in _portable_greymaps(pixels)]}
        if labels:
            columns["label"] = _read_labels(file, len(pixels))
        splits[split] = datasets.Dataset.from_dict(columns, split=datasets.Split(split)).cast_column(
            "image", datasets.Image()
        )
    return splits


def _portable_greymaps(pixels: np.ndarray) -> list[bytes]:
    """Encode (images, height, width) without loss in the format with the least to it, a header before the pixels."""
    _, height, width = pixels.shape
    header = f"P5\n{width} {height}\n255\n".encode()
    return [header + image.tobytes() for image in pixels]


def _read_labels(images: Path, number: int) -> np.ndarray:
    match = _IMAGES.fullmatch(images.name)
    stems = [f"{match['part']}labels{match['mark']}idx1-ubyte{gz}" for gz in (match["gz"] or "", ".gz", "")]
    file = next((images.with_name(stem) for stem in stems if images.with_name(stem).exists()), None)
    if file is None:
        raise FileNotFoundError(
            f"there is no {stems[0]} beside {images}. Put it there, or open the images without labels (`labels=False`)."
        )
    labels = _read(file, dimensions=1)
    if len(labels) != number:
        raise ValueError(f"{file} holds {len(labels)} labels for the {number} images of {images}.")
    return labels.astype(np.int64)


def _read(path: Path, dimensions: int) -> np.ndarray:
    """Read an array of bytes: two zeros, type 8, the number of dimensions, their sizes (big-endian), the data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(4 + 4 * dimensions)
            if len(start) < 4 + 4 * dimensions or start[:4] != bytes((0, 0, 8, dimensions)):
                raise ValueError(f"it does not begin as {dimensions}-dimensional idx data of bytes does")
            shape = np.frombuffer(start, ">u4", offset=4).astype(object)  # Python's integers do not overflow
            size = int(np.prod(shape))
            if size > _MOST_BYTES:
                raise ValueError(f"it declares {size} bytes")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is no idx file that can be read: {error}.") from error
    if len(data) != size:
        raise ValueError(
            f"{path} is no whole idx file: it declares {size} bytes and holds {'more' if len(data) > size else len(data)}."
        )
    return np.frombuffer(data, np.uint8).reshape([int(side) for side in shape])
