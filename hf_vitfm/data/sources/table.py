"""Tables of text (CSV, TSV, JSON lines) with a column of paths to image files, or of images as data URLs."""

import base64
import csv
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..columns import IMAGE_NAMES
from .splits import split_of


if TYPE_CHECKING:
    from datasets import Dataset

TABLE_SUFFIXES = (".csv", ".jsonl", ".tsv")
_PATH_NAMES = (*IMAGE_NAMES, "file_name", "filename", "file", "filepath", "path", "image_path")


def open_tables(datasets: Any, files: dict[Path, str], image_column: str | None) -> dict[str, "Dataset"]:
    """Open tables, given with the part of their path that may name their split.

    Args:
        datasets: the library.
        files: the tables. Paths in them start at the folder of the table; "data:image/png;base64,..." is an image
            itself. In CSV and TSV, columns of numbers are recognised; empty cells have no value.
        image_column: name of the column of paths; by default image, img, file_name, filename, file, filepath, path
            or image_path.

    Raises:
        ValueError: if a table cannot be read or has no column of paths; the message names it.
        FileNotFoundError: if the first image of a table does not exist.
    """
    rows = defaultdict(list)
    for file, name in files.items():
        content = _read(file)
        if image_column is None:
            image_column = next((name for name in _PATH_NAMES if name in content[0]), None)
        if image_column not in content[0]:
            remedy = "Name the one with the paths of the images as `image_column`."
            if len(content[0]) == 1 and re.search("[;\t]", next(iter(content[0]))):
                remedy = "Cells of a .csv are separated by commas, those of a .tsv by tabs."
            raise ValueError(
                f"{file} has no column {image_column or 'of paths'}; the columns are {', '.join(content[0])}. {remedy}"
            )
        rows[split_of(name)] += [_with_image(row, file, i, image_column) for i, row in enumerate(content)]
    splits = {}
    for split, values in rows.items():
        try:
            dataset = datasets.Dataset.from_list(values, split=datasets.Split(split))
        except (TypeError, ValueError) as error:  # of pyarrow
            raise ValueError(f"a column of {', '.join(map(str, files))} mixes types: {error}") from error
        splits[split] = dataset.cast_column(image_column, datasets.Image())
    return splits


def _read(file: Path) -> list[dict]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = (
                _json_lines(lines) if file.suffix.lower() == ".jsonl" else _cells(lines, file.suffix.lower() == ".tsv")
            )
    except (ValueError, csv.Error) as error:  # broken UTF-8 and JSON are ValueErrors
        raise ValueError(f"{file} cannot be read: {error}.") from error
    if not rows:
        raise ValueError(f"{file} holds no rows.")
    return rows


def _with_image(row: dict, file: Path, number: int, column: str) -> dict:
    path = row.get(column)
    if not isinstance(path, str) or not path:
        raise ValueError(f"row {number} of {file} has no path in the column {column!r}; got {path!r}.")
    if path.startswith("data:"):
        return {**row, column: {"bytes": _decode_data_url(path, f"row {number} of {file}"), "path": None}}
    path = path if "://" in path else str(file.absolute().parent / path)
    if number == 0 and "://" not in path and not Path(path).exists():
        raise FileNotFoundError(f"row 0 of {file} names the image {path}, which does not exist.")
    return {**row, column: {"bytes": None, "path": path}}


def _decode_data_url(url: str, name: str) -> bytes:
    head, _, content = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError(f"it begins with {head[:40]!r}")
        return base64.b64decode(content, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise ValueError(
            f'{name} holds a data URL that is not "data:...;base64,..." as it should be: {error}.'
        ) from error


def _json_lines(lines: Any) -> list[dict]:
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} holds {row!r}, not an object")
            rows.append(row)
    return rows


def _cells(lines: Any, tabs: bool) -> list[dict]:
    reader = csv.DictReader(lines, delimiter="\t" if tabs else ",", strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have the same name: {', '.join(names)}")
    rows = []
    for row in reader:
        if None in row or None in row.values():  # how the reader marks too many and too few
            raise ValueError(f"line {reader.line_num} does not have {len(names)} cells as the first line has")
        rows.append(row)
    types = {name: _type_of([row[name] for row in rows]) for name in names}
    return [{name: types[name](value) if value else None for name, value in row.items()} for row in rows]


def _type_of(values: list[str]) -> type:
    values = [value for value in values if value]
    if any(re.fullmatch(r"0\d+", value) for value in values):
        return str  # "007" is a name
    if values and all(re.fullmatch(r"-?\d+", value) for value in values):
        return int
    try:
        return float if values and all(map(math.isfinite, map(float, values))) else str
    except ValueError:
        return str
