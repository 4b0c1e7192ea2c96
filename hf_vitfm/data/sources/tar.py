"""Tars of images in the manner of webdataset, for data sets small enough to copy; see `open_stream` for others."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..shards import TarShard
from .splits import split_of


if TYPE_CHECKING:
    from datasets import Dataset


def open_tars(datasets: Any, files: dict[Path, str], label_column: str | None) -> dict[str, "Dataset"]:
    """Copy the rows of tars to datasets' cache, from where they are read; nothing is extracted.

    Args:
        datasets: the library.
        files: tars with the part of their path that may name their split.
        label_column: field of the `.json` that is the label where there is no `.cls`.

    Raises:
        ValueError: if a file is no whole tar, or a tar holds no image; the message names it.
    """
    by_split = defaultdict(list)
    for file, name in files.items():
        # Size and time of change are part of what the cache goes by.
        by_split[split_of(name)].append((str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns))
    splits = {}
    for split, tars in by_split.items():
        shards = [TarShard(path, label_column) for path, _, _ in tars]
        empty = [shard.path for shard in shards if not shard.num_rows]
        if empty:
            raise ValueError(f"{empty[0]} holds no image.")
        features = {"image": datasets.Image()}
        if any(shard.has_captions for shard in shards):
            features["caption"] = datasets.Value("string")
        dataset = datasets.Dataset.from_generator(
            _rows,
            features=datasets.Features(features),
            gen_kwargs={"tars": tuple(tars), "columns": tuple(features)},  # lists would be cut into parts
            split=datasets.Split(split),
        )
        labels = _labels(shards)
        splits[split] = dataset if labels is None else dataset.add_column(label_column or "label", labels)
    return splits


def _labels(shards: list[TarShard]) -> list | None:
    labels = [label for shard in shards for label in shard.read_labels()]
    if all(label is None for label in labels):
        return None
    if all(isinstance(label, str) and label.isdecimal() for label in labels):
        return [int(label) for label in labels]
    if len({type(label) for label in labels if label is not None}) > 1:
        raise ValueError(f"the labels in {shards[0].path} and the tars beside it are of more than one type.")
    return labels


def _rows(tars: tuple[tuple[str, int, int], ...], columns: tuple[str, ...]) -> Iterator[dict]:
    for path, _, _ in tars:
        shard = TarShard(path)
        for number in range(shard.num_rows):
            (row,) = shard.read(number, number + 1)
            yield {name: row.get(name) for name in columns}
