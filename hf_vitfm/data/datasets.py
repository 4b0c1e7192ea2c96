"""Labelled image sets from wherever they lie, all in one form: splits with an `image` and a `label` column."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .columns import find_image_column, find_label_column, name_columns
from .labels import column, encode_labels, join_labels, names_in
from .samples import SAMPLE_NAMES, load_sample, require_datasets
from .sources.folder import open_image_folder
from .sources.idx import is_idx_images, open_idx
from .sources.parquet import open_parquet
from .sources.splits import IMAGE_SUFFIXES, SPLITS
from .sources.stream import HUB_ID, find_shards
from .sources.table import TABLE_SUFFIXES, open_tables
from .sources.tar import open_tars
from .sources.walk import walk_files


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Source = str | Path | Sequence[str | Path]


def load_images(
    source: Source,
    *,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    labels: bool = True,
    revision: str | None = None,
    config_name: str | None = None,
) -> "DatasetDict":
    """Open a set of labelled images.

    Folders named train, validation (val, valid) and test, and files with one of these words in their path below
    `source`, become splits; what has none becomes train. Local data is opened without the network.

    Args:
        source: the name of a set that ships with the package ("./emoji" is a folder of that name), a folder of images
            (one subfolder per class, inside split folders or not), a folder of files of one of the following kinds, or
            one or several such files: parquet; tars in the manner of webdataset (also as a pattern,
            "train-{000..012}.tar"); MNIST's idx format. Or tables of paths (CSV, TSV, JSON lines), a folder written by
            `save_to_disk`, or a data set on the Hub, "namespace/name". To read without a copy see `open_stream`.
        image_column: name of the column of images. Default: the one column of type `datasets.Image`, or else the one
            called image or img. Encoded images in a column of bytes are decoded.
        label_column: name of the column of labels. Default: the one called label, labels, class or target, or else
            the one column of type `datasets.ClassLabel`. Several names are columns of numbers in 0..1, one per class.
        labels: False opens the images alone: no label is needed, folders are no classes (`file_name` is the path below
            `source`), and what labels there are stays as it is.
        revision: branch, tag or commit on the Hub.
        config_name: configuration of a data set on the Hub.

    Returns:
        The splits, named train, validation and test where they are these, with columns `image` and `label`; other
        columns are kept. Labels have the same class names and ids in every split: strings get the ids of their
        sorted names, integers without names keep their value and get it as their name. Lists of names, and several
        columns, become float vectors with a 1 for each class of the image. Floats and vectors stay. A split without
        any label, as test sets on the Hub have it (class ids of -1), stays as it is beside labelled ones.
        `label_names` gives the names of the classes.

    Raises:
        FileNotFoundError: if `source` is no existing path and no data set on the Hub.
        ValueError: if no images are found, a file is corrupt, or the columns of images or labels are not clear.
        ImportError: if `datasets` is not installed.
    """
    if not labels and label_column:
        raise ValueError(f"`label_column` {label_column} goes with labels; got `labels=False`.")
    name = label_column if isinstance(label_column, str) else None
    columns = {"image_column": image_column, "label_column": name}
    splits = open_splits(source, columns, labels, revision, config_name)
    return arrange_columns(splits, image_column, label_column, labels)


def arrange_columns(
    splits: dict[str, "Dataset"],
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    labels: bool = True,
) -> "DatasetDict":
    """Give splits, with the columns that they were stored with, the columns `image` and `label`.

    The other arguments, the result and the errors are those of `load_images`.
    """
    datasets = require_datasets()
    names = None if isinstance(label_column, str) or label_column is None else list(label_column)
    label_column = None if names else label_column
    features = next(iter(splits.values())).features
    image_column = find_image_column(datasets, features, image_column)
    if labels and not names:
        label_column = find_label_column(datasets, features, label_column, image_column)
    wanted = {image_column: "image"} | ({label_column: "label"} if labels and not names else {})
    splits = {split: name_columns(datasets, dataset, split, wanted) for split, dataset in splits.items()}
    if names:
        splits = join_labels(datasets, splits, names)
    elif labels:
        splits = encode_labels(datasets, splits)
    return datasets.DatasetDict(splits)


def open_splits(
    source: Source,
    columns: dict[str, str | None],
    labels: bool,
    revision: str | None = None,
    config_name: str | None = None,
) -> dict[str, "Dataset"]:
    """Open a set of images with its columns as they are; the arguments are those of `load_images`.

    Args:
        source: where the images are.
        columns: names given by the user or None, as `image_column`, `label_column` and `caption_column`.
        labels: whether folders are classes.
        revision: branch, tag or commit on the Hub.
        config_name: configuration of a data set on the Hub.

    Returns:
        The splits, none of them empty, under the names that `load_images` gives them.
    """
    datasets = require_datasets()
    if _is_on_hub(source):
        opened = _open_hub(datasets, source, revision, config_name)
    elif revision is not None or config_name is not None:
        raise ValueError(f"`revision` and `config_name` are for data sets on the Hub; {source} is a local path.")
    else:
        opened = _open_local(datasets, source, labels, partial(_open_files, datasets, columns=columns, labels=labels))
    return _rename_splits(source, opened)


def label_names(dataset: Any) -> list[str] | None:
    """The names of the classes of a data set or stream, in the order of the model's outputs.

    Args:
        dataset: rows with a column `label` (or `labels`): class ids, or vectors with a place per class, as
            `load_images` makes them, also after `select`, `map` and the like; or what `open_stream` gives.

    Returns:
        The names; None where the labels are plain numbers, or the rows do not say what they hold.
    """
    features = getattr(dataset, "features", None) or {}
    return names_in(features.get("label") or features.get("labels"))


def split_off(dataset: "Dataset", share: float, seed: int, label_column: str = "label") -> tuple["Dataset", "Dataset"]:
    """Hold rows out of a data set, the same share of every class.

    Args:
        dataset: rows with class ids.
        share: share of rows to hold out, in (0, 1). It holds exactly for the whole, and to less than one row for each
            class.
        seed: chooses the rows; the same seed gives the same rows.
        label_column: name of the column of class ids.

    Returns:
        The rows that stay and the rows held out, both in their old order.

    Raises:
        ValueError: if `share` is outside (0, 1), leaves one side empty, or the labels are no class ids.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must be in (0, 1); got {share!r}.")
    if label_column not in dataset.column_names:
        raise ValueError(f"`label_column` must be one of {', '.join(dataset.column_names)}; got {label_column!r}.")
    labels = np.asarray(column(dataset, label_column).to_pylist())
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"column {label_column!r} must hold one class id per row to hold out a share of every class.")
    total = round(share * len(labels))
    if not 0 < total < len(labels):
        raise ValueError(f"`share` {share} of {len(labels)} rows leaves one side empty; take another share.")
    classes, counts = np.unique(labels, return_counts=True)
    wanted = share * counts
    held = np.floor(wanted).astype(int)
    # Rounding down leaves a few rows to give: to the classes that lost most by it.
    held[np.argsort(held - wanted, kind="stable")[: total - held.sum()]] += 1
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in zip(classes, held, strict=True)
    ]
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[np.concatenate(chosen)] = True
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


