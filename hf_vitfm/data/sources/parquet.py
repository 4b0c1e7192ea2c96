"""Parquet files."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .splits import split_of


if TYPE_CHECKING:
    from datasets import Dataset


def open_parquet(datasets: Any, files: dict[Path, str]) -> dict[str, "Dataset"]:
    """Open parquet files, given with the part of their path that may name their split.

    Raises:
        ValueError: if a file is no parquet file, or a split has no rows.
    """
    import pyarrow.parquet  # datasets depends on it

    by_split, rows = defaultdict(list), Counter()
    for file, name in files.items():
        split = split_of(name)
        try:
            rows[split] += pyarrow.parquet.read_metadata(file).num_rows
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is no parquet file that can be read: {error}") from error
        by_split[split].append(str(file.absolute()))
    empty = [split for split, number in rows.items() if not number]
    if empty:  # datasets would fail on it with words of its own
        raise ValueError(f"the parquet files hold no rows in {', '.join(empty)}: {', '.join(map(str, files))}.")
    # load_dataset("parquet", ...) would do the same, after a request to the network.
    return datasets.DatasetDict.from_parquet(dict(by_split))
