"""Small shards whose labels tell which row they are, and a count of the bytes read from them."""

import datasets
from datasets import ClassLabel, Dataset, Image

from hf_vitfm.data import shards as shards_module
from hf_vitfm.data.shards import ParquetShard, TarShard
from tests.data.images import encode, noise, write_tar


def picture(row: int) -> bytes:
    """An image of about a kilobyte."""
    return encode(noise(16, 16, seed=row))


def write_shards(folder, sizes, kind="tar", group=5, first=0, names=None, split="train"):
    """Write shards with rows first, first + 1, ... ; a row's label is its number."""
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        path = folder / f"{split}-{number:03d}.{kind}"
        rows = range(first, first + size)
        first += size
        if kind == "tar":
            write_tar(
                path,
                {
                    f"{row:04d}.{end}": picture(row) if end == "png" else str(row)
                    for row in rows
                    for end in ("png", "cls")
                },
            )
        else:
            feature = {"image": Image(), "label": ClassLabel(names=names) if names else datasets.Value("int64")}
            table = Dataset.from_dict(
                {"image": [{"bytes": picture(row), "path": f"{row}.png"} for row in rows], "label": list(rows)},
                features=datasets.Features(feature),
            )
            table.to_parquet(path, batch_size=group)
    return sorted(str(path) for path in folder.glob(f"{split}*.{kind}"))


def open_shards(paths):
    return [(TarShard if path.endswith("tar") else ParquetShard)(path) for path in paths]


class CountedFile:
    """A file that adds the bytes read from it to a count."""

    def __init__(self, file, counts):
        self._file, self._counts = file, counts

    def read(self, *size):
        data = self._file.read(*size)
        self._counts["bytes"] += len(data)
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def count_reads(monkeypatch) -> dict:
    """Count what all shards read from now on."""
    counts = {"bytes": 0}
    opener = shards_module.open_file
    monkeypatch.setattr(shards_module, "open_file", lambda path: CountedFile(opener(path), counts))
    return counts
