"""Tars of images in the manner of webdataset, for data sets small enough to copy; see `open_stream` for others."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..captions import is_text
from ..shards import TarShard
from .splits import split_of


if TYPE_CHECKING:
    from datasets import Dataset


def open_tars(
    datasets: Any, files: dict[Path, str], label_column: str | None, caption_column: str | None
) -> dict[str, "Dataset"]:
    """Copy the rows of tars to datasets' cache, from where they are read; nothing is extracted.

    Args:
        datasets: the library.
        files: tars with the part of their path that may name their split.
        label_column: field of the `.json` that is the label where there is no `.cls`, or "npy"; see `TarShard`.
        caption_column: field of the `.json` that is the caption, or "txt"; None: see `TarShard`.

    Raises:
        ValueError: if a file is no whole tar, or a tar holds no image; the message names it.
    """
    by_split = defaultdict(list)
    for file, name in files.items():
        # Size and time of change are part of what the cache goes by.
        by_split[split_of(name)].append((str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns))
    splits = {}
    for split, tars in by_split.items():
        shards = [TarShard(path, label_column, caption_column) for path, _, _ in tars]
        empty = [shard.path for shard in shards if not shard.num_rows]
        if empty:
            raise ValueError(f"{empty[0]} holds no image.")
        dataset = datasets.Dataset.from_generator(
            _images,
            features=datasets.Features({"image": datasets.Image()}),
            gen_kwargs={"tars": tuple(tars)},  # a list would be cut into parts
            split=datasets.Split(split),
        )
        fields = [(row.get("label"), row["caption"]) for shard in shards for row in shard.read_fields()]
        captions = _captions([caption for _, caption in fields])
        labels = _labels(shards[0].path, [label for label, _ in fields])
        for name, values in {caption_column or "caption": captions, label_column or "label": labels}.items():
            dataset = dataset if values is None else dataset.add_column(name, values)
        splits[split] = dataset
    return splits


def _captions(captions: list) -> list | None:
    """Captions as one type, text or lists of text, with None for everything else."""
    texts = [[caption] if isinstance(caption, str) else caption for caption in captions]
    texts = [text if isinstance(text, list) and all(map(is_text, text)) else None for text in texts]
    if not any(texts):
        return None
    if any(isinstance(caption, list) for caption in captions):
        return texts
    return [None if text is None else text[0] for text in texts]


def _labels(path: str, labels: list) -> list | None:
    if all(label is None for label in labels):
        return None
    if all(isinstance(label, str) and label.isdecimal() for label in labels):
        return [int(label) for label in labels]
    if len({type(label) for label in labels if label is not None}) > 1:
        raise ValueError(f"the labels in {path} and the tars beside it are of more than one type.")
    return labels


def _images(tars: tuple[tuple[str, int, int], ...]) -> Iterator[dict]:
    for path, _, _ in tars:
        shard = TarShard(path)
        for number in range(shard.num_rows):
            (row,) = shard.read(number, number + 1)
            yield {"image": row["image"]}