def _is_on_hub(source: Source) -> bool:
    """Whether a source can only be a data set on the Hub."""
    is_local = not isinstance(source, str) or source in SAMPLE_NAMES or Path(source).expanduser().exists()
    return not is_local and HUB_ID.fullmatch(source) is not None


def _open_hub(datasets: Any, source: str, revision: str | None, config_name: str | None) -> dict[str, "Dataset"]:
    nothing_here = f"{source!r} is no local path (there is nothing at {Path(source).expanduser().absolute()})"
    try:
        return datasets.load_dataset(source, name=config_name, revision=revision)
    except FileNotFoundError as error:  # datasets' own classes for "not on the Hub" derive from it
        raise FileNotFoundError(f"{nothing_here} and no data set on the Hub: {error}") from error
    except ConnectionError as error:
        raise ConnectionError(f"{nothing_here}, and the Hub could not be asked: {error}") from error


def _open_local(datasets: Any, source: Source, labels: bool, open_files: Callable) -> dict[str, "Dataset"]:
    if not isinstance(source, str | Path):
        return open_files({Path(file): Path(file).name for file in source})
    if source in SAMPLE_NAMES:  # also where a folder of that name exists: a result must not hang on the working folder
        return load_sample(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(datasets, path, labels, open_files)
    if path.exists():
        return open_files({path: path.name})
    if path.name.endswith((".tar", ".parquet")) and any(mark in str(source) for mark in "*{"):
        return open_files({Path(file): Path(file).name for file in find_shards(source)})
    raise FileNotFoundError(
        f"`source` must be an existing path, one of {', '.join(SAMPLE_NAMES)}, or the id of a data set on the "
        f'Hub, "namespace/name"; got {str(source)!r}.'
    )


def _open_folder(datasets: Any, path: Path, labels: bool, open_files: Callable) -> dict[str, "Dataset"]:
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path))
    if (path / "state.json").is_file():
        dataset = datasets.load_from_disk(str(path))
        return {str(dataset.split or "train"): dataset}
    images, files = [], {}
    for file in walk_files(path):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            images.append(file.relative_to(path))
        elif file.suffix.lower() in (".parquet", ".tar") or is_idx_images(file):
            files[file] = str(file.relative_to(path))
    if images:
        return open_image_folder(datasets, path, images, labels)
    if not files:
        raise ValueError(
            f"no images in {path}: it must hold image files ({', '.join(sorted(IMAGE_SUFFIXES))}), parquet files, "
            "tars, MNIST's idx files, or what `save_to_disk` writes."
        )
    return open_files(files)


