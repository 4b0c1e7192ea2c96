"""Shards of a data set too large to copy: parquet files and tars of images, read in ranges of rows where they lie.

Paths are what fsspec opens: local ones, URLs, `hf://datasets/...`. A shard holds no open file, so that it can go to
worker processes. Nothing is ever extracted to disk.
"""

import io
import json
import logging
import tarfile
from typing import Any, BinaryIO

import numpy as np

from .columns import CAPTION_NAMES, LABEL_NAMES
from .sources.splits import IMAGE_SUFFIXES


# Members of a tar beside the image: a class, a dictionary with a class, a caption, numbers (the conventions of webdataset).
_TAR_FIELDS = ("image", "cls", "json", "txt", "npy")
# Columns that a field of a `.json` does not become: they would pass for the image, or for a label that was not named.
_RESERVED = ("image", "pixel_values", "label", "labels")

logger = logging.getLogger(__name__)


def open_file(path: str) -> BinaryIO:
    """Open a file for reading bytes, wherever it lies; every read of a shard goes through here."""
    import fsspec  # it comes with huggingface_hub

    return fsspec.open(path, "rb").open()


class ParquetShard:
    """One parquet file; only the row groups that hold the wanted rows are read.

    Args:
        path: the file.
        image_column: a column of encoded bytes, or of structs with `bytes` and `path`.
        label_column: None leaves labels out.
        caption_column: None leaves captions out.

    Attributes:
        num_rows: rows of the file.

    Raises:
        ValueError: if the file cannot be read or has no such column.
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        label_column: str | None = "label",
        caption_column: str | None = None,
    ):
        self.path = path
        names = {image_column: "image", label_column: "label", caption_column: "caption"}
        self._names = {old: new for old, new in names.items() if old is not None}
        self._metadata = read_parquet_metadata(path)
        known = self._metadata.schema.to_arrow_schema().names
        lacking = [name for name in self._names if name not in known]
        if lacking:
            raise ValueError(f"{path} has no column {lacking[0]!r}; it has {', '.join(known)}.")
        sizes = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self.num_rows = self._metadata.num_rows
        self._kept: tuple[int, Any] | None = None  # the row group read last, which the next range may begin in

    def read(self, start: int, stop: int) -> list[dict]:
        """Read rows start to stop - 1, in order.

        Returns:
            Dictionaries with `image` ({"bytes", "path"}, encoded), `label` and `caption` as the file has them.

        Raises:
            ValueError: if the data is corrupt.
        """
        import pyarrow
        import pyarrow.parquet

        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        rows = []
        try:
            with open_file(self.path) as file:
                parquet = pyarrow.parquet.ParquetFile(file, metadata=self._metadata, pre_buffer=True)
                for number in range(first, last + 1):
                    begin = int(self._starts[number])
                    table = self._row_group(parquet, number)
                    rows += table.slice(max(start - begin, 0), stop - max(start, begin)).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"rows {start} to {stop - 1} of {self.path} cannot be read: {error}") from error
        return [self._row(row, start + i) for i, row in enumerate(rows)]

    def release(self) -> None:
        """Forget the row group that was kept for the next range."""
        self._kept = None

    def _row_group(self, parquet: Any, number: int) -> Any:
        if self._kept is None or self._kept[0] != number:
            self._kept = None  # not two at a time in memory
            self._kept = number, parquet.read_row_group(number, columns=list(self._names))
        return self._kept[1]

    def _row(self, row: dict, number: int) -> dict:
        row = {new: row[old] for old, new in self._names.items()}
        image = row["image"] if isinstance(row["image"], dict) else {"bytes": row["image"]}
        data, path = image.get("bytes"), image.get("path")
        if data is not None:  # otherwise a path is where the image lies, not a name
            path = path or f"{self.path}, row {number}"
        return {**row, "image": {"bytes": data, "path": path or None}}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}


def read_parquet_metadata(path: str) -> Any:
    """Read the footer of a parquet file.

    Raises:
        ValueError: if it is none; the message names it.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open_file(path) as file:
            return pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no parquet file that can be read: {error}") from error


