"""Labelled image sets from wherever they lie, all in one form: splits with an `image` and a `label` column."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .samples import SAMPLE_NAMES, load_sample, require_datasets


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
_IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "class", "target")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

Source = str | Path | Sequence[str | Path]


def load_images(
    source: Source,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    config_name: str | None = None,
) -> "DatasetDict":
    """Open a set of labelled images.

    Folders named train, validation (val, valid) and test, and parquet files with one of these words in their path
    below `source`, become splits; what has none becomes train. Local data is opened without the network.

    Args:
        source: the name of a set that ships with the package ("./emoji" is a folder of that name), a folder of images
            (one subfolder per class, inside split folders or not), one or several parquet files, a folder of them, a
            folder written by `save_to_disk`, or a data set on the Hub, "namespace/name".
        image_column: name of the column of images. Default: the one column of type `datasets.Image`, or else the one
            called image or img. Encoded images in a column of bytes are decoded.
        label_column: name of the column of labels. Default: the one called label, labels, class or target, or else
            the one column of type `datasets.ClassLabel`.
        revision: branch, tag or commit on the Hub.
        config_name: configuration of a data set on the Hub.

    Returns:
        The splits, named train, validation and test where they are these, with columns `image` and `label`; other
        columns are kept. Labels have the same class names and ids in every split: strings get the ids of their
        sorted names, integers without names keep their value and get it as their name; floats and vectors stay.

    Raises:
        FileNotFoundError: if `source` is no existing path and has not the form of a Hub id.
        ValueError: if no images are found, or the columns of images or labels are not clear.
        ImportError: if `datasets` is not installed.
    """
    datasets = require_datasets()
    splits = _open(datasets, source, revision, config_name)
    named = {}
    for split, dataset in splits.items():
        name = _SPLITS.get(split, split)
        if name in named:
            raise ValueError(f"`source` {source} has more than one split that means {name}; got {', '.join(splits)}.")
        named[name] = dataset
    empty = [split for split, dataset in named.items() if len(dataset) == 0]
    if empty or not named:
        raise ValueError(f"`source` {source} holds no rows" + (f" in {', '.join(empty)}." if empty else "."))
    features = next(iter(named.values())).features
    image_column = _find_image_column(datasets, features, image_column)
    label_column = _find_label_column(datasets, features, label_column, image_column)
    named = {
        split: _name_columns(datasets, dataset, split, image_column, label_column) for split, dataset in named.items()
    }
    return datasets.DatasetDict(_encode_labels(datasets, named))


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
    labels = np.asarray(_column(dataset, label_column).to_pylist())
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


def _open(datasets: Any, source: Source, revision: str | None, config_name: str | None) -> dict[str, "Dataset"]:
    if not isinstance(source, str | Path):
        return _open_parquet(datasets, {Path(file): Path(file).name for file in source})
    if source in SAMPLE_NAMES:  # also where a folder of that name exists: a result must not hang on the working folder
        return load_sample(source)
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None or config_name is not None:
            raise ValueError(f"`revision` and `config_name` are for data sets on the Hub; {source} is a local path.")
        return _open_path(datasets, path)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"`source` must be an existing path, one of {', '.join(SAMPLE_NAMES)}, or the id of a data set on the "
            f'Hub, "namespace/name"; got {str(source)!r}.'
        )
    try:
        return datasets.load_dataset(source, name=config_name, revision=revision)
    except FileNotFoundError as error:  # datasets' own classes for "not on the Hub" derive from it
        raise FileNotFoundError(f"{source!r} is neither a local path nor a data set on the Hub: {error}") from error
    except ConnectionError as error:
        raise ConnectionError(f"{source!r} is no local path, and the Hub could not be asked: {error}") from error


def _open_path(datasets: Any, path: Path) -> dict[str, "Dataset"]:
    if path.is_file():
        return _open_parquet(datasets, {path: path.name})
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path))
    if (path / "state.json").is_file():
        dataset = datasets.load_from_disk(str(path))
        return {str(dataset.split or "train"): dataset}
    images, tables = [], {}
    for folder, subfolders, files in os.walk(path, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(file for file in files if not file.startswith(".")):
            suffix, file = Path(name).suffix.lower(), Path(folder, name)
            if suffix in _IMAGE_SUFFIXES:
                images.append(file.relative_to(path))
            elif suffix == ".parquet":
                tables[file] = str(file.relative_to(path))
    if not images and not tables:
        raise ValueError(
            f"no images in {path}: it must hold image files ({', '.join(sorted(_IMAGE_SUFFIXES))}), parquet files, "
            "or what `save_to_disk` writes."
        )
    return _open_image_folder(datasets, path, images) if images else _open_parquet(datasets, tables)


def _open_image_folder(datasets: Any, root: Path, files: list[Path]) -> dict[str, "Dataset"]:
    """Build the splits; datasets' own image folder reader goes by words anywhere in a path and asks the network."""
    depth = 1 if _has_split_folders(root, files) else 0
    rows = defaultdict(list)
    for file in files:
        if len(file.parts) < depth + 2:
            raise ValueError(
                f"image {root / file} lies in no class folder, so it has no label. "
                f"Put the images of {root / file.parent} into one subfolder per class."
            )
        rows[_SPLITS[file.parts[0].lower()] if depth else "train"].append(
            (file.parts[depth], str(root.absolute() / file))
        )
    names = sorted({name for split in rows.values() for name, _ in split})
    ids = {name: i for i, name in enumerate(names)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return {
        split: datasets.Dataset.from_dict(
            {"image": [file for _, file in rows[split]], "label": [ids[name] for name, _ in rows[split]]},
            features=features,
            split=datasets.Split(split),
        )
        for split in dict.fromkeys(_SPLITS.values())
        if split in rows
    }


def _has_split_folders(root: Path, files: list[Path]) -> bool:
    """Tell split folders from classes; a class may be called "train", but then images lie directly inside it."""
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    splits = {name for name in folders if name.lower() in _SPLITS}
    if splits != folders:
        flat = {file.parts[0] for file in files if len(file.parts) == 2}
        if splits - flat:
            raise ValueError(
                f"{root} holds split folders ({', '.join(sorted(splits - flat))}) beside other folders with images "
                f"({', '.join(sorted(folders - splits))}). Move one of the two elsewhere."
            )
        return False
    meanings = [_SPLITS[name.lower()] for name in splits]
    if len(set(meanings)) < len(meanings):
        raise ValueError(f"{root} has more than one folder for the same split: {', '.join(sorted(splits))}. Keep one.")
    return bool(splits)


def _open_parquet(datasets: Any, files: dict[Path, str]) -> dict[str, "Dataset"]:
    """Open parquet files, given with the part of their path that may name their split."""
    import pyarrow.parquet  # datasets depends on it

    by_split, rows = defaultdict(list), Counter()
    for file, name in files.items():
        if not file.is_file():
            raise FileNotFoundError(f"parquet file {file} does not exist.")
        if file.suffix.lower() != ".parquet":
            raise ValueError(f"`source` must be a folder or parquet files; got the file {file}.")
        splits = {_SPLITS[word] for word in re.split(r"[\W_]+", name.lower()) if word in _SPLITS}
        if len(splits) > 1:
            raise ValueError(f"the path of {file} names more than one split: {', '.join(sorted(splits))}. Rename it.")
        split = splits.pop() if splits else "train"
        try:
            rows[split] += pyarrow.parquet.read_metadata(file).num_rows
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is no parquet file that can be read: {error}") from error
        by_split[split].append(str(file.absolute()))
    if not rows:
        raise ValueError("`source` must name at least one parquet file; got an empty list.")
    empty = [split for split, number in rows.items() if not number]
    if empty:  # datasets would fail on it with words of its own
        raise ValueError(f"the parquet files hold no rows in {', '.join(empty)}: {', '.join(map(str, files))}.")
    # load_dataset("parquet", ...) would do the same, after a request to the network.
    return datasets.DatasetDict.from_parquet(dict(by_split))


def _find_image_column(datasets: Any, features: Any, name: str | None) -> str:
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is None:
        usual = [column for column in _IMAGE_NAMES if column in (typed or features)]
        found = typed if len(typed) == 1 else usual[:1]
        if not found:
            reason = f"several columns of images: {', '.join(typed)}" if typed else "no column of images"
            raise ValueError(f"{reason}; the columns are {', '.join(features)}. Name one as `image_column`.")
        name = found[0]
    if name not in features:
        raise ValueError(f"`image_column` must be one of {', '.join(features)}; got {name!r}.")
    if name not in typed and not _holds_bytes(datasets, features[name]):
        raise ValueError(f"column {name!r} must hold images or encoded bytes; it holds {features[name]}.")
    return name


def _holds_bytes(datasets: Any, feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _find_label_column(datasets: Any, features: Any, name: str | None, image_column: str) -> str:
    if name is None:
        usual = [column for column in _LABEL_NAMES if column in features and column != image_column]
        typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        found = usual[:1] or (typed if len(typed) == 1 else [])
        if not found:
            reason = f"several columns of class labels: {', '.join(typed)}" if typed else "no column of labels"
            raise ValueError(f"{reason}; the columns are {', '.join(features)}. Name one as `label_column`.")
        name = found[0]
    if name not in features or name == image_column:
        others = [column for column in features if column != image_column]
        raise ValueError(f"`label_column` must be one of {', '.join(others)}; got {name!r}.")
    return name


def _name_columns(datasets: Any, dataset: "Dataset", split: str, image_column: str, label_column: str) -> "Dataset":
    lacking = [name for name in (image_column, label_column) if name not in dataset.column_names]
    if lacking:
        raise ValueError(f"split {split} has no column {lacking[0]!r}; it has {', '.join(dataset.column_names)}.")
    wanted = {image_column: "image", label_column: "label"}
    hidden = [name for name in ("image", "label") if name in dataset.column_names and name not in wanted]
    dataset = dataset.remove_columns(hidden).rename_columns({old: new for old, new in wanted.items() if old != new})
    feature = dataset.features["image"]
    if not isinstance(feature, datasets.Image) or not feature.decode:
        dataset = dataset.cast_column("image", datasets.Image())
    return dataset


def _encode_labels(datasets: Any, splits: dict[str, "Dataset"]) -> dict[str, "Dataset"]:
    """Give class labels the same names and ids in every split."""
    features = [dataset.features["label"] for dataset in splits.values()]
    first = features[0]
    if any(feature != first for feature in features):
        raise ValueError(f"the labels of the splits {', '.join(splits)} differ in type or names: {features}.")
    if isinstance(first, dict | datasets.Image):
        raise ValueError(f"labels must be strings, integers, floats or vectors; got {first}.")
    if not isinstance(first, datasets.Value) or first.dtype.startswith("float"):
        return splits
    columns = {split: _column(dataset, "label") for split, dataset in splits.items()}
    for split, column in columns.items():
        if column.null_count:
            raise ValueError(f"{column.null_count} of {len(column)} rows of split {split} have no label; remove them.")
    values = sorted(set().union(*(column.unique().to_pylist() for column in columns.values())))
    if "int" in first.dtype:
        if values[0] < 0:
            raise ValueError(f"class ids must be 0 or more; got {values[0]}. Remove rows that are not labelled.")
        values = range(values[-1] + 1)
    elif first.dtype not in ("string", "large_string", "string_view", "bool"):
        raise ValueError(f"labels must be strings, integers, floats or vectors; got {first.dtype}.")
    ids = {value: i for i, value in enumerate(values)}
    label = datasets.ClassLabel(names=[str(value) for value in values])
    return {
        split: dataset.remove_columns("label").add_column(
            "label", [ids[value] for value in columns[split].to_pylist()], feature=label
        )
        for split, dataset in splits.items()
    }


def _column(dataset: "Dataset", name: str) -> Any:
    """Read one column as an arrow array, without decoding anything."""
    return dataset.select_columns(name).with_format("arrow")[:].column(name)