def _open_files(
    datasets: Any, files: dict[Path, str], *, columns: dict[str, str | None], labels: bool
) -> dict[str, "Dataset"]:
    """Open files of one kind, given with the part of their path that may name their split."""
    if not files:
        raise ValueError("`source` must name at least one file; got an empty list.")
    lacking = next((file for file in files if not file.is_file()), None)
    if lacking is not None:
        raise FileNotFoundError(f"file {lacking} does not exist.")
    kinds = {"idx" if is_idx_images(file) else file.suffix.lower(): file for file in files}
    if len(kinds) > 1:
        raise ValueError(f"files of one kind are opened at a time; got {', '.join(map(str, kinds.values()))}.")
    (kind,) = kinds
    if kind == "idx":
        return open_idx(datasets, list(files), labels)
    if kind == ".tar":
        return open_tars(datasets, files, columns.get("label_column"), columns.get("caption_column"))
    if kind in TABLE_SUFFIXES:
        return open_tables(datasets, files, columns.get("image_column"))
    if kind == ".parquet":
        return open_parquet(datasets, files)
    raise ValueError(
        f"`source` must be a folder, or files that end in .parquet, .tar, {', '.join(TABLE_SUFFIXES)} or "
        f"images-idx3-ubyte; got the file {kinds[kind]}."
    )


def _rename_splits(source: Source, splits: dict[str, "Dataset"]) -> dict[str, "Dataset"]:
    named = {}
    for split, dataset in splits.items():
        name = SPLITS.get(split, split)
        if name in named:
            raise ValueError(f"`source` {source} has more than one split that means {name}; got {', '.join(splits)}.")
        named[name] = dataset
    empty = [split for split, dataset in named.items() if len(dataset) == 0]
    if empty or not named:
        raise ValueError(f"`source` {source} holds no rows" + (f" in {', '.join(empty)}." if empty else "."))
    return named