class TarShard:
    """One tar of images: its headers are read once, then every row can be read directly.

    A row is what shares its path up to the first dot of the file name: an image, and beside it `.cls` (a class id or
    name), `.json` (a dictionary; its fields become columns) and `.txt` (a caption). What has no image is no row:
    "a.seg.png" is none, and a warning says so if "a" has no image either.

    Args:
        path: the file, not compressed.
        label_column: field of the `.json` that is the label where there is no `.cls`; by default label, labels, class
            or target. "npy" takes the numbers of the `.npy`, one per class, as clip-benchmark stores several labels.
        caption_column: field of the `.json` that is the caption, or "txt"; by default the `.txt`, or else the first of
            `hf_vitfm.data.columns.CAPTION_NAMES`.

    Attributes:
        num_rows: number of images.

    Raises:
        ValueError: if the file is no tar, is cut off, holds two members of the same name, or only images that are no
            rows since their names have further dots.
    """

    def __init__(self, path: str, label_column: str | None = None, caption_column: str | None = None):
        self.path = path
        self._caption_column = caption_column
        self._label_names = LABEL_NAMES if label_column is None else (label_column,)
        try:
            with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                members, dotted = self._group(archive)
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile stops without a word
                    raise tarfile.ReadError(f"the members end at byte {archive.offset} without a mark of the end")
        except tarfile.TarError as error:
            raise ValueError(f"{path} is no whole tar without compression: {error}.") from error
        rows = [fields for fields in members.values() if "image" in fields]
        self.num_rows = len(rows)
        self._report_dropped([name for row, name in dotted if "image" not in members.get(row, ())])
        # (rows, fields, 2): where the data begins, and its length; 0 where a row has no such member.
        self._places = np.array([[row.get(name, ("", 0, 0))[1:] for name in _TAR_FIELDS] for row in rows], np.int64)
        self._members = np.array([row["image"][0].encode() for row in rows], dtype=np.bytes_)

    def _report_dropped(self, names: list[str]) -> None:
        if not names:
            return
        message = (
            f"{len(names)} images in {self.path} are no rows, {names[0]} the first: what follows the first dot of a "
            "file name is its kind. Name them with a single dot."
        )
        if not self.num_rows:
            raise ValueError(message)
        logger.warning(message)

    def _group(self, archive: tarfile.TarFile) -> tuple[dict[str, dict[str, tuple[str, int, int]]], list]:
        """Members by row and kind, and (row, name) of images with further dots in their name."""
        rows: dict[str, dict] = {}
        dotted: list[tuple[str, str]] = []
        for member in archive:
            archive.members = []  # they would pile up
            path = _readable(member.name)
            folder, _, name = path.rpartition("/")
            stem, _, extension = name.partition(".")
            extension = extension.lower()
            field = "image" if f".{extension}" in IMAGE_SUFFIXES else extension
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not stem:
                continue
            if field not in _TAR_FIELDS:
                if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES:
                    dotted.append((f"{folder}/{stem}", path))
                continue
            fields = rows.setdefault(f"{folder}/{stem}", {})
            if field in fields:
                raise ValueError(f"{self.path} holds {path} beside {fields[field][0]}; keep one of the two.")
            fields[field] = path, member.offset_data, member.size
        return rows, dotted

    def read(self, start: int, stop: int) -> list[dict]:
        """Read rows start to stop - 1, in order.

        Returns:
            Dictionaries with `image` ({"bytes", "path"}, encoded), `caption` (None if there is none) and, where the tar
            has them, `label` (the text of `.cls`, or what the `.json` says) and the fields of the `.json`.

        Raises:
            ValueError: if the file has become shorter, or a `.json` is none.
        """
        with open_file(self.path) as file:
            return [self._row(file, number) for number in range(start, min(stop, self.num_rows))]

    def read_fields(self) -> list[dict]:
        """Read what all rows hold but the image."""
        with open_file(self.path) as file:
            return [self._fields(file, number) for number in range(self.num_rows)]

    def release(self) -> None:
        """Nothing is kept between two reads."""

    def _row(self, file: BinaryIO, number: int) -> dict:
        name = f"{self.path}/{self._members[number].decode()}"
        data = self._data(file, number, "image")
        return {**self._fields(file, number), "image": {"bytes": data, "path": name}}

    def _fields(self, file: BinaryIO, number: int) -> dict:
        row = {}
        content = self._data(file, number, "json")
        if content is not None:
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:  # the latter from lists in lists in lists
                raise ValueError(
                    f"the .json of {self._members[number].decode()} in {self.path} is none: {error}."
                ) from error
            row = row if isinstance(row, dict) else {self._label_names[0]: row}
            label = next((row[name] for name in self._label_names if name in row), None)
            row = {name: row[name] for name in row if name not in (*self._label_names, *_RESERVED)}
            row |= {} if label is None else {"label": label}
        label, text = (self._text(file, number, field) for field in ("cls", "txt"))
        row |= {} if label is None else {"label": label}
        if self._label_names == ("npy",):  # otherwise it may be anything, such as an embedding
            row |= self._vector(file, number)
        return {**row, "caption": self._caption(row, text)}

    def _vector(self, file: BinaryIO, number: int) -> dict:
        content = self._data(file, number, "npy")
        if content is None:
            return {}
        try:
            values = np.load(io.BytesIO(content), allow_pickle=False)
            if values.ndim != 1 or values.dtype.kind not in "biuf":
                raise ValueError(f"it holds {values.dtype} of shape {values.shape}")
        except (EOFError, ValueError) as error:
            raise ValueError(
                f"the .npy of {self._members[number].decode()} in {self.path} is no row of numbers: {error}."
            ) from error
        return {"label": values.astype(float).tolist()}

    def _text(self, file: BinaryIO, number: int, field: str) -> str | None:
        content = self._data(file, number, field)
        return None if content is None else content.decode("utf-8", errors="replace").strip()

    def _caption(self, fields: dict, text: str | None) -> Any:
        if self._caption_column is not None:
            return fields.get(self._caption_column, text if self._caption_column == "txt" else None)
        return next((fields[name] for name in CAPTION_NAMES if name in fields), None) if text is None else text

    def _data(self, file: BinaryIO, number: int, field: str) -> bytes | None:
        offset, size = self._places[number, _TAR_FIELDS.index(field)].tolist()
        if not offset:
            return None
        file.seek(offset)
        data = file.read(size)
        if len(data) != size:
            raise ValueError(f"{self.path} has become shorter since it was opened.")
        return data


def _readable(name: str) -> str:
    """A member's name that can be stored and printed: bytes that are no UTF-8 become their hexadecimal numbers."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
