"""Opens shards of images as a stream: parquet files or tars in a folder, behind URLs, or on the Hub."""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from ..columns import find_caption_column, find_image_column, find_label_column
from ..samples import require_datasets
from ..shards import ParquetShard, TarShard, open_file, read_parquet_metadata
from ..streams import StreamRows
from .splits import SPLITS, split_of


HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BRACES = re.compile(r"\{([^{}]+)\}")
_OPENED_AT_A_TIME = 8


def open_stream(
    source: str | Path | Sequence[str | Path],
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    caption_column: str | None = None,
    window: int = 1024,
) -> StreamRows:
    """Open images, with labels or captions, that are too many to copy, for training in sequence (see `hf_vitfm.data.streams`).

    Args:
        source: a folder, a file, a pattern with `*` or braces ("train-{000..127}.tar") or a list of files, all of
            them local, URLs or `hf://datasets/...`; or a data set on the Hub, "namespace/name". The files are parquet
            or tars in the manner of webdataset.
        split: takes the files with this word (train, validation, val, valid, test) in their path below `source`;
            files without any such word are train. A pattern and a list are taken whole.
        image_column: of parquet; found as `load_images` finds it.
        label_column: of parquet, or a field of the tars' `.json`. Rows need no label.
        label_names: names of the classes, by id; needed where labels are stored as names. By default those that
            parquet files of `datasets` hold.
        caption_column: of parquet, found as `load_pairs` finds it; or a field of the tars' `.json`, see `TarShard`. Rows
            need no caption.
        window: rows that are read and shuffled together.

    Returns:
        The rows: `image` still encoded, and `label` and `caption` if there are.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: if a file is corrupt or columns are not clear; the message names it.
        ImportError: if `datasets` is not installed.
    """
    paths = find_shards(source, split)
    if paths[0].endswith(".parquet"):
        columns, stored_names = _parquet_columns(paths[0], image_column, label_column, caption_column)
        label_names = label_names or stored_names
        build = lambda path: ParquetShard(path, *columns)  # noqa: E731
    else:
        build = lambda path: TarShard(path, label_column, caption_column)  # noqa: E731
    with ThreadPoolExecutor(_OPENED_AT_A_TIME) as pool:
        return StreamRows(list(pool.map(build, paths)), window, label_names)


def find_shards(source: str | Path | Sequence[str | Path], split: str = "train") -> list[str]:
    """List the parquet files or tars that `open_stream` takes from a source, sorted.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if there are both kinds.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}; got {split!r}.")
    if isinstance(source, str | Path):
        paths = _list(str(source), SPLITS[split])
    else:
        paths = [str(path) for path in source]
    paths = [path for path in paths if path.endswith((".parquet", ".tar"))]
    kinds = {Path(path).suffix for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"{source} holds both parquet files and tars; give a pattern that matches one kind.")
    if not paths:
        raise FileNotFoundError(f"there are no parquet files or tars of the split {split} at {source}.")
    return paths


def _list(source: str, split: str) -> list[str]:
    """Names of files that fsspec opens, sorted; local ones as absolute paths."""
    place = os.path.expanduser(source)
    is_on_hub = "://" not in place and not Path(place).exists() and HUB_ID.fullmatch(place) is not None
    try:
        paths = _find(f"hf://datasets/{place}" if is_on_hub else place, split)
    except OSError as error:
        if not is_on_hub:
            raise
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(f"{source!r} is no local path, and the Hub has no list of such a data set: {error}") from error
    return sorted({path.removeprefix("file://") for path in paths})


def _find(place: str, split: str) -> list[str]:
    from fsspec.core import url_to_fs

    patterns = expand_braces(place)
    filesystem, root = url_to_fs(patterns[0])
    if len(patterns) > 1 or "*" in place:  # web servers have no lists of files; names without * need none
        found = [path for part in patterns for path in (filesystem.glob(part) if "*" in part else [part])]
    else:
        root = root.rstrip("/")
        files = [root] if filesystem.isfile(root) else filesystem.find(root)
        found = [path for path in files if path == root or split_of(path[len(root) :]) == split]
    return [filesystem.unstrip_protocol(path) for path in found]


def expand_braces(pattern: str) -> list[str]:
    """Write out "{a,b}" and "{000..127}", as a shell does."""
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _parquet_columns(
    path: str, image: str | None, label: str | None, caption: str | None
) -> tuple[tuple[str, str | None, str | None], list | None]:
    """Columns of images, labels and captions (None: there is none), and the names of classes that the file holds."""
    import pyarrow.parquet

    datasets = require_datasets()
    read_parquet_metadata(path)  # for its error on a file that is none
    with open_file(path) as file:
        features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
    image = find_image_column(datasets, features, image)
    label = _if_any(find_label_column, datasets, features, label, image)
    caption = _if_any(find_caption_column, datasets, features, caption, image)
    return (image, label, caption), getattr(features.get(label), "names", None)


def _if_any(find: Callable, datasets: Any, features: Any, name: str | None, image: str) -> str | None:
    """A column that rows need not have: an error only if it was named."""
    try:
        return find(datasets, features, name, image)
    except ValueError:
        if name is not None:
            raise
        return None
