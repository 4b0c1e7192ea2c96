"""Opens the data sets of a suite: local copies in whatever form, sets that ship, and the Hub."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.datasets import arrange_columns, label_names, open_splits
from ..data.labels import column
from ..data.samples import load_sample, require_datasets
from ..data.sources.splits import SPLITS
from ..data.sources.stream import expand_braces
from .fingerprint import fingerprint_rows
from .suites import SuiteRow


if TYPE_CHECKING:
    from datasets import Dataset


class Unavailable(Exception):
    """A data set that cannot be had here; the message is the reason, for a table."""


class HubUnreachable(Unavailable):
    """The Hub does not answer, so that the next data set need not ask it."""


@dataclass(frozen=True)
class SuiteData:
    """An opened data set of a suite.

    Args:
        row: what the suite says of it.
        splits: `train`, `validation` and `test`, as far as there are; rows with `image` and `label`.
        source: where it was opened: a path, a Hub id or the name of a set that ships.
        notes: what differs from what the suite says, for the results.
    """

    row: SuiteRow
    splits: dict[str, "Dataset"]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def label_names(self) -> list[str] | None:
        """What the data set calls its classes; None if the labels are plain numbers."""
        return label_names(self.splits["test"])

    @property
    def num_classes(self) -> int:
        """Of the data as it was opened; of plain numbers without names, as many as the suite says."""
        if self.label_names is None and self.row.task == "multi_label":
            return len(self.splits["test"].select_columns("label")[0]["label"])
        return len(self.label_names or range(self.row.num_classes))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the content of every split."""
        return {split: fingerprint_rows(dataset) for split, dataset in self.splits.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Rows by split."""
        return {split: len(dataset) for split, dataset in self.splits.items()}


def open_row(
    row: SuiteRow, path: str | os.PathLike | None = None, first_rows: dict[str, int] | None = None
) -> SuiteData:
    """Open a data set of a suite.

    Args:
        row: of the suite.
        path: a local copy: what `load_images` opens, also in the layout of the row. None: what ships, or else the Hub.
        first_rows: how many rows of a split are used, by split; None or {}: all.

    Raises:
        Unavailable: if no path is given and the data set is nowhere to be had; `HubUnreachable` if it may be elsewhere.
        FileNotFoundError: if there is nothing at the path.
        ValueError: if there is no test split, a split is empty, or images or labels are not clear.
    """
    if path is not None:
        path = Path(path).expanduser()
        splits, source = _open_local(row, path), str(path)
    elif row.sample is not None:
        splits, source = load_sample(row.sample), row.sample
    elif row.hub is not None:
        splits, source = _open_hub(row), row.hub
    else:
        raise Unavailable(f"not given (--data {row.name}=PATH; {row.note or 'licence: ' + row.licence})")
    found, notes = {}, []
    for split in ("train", "validation", "test"):
        name = next((name for name in getattr(row, split) if name in splits), None)
        if name is not None:
            found[split] = name
    if "test" not in found and len(splits) == 1 and not row.train_size:
        found = {"test": next(iter(splits))}  # a set to test on only, in a folder without the name of a split
        if path is not None and (path / found["test"]).is_dir():  # a name that somebody gave it
            notes.append(f"no test split: all images of {found['test']!r} are tested on, and none is learnt from")
    if "test" not in found:
        raise ValueError(
            f"{row.name} must have a split {' or '.join(row.test)} to test on; {source} has {', '.join(splits)}."
        )
    if found.get("validation") == found["test"]:
        del found["validation"]
    arranged = _arrange(row, {split: splits[name] for split, name in found.items()})
    data = SuiteData(row, arranged, source)
    return _take_first(replace(data, notes=(*notes, *_differences(data, first_rows or {}))), first_rows or {})


def _open_local(row: SuiteRow, path: Path) -> dict[str, "Dataset"]:
    if not path.exists():
        raise FileNotFoundError(f"--data {row.name}={path}: there is nothing at this path.")
    if row.layout == "tables" and path.is_dir():
        tables = {split: _first_file(path, pattern) for split, pattern in row.files.items()}
        if all(tables.values()):
            columns = {"image_column": row.image_column}
            opened = {split: open_splits([file], columns, labels=True) for split, file in tables.items()}
            return {split: next(iter(splits.values())) for split, splits in opened.items()}
    return open_splits(path, {"label_column": row.label_column}, labels=True)


def _first_file(folder: Path, pattern: str) -> Path | None:
    return next((folder / name for name in expand_braces(pattern) if (folder / name).is_file()), None)


def _open_hub(row: SuiteRow) -> dict[str, "Dataset"]:
    """The splits that the row names files of, and no others, which may be many gigabytes."""
    from huggingface_hub import is_offline_mode

    datasets = require_datasets()
    if is_offline_mode():
        raise HubUnreachable(needs_network(row))
    try:
        splits = datasets.load_dataset(row.hub, row.config, data_files=row.files or None)
    except FileNotFoundError as error:  # datasets' own classes for "not on the Hub" derive from it
        raise Unavailable(f"{row.hub} is not on the Hub, or not for everybody: {_first_line(error)}") from error
    except OSError as error:  # ConnectionError is one
        raise HubUnreachable(f"{needs_network(row)}: {_first_line(error)}") from error
    return {SPLITS.get(split, split): dataset for split, dataset in splits.items()}


def needs_network(row: SuiteRow) -> str:
    """Why a data set of the Hub is not to be had, and what to do."""
    return f"needs the network ({row.hub}), or a copy (--data {row.name}=PATH)"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _arrange(row: SuiteRow, splits: dict[str, "Dataset"]) -> dict[str, "Dataset"]:
    """Columns `image` and `label`: those of the row's layout, or of a copy in another form, those found there."""
    present = next(iter(splits.values())).column_names
    image, label = (name if name in present else None for name in (row.image_column, row.label_column))
    return number_classes(dict(arrange_columns(splits, image, label)))


def number_classes(splits: dict[str, "Dataset"]) -> dict[str, "Dataset"]:
    """Folders named 0, 1, ..., 999 are class ids, which sorted as text they would not be (0, 1, 10, 100, ...)."""
    names = label_names(next(iter(splits.values()))) or []
    if not all(name.isdecimal() for name in names) or sorted(map(int, names)) != list(range(len(names))):
        return splits
    if list(map(int, names)) == list(range(len(names))):
        return splits
    datasets = require_datasets()
    feature = datasets.ClassLabel(names=list(map(str, range(len(names)))))
    numbered = {}
    for split, dataset in splits.items():
        labels = [int(names[label]) for label in column(dataset, "label").to_pylist()]
        numbered[split] = dataset.remove_columns("label").add_column("label", labels, feature=feature)
    return numbered


def _differences(data: SuiteData, first_rows: dict[str, int]) -> list[str]:
    """What the data has otherwise than the suite says."""
    row, notes = data.row, []
    if data.num_classes != row.num_classes:
        notes.append(f"{data.num_classes} classes, the suite says {row.num_classes}")
    if row.test_size and len(data.splits["test"]) != row.test_size:
        notes.append(f"{len(data.splits['test']):,} test images, the suite says {row.test_size:,}")
    # The paper's may be training and validation together.
    own = [len(data.splits[split]) for split in ("train", "validation") if split in data.splits]
    if own and not first_rows and row.train_size and row.train_size not in (own[0], sum(own)):
        notes.append(f"{own[0]:,} training images, the suite says {row.train_size:,}")
    return notes


def _take_first(data: SuiteData, first_rows: dict[str, int]) -> SuiteData:
    """Keep the first rows of train and validation; where there is no validation, those behind the training rows."""
    if not first_rows or "train" not in data.splits:
        return data
    splits, notes = dict(data.splits), list(data.notes)
    train, wanted, held = splits["train"], first_rows["train"], first_rows.get("validation", 0)
    needed = wanted + (held if "validation" not in splits else 0)
    labels = column(train, "label").to_pylist()
    if isinstance(labels[0], int) and len(set(labels[:needed])) < min(len(set(labels)), needed):
        notes.append(f"training rows are sorted: {needed} were drawn with seed 0, not the first {needed}")
        train = train.shuffle(seed=0)
    if "validation" in splits:
        splits["validation"] = splits["validation"].select(range(min(held, len(splits["validation"]))))
    elif held and len(train) > wanted:
        splits["validation"] = train.select(range(wanted, min(needed, len(train))))
        notes.append(f"no validation split: {len(splits['validation'])} training rows behind the first {wanted}")
    splits["train"] = train.select(range(min(wanted, len(train))))
    return replace(data, splits=splits, notes=tuple(notes))
