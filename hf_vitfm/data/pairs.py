"""Sets of images with captions from wherever they lie, all in one form: splits with an `image` and a `caption` column."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .columns import find_caption_column, find_image_column, name_columns
from .datasets import Source, open_splits
from .samples import SAMPLE_NAMES, require_datasets
from .sources.table import TABLE_SUFFIXES, open_tables
from .sources.walk import walk_files


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_pairs(
    source: Source,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    revision: str | None = None,
    config_name: str | None = None,
) -> "DatasetDict":
    """Open a set of images with captions.

    Rows are not looked at here: one without a usable caption is dealt with where it is read, as one with a bad image is
    (`ImageView(..., captions=True)`).

    Args:
        source: what `load_images` takes: "emoji", parquet files, tars in the manner of webdataset, tables (CSV, TSV, JSON
            lines), folders of parquet or tars, a folder written by `save_to_disk`, a data set on the Hub. Also a folder
            with tables, such as a `metadata.csv` beside the images. To read without a copy see `open_stream`.
        image_column: name of the column of images; found as `load_images` finds it.
        caption_column: name of the column of captions. Default: the one called caption, or else the only one called
            captions, text, texts, txt, sentence, sentences, title, description or alt_text. Of tars it is a field of the
            `.json`, or "txt"; by default the `.txt`, or else the first of these names.
        revision: branch, tag or commit on the Hub.
        config_name: configuration of a data set on the Hub.

    Returns:
        The splits with columns `image` and `caption`; other columns are kept. Captions are strings, or lists of strings
        where images have several.

    Raises:
        FileNotFoundError: if `source` is no existing path and no data set on the Hub.
        ValueError: if no images are found, a file is corrupt, or the columns of images or captions are not clear.
        ImportError: if `datasets` is not installed.
    """
    datasets = require_datasets()
    columns = {"image_column": image_column, "caption_column": caption_column}
    is_plain = revision is None and config_name is None
    splits = _open_folder_of_tables(datasets, source, image_column) if is_plain else {}
    splits = splits or open_splits(source, columns, False, revision, config_name)
    pairs = {}
    for split, dataset in splits.items():
        image_column = find_image_column(datasets, dataset.features, image_column)
        caption_column = find_caption_column(datasets, dataset.features, caption_column, image_column)
        pairs[split] = name_columns(datasets, dataset, split, {image_column: "image", caption_column: "caption"})
    return datasets.DatasetDict(pairs)


def _open_folder_of_tables(datasets: Any, source: Source, image_column: str | None) -> dict[str, "Dataset"]:
    """The splits of the tables in a folder; none where it holds other files of rows, which `load_images` opens."""
    if not isinstance(source, str | Path) or source in SAMPLE_NAMES or not Path(source).expanduser().is_dir():
        return {}
    folder = Path(source).expanduser()
    files = list(walk_files(folder))
    if any(file.suffix.lower() in (".arrow", ".parquet", ".tar") for file in files):
        return {}
    tables = {file: str(file.relative_to(folder)) for file in files if file.suffix.lower() in TABLE_SUFFIXES}
    return open_tables(datasets, tables, image_column) if tables else {}
