"""Suites of data sets, as tables in `suites/*.yaml`: one row per data set, in the order of the paper."""

import difflib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml


_FOLDER = Path(__file__).parent / "suites"
SUITE_NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
TASKS = ("single_label", "multi_label")
LAYOUTS = ("webdataset", "parquet", "folder", "tables", "sample")
METRICS = ("accuracy", "mean_per_class", "map11", "roc_auc", "mean_top1_top5")


@dataclass(frozen=True)
class SuiteRow:
    """One data set of a suite: where it is, how it is laid out, how it is scored, and what the paper says of its size.

    Args:
        name: in `--data NAME=PATH` and in the results.
        title: in tables and figures.
        num_classes: of the paper.
        metric: one of `METRICS`.
        layout: the form in which it is published: "webdataset" (tars as clip-benchmark writes them), "parquet",
            "folder" (split/class/image), "tables" (JSON lines or CSV with paths), "sample" (ships with the package).
        tested: a fixture of this layout has been through the whole evaluation; otherwise results say "untested".
        task: one of `TASKS`.
        hub: id on the Hub; None where nobody may publish it, or nobody did.
        hub_status: what is known of that id: "page seen" or "not verified".
        config: configuration on the Hub.
        files: patterns of the files of each split, on the Hub and below a local folder of tables.
        sample: name for `load_sample`.
        train, validation, test: names of the splits; of several, the first that there is.
        image_column, label_column: None: found by type and usual names.
        train_size, test_size: images, of the paper.
        few_shot: counts among the sets with at least 16 images of every class.
        reassessed: the file of labels that replace the data set's, several or none per image (ImageNet-ReaL).
        imagenet_classes: which of ImageNet-1k's classes the row's are, in the order of WordNet ids; "all" in a file. None: other
            classes.
        group: part of the suite over which a mean is given too.
        content: what the images show, where these are no photographs.
        licence: a reminder.
        note: what differs from the paper.
    """

    name: str
    title: str
    num_classes: int
    metric: str
    layout: str
    tested: bool = False
    task: str = "single_label"
    hub: str | None = None
    hub_status: str = "not verified"
    config: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    sample: str | None = None
    train: tuple[str, ...] = ("train",)
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    image_column: str | None = None
    label_column: str | None = None
    train_size: int | None = None
    test_size: int | None = None
    few_shot: bool = False
    reassessed: str | None = None
    imagenet_classes: tuple[int, ...] | None = None
    group: str | None = None
    content: str = "photographs"
    licence: str = "not stated"
    note: str | None = None


@dataclass(frozen=True)
class Suite:
    """A table of data sets.

    Args:
        name: of the suite.
        title: in words.
        source: where the facts of the rows are from.
        rows: in the order of the paper.
        first_rows: how many rows of a split are used, by split; {} uses all.
        score: "mean" where the paper sums the suite up so.
    """

    name: str
    title: str
    source: str
    rows: tuple[SuiteRow, ...]
    first_rows: dict[str, int] = field(default_factory=dict)
    score: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of the rows."""
        return [row.name for row in self.rows]

    def select(self, names: list[str]) -> list[SuiteRow]:
        """The rows of these names, in the suite's order.

        Raises:
            ValueError: if a name is none of the rows'.
        """
        for name in names:
            if name not in self.names:
                raise ValueError(f"Suite {self.name} has no data set {unknown_name(name, self.names)}")
        return [row for row in self.rows if row.name in names]


def load_suite(name: str | os.PathLike) -> Suite:
    """Read a suite.

    Args:
        name: one of `SUITE_NAMES`, or the path of a YAML file of the same form as theirs.

    Raises:
        ValueError: if there is no such suite, or the file is not of this form.
    """
    path = _FOLDER / f"{name}.yaml" if str(name) in SUITE_NAMES else Path(name)
    if not path.is_file() or path.suffix != ".yaml":
        raise ValueError(f"There is no suite {unknown_name(str(name), SUITE_NAMES)} Or give a .yaml file of your own.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_form(content)
        rows = tuple(_row({**content.get("defaults", {}), **row}) for row in content["rows"])
        rest = {key: value for key, value in content.items() if key not in ("defaults", "rows")}
        suite = Suite(name=path.stem, rows=rows, **rest)
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no suite: {' '.join(str(error).split())}") from error
    if not rows or len(set(suite.names)) < len(rows):
        raise ValueError(f"{path} is no suite: it must have rows, and each a name of its own.")
    return suite


def _check_form(content: Any) -> None:
    """Refuse what is not a mapping with a list of rows, before its parts are taken for what they are not."""
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError("it must hold `title`, `source` and a list of `rows`")
    if not all(isinstance(part, dict) for part in (content.get("defaults", {}), *content["rows"])):
        raise ValueError("`defaults` and every row must hold fields with their values")
    first_rows = content.get("first_rows", {})
    if first_rows and not (isinstance(first_rows, dict) and _is_count(first_rows.get("train"))):
        raise ValueError(f"`first_rows` must hold a number of rows for `train`, at least; got {first_rows!r}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def unknown_name(name: str, known: Any) -> str:
    """The end of an error about a name that is not known: the name, what it may have meant, and what there is."""
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{name!r}.{hint} There are {', '.join(known)}."


def _with_tuples(values: dict) -> dict:
    """The same with tuples in place of lists, texts that stand for a list of one, and "all"."""
    values = dict(values)
    for split in ("train", "validation", "test"):
        if isinstance(values.get(split), str):
            values[split] = [values[split]]
        if split in values:
            values[split] = tuple(values[split])
    if "imagenet_classes" in values:
        given = values["imagenet_classes"]
        values["imagenet_classes"] = tuple(range(values["num_classes"])) if given == "all" else tuple(given)
        if len(values["imagenet_classes"]) != values["num_classes"]:
            raise ValueError(f"row {values.get('name')} must name as many `imagenet_classes` as it has classes")
    return values


def _row(values: dict) -> SuiteRow:
    values = _with_tuples(values)
    unknown = set(values) - {known.name for known in fields(SuiteRow)}
    if unknown:
        raise ValueError(f"row {values.get('name')} has unknown fields: {', '.join(sorted(unknown))}")
    row = SuiteRow(**values)
    for key in ("name", "title"):
        if not isinstance(getattr(row, key), str):
            raise ValueError(f"`{key}` of row {row.name} must be text, in quotation marks; got {getattr(row, key)!r}")
    if not _is_count(row.num_classes):
        raise ValueError(f"`num_classes` of row {row.name} must be a number above 0; got {row.num_classes!r}")
    if not isinstance(row.files, dict) or not row.test:
        raise ValueError(f"row {row.name} must have patterns in `files` by split, if any, and a `test` split")
    for key, allowed in (("task", TASKS), ("layout", LAYOUTS), ("metric", METRICS)):
        if getattr(row, key) not in allowed:
            raise ValueError(
                f"`{key}` of row {row.name} must be one of {', '.join(allowed)}; got {getattr(row, key)!r}"
            )
    return row
