"""Labels as numbers: class ids, or for several labels per image vectors of zeros and ones, with their names."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset

# More classes than any set of images has; a larger id is a mistake, unless the ids are about as many.
_MANY_CLASSES = 100_000
_SPARSE = 10


def names_in(feature: Any) -> list[str] | None:
    """The names that the feature of a label column holds: of class ids, or of the places of a vector; or None."""
    names = getattr(feature, "names", None)
    identifier = getattr(getattr(feature, "feature", None), "id", None)
    if names is None and isinstance(identifier, str) and identifier.startswith("["):
        names = json.loads(identifier)
    return None if names is None else list(names)


def _vector_feature(datasets: Any, names: Sequence[str]) -> Any:
    # `id` is the one field of a feature that is free. That of a value is kept wherever features are, in files too;
    # that of a list gets lost.
    return datasets.List(datasets.Value("float32", id=json.dumps(list(names))))


def encode_labels(datasets: Any, splits: dict[str, "Dataset"]) -> dict[str, "Dataset"]:
    """Give the column `label` the same names and numbers in every split; see `load_images` for what becomes what.

    Raises:
        ValueError: if the splits differ, a label is missing or no label, or a class id is absurdly large.
    """
    features = [dataset.features["label"] for dataset in splits.values()]
    first = features[0]
    if any(feature != first for feature in features):
        raise ValueError(f"the labels of the splits {', '.join(splits)} differ in type or names: {features}.")
    if isinstance(first, dict | datasets.Image):
        raise ValueError(f"labels must be strings, integers, floats or vectors; got {first}.")
    if isinstance(first, datasets.List | datasets.LargeList):
        return _encode_lists(datasets, splits, first)
    if isinstance(first, datasets.ClassLabel):
        _check_labelled(splits)
    if not isinstance(first, datasets.Value) or first.dtype.startswith("float"):
        return splits
    columns = {split: column(dataset, "label") for split, dataset in splits.items()}
    _check_complete(columns)
    values = sorted(set().union(*(labels.unique().to_pylist() for labels in columns.values())))
    if "int" in first.dtype:
        _check_ids(columns, values)
        values = range(values[-1] + 1)
    elif first.dtype not in ("string", "large_string", "string_view", "bool"):
        raise ValueError(f"labels must be strings, integers, floats or vectors; got {first.dtype}.")
    ids = {value: i for i, value in enumerate(values)}
    feature = datasets.ClassLabel(names=[str(value) for value in values])
    encoded = {split: [ids[value] for value in labels.to_pylist()] for split, labels in columns.items()}
    return _replace(splits, encoded, feature)


def join_labels(datasets: Any, splits: dict[str, "Dataset"], names: Sequence[str]) -> dict[str, "Dataset"]:
    """Make one column `label` of vectors from several columns of numbers in 0..1, one per class.

    Raises:
        ValueError: if a column does not exist or holds something else.
    """
    encoded = {}
    for split, dataset in splits.items():
        lacking = [name for name in names if name not in dataset.column_names]
        if lacking:
            raise ValueError(f"split {split} has no column {lacking[0]!r}; it has {', '.join(dataset.column_names)}.")
        vectors = np.empty((len(dataset), len(names)), dtype=np.float32)
        for place, name in enumerate(names):
            values = column(dataset, name).to_pylist()
            wrong = [
                i for i, value in enumerate(values) if not isinstance(value, bool | int | float) or not 0 <= value <= 1
            ]
            if wrong:
                raise ValueError(
                    f"row {wrong[0]} of split {split} has {values[wrong[0]]!r} in the column {name!r}; columns that "
                    "say whether an image is of a class hold numbers in 0..1."
                )
            vectors[:, place] = values
        encoded[split] = vectors.tolist()
    splits = {split: dataset.remove_columns(list(names)) for split, dataset in splits.items()}
    return _replace(splits, encoded, _vector_feature(datasets, names))


def count_unlabelled(dataset: "Dataset") -> int:
    """Rows whose class id is missing or below 0, as -1 says on the Hub; other kinds of labels have none."""
    import pyarrow.compute  # datasets depends on it

    labels = column(dataset, "label")
    if not hasattr(dataset.features["label"], "names"):
        return 0
    return labels.null_count + (pyarrow.compute.sum(pyarrow.compute.less(labels, 0)).as_py() or 0)


def column(dataset: "Dataset", name: str) -> Any:
    """Read one column as an arrow array, without decoding anything."""
    return dataset.select_columns(name).with_format("arrow")[:].column(name)


def _encode_lists(datasets: Any, splits: dict[str, "Dataset"], feature: Any) -> dict[str, "Dataset"]:
    """Lists of class names or of class ids to vectors; lists of plain numbers stay."""
    inner = feature.feature
    is_named = isinstance(inner, datasets.ClassLabel)
    if not is_named and getattr(inner, "dtype", None) not in ("string", "large_string", "string_view"):
        return splits
    columns = {split: column(dataset, "label") for split, dataset in splits.items()}
    _check_complete(columns)
    lists = {split: labels.to_pylist() for split, labels in columns.items()}
    if is_named:
        names, ids = inner.names, {i: i for i in range(len(inner.names))}
    else:
        names = sorted({name for labels in lists.values() for row in labels for name in row if name is not None})
        ids = {name: i for i, name in enumerate(names)}
    encoded = {}
    for split, labels in lists.items():
        vectors = np.zeros((len(labels), len(names)), dtype=np.float32)
        for number, row in enumerate(labels):
            unknown = [value for value in row if value not in ids]
            if unknown:
                raise ValueError(f"row {number} of split {split} has the label {unknown[0]!r}, which is no class.")
            vectors[number, [ids[value] for value in row]] = 1
        encoded[split] = vectors.tolist()
    return _replace(splits, encoded, _vector_feature(datasets, names))


def _replace(splits: dict[str, "Dataset"], labels: dict[str, list], feature: Any) -> dict[str, "Dataset"]:
    return {
        split: (dataset.remove_columns("label") if "label" in dataset.column_names else dataset).add_column(
            "label", labels[split], feature=feature
        )
        for split, dataset in splits.items()
    }


def _check_complete(columns: dict[str, Any]) -> None:
    for split, labels in columns.items():
        if labels.null_count:
            raise ValueError(f"{labels.null_count} of {len(labels)} rows of split {split} have no label; remove them.")


def _check_labelled(splits: dict[str, "Dataset"]) -> None:
    """Classes that are named are complete, but for splits with no label at all beside others."""
    counts = {split: count_unlabelled(dataset) for split, dataset in splits.items()}
    is_alone = all(counts[split] == len(dataset) for split, dataset in splits.items())
    for split, dataset in splits.items():
        if counts[split] and (is_alone or split == "train" or counts[split] < len(dataset)):
            raise ValueError(
                f"{counts[split]} of {len(dataset)} rows of split {split} have no label (None or -1); remove them, or "
                "open the images alone with `labels=False`."
            )


def _check_ids(columns: dict[str, Any], values: list[int]) -> None:
    if values[0] < 0:
        raise ValueError(f"class ids must be 0 or more; got {values[0]}. Remove rows that are not labelled.")
    if values[-1] >= max(_MANY_CLASSES, _SPARSE * len(values)):
        split, row = next(
            (split, labels.index(values[-1]).as_py())
            for split, labels in columns.items()
            if labels.index(values[-1]).as_py() >= 0
        )
        raise ValueError(
            f"row {row} of split {split} has the class id {values[-1]}, and there are {len(values)} different ids. A "
            "classifier needs an output for every id up to the largest: number the classes from 0."
        )
