"""Shards are found in folders, by patterns, behind URLs and on the Hub."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from hf_vitfm.data.datasets import label_names
from hf_vitfm.data.order import ImageView
from hf_vitfm.data.sources.stream import expand_braces, find_shards, open_stream
from hf_vitfm.data.streams import StreamOrder
from tests.data.images import write_tar
from tests.data.streaming import write_shards


def labels(rows):
    return [int(row["label"]) for row in rows]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_folder_goes_by_the_split_in_its_files_names(tmp_path, kind):
    write_shards(tmp_path, [3, 2], kind)
    write_shards(tmp_path, [4], kind, first=5, split="val")
    (tmp_path / "README.md").write_text("not a shard")
    assert labels(open_stream(tmp_path)) == [0, 1, 2, 3, 4]
    assert labels(open_stream(str(tmp_path), "validation")) == labels(open_stream(tmp_path, "val")) == [5, 6, 7, 8]
    with pytest.raises(FileNotFoundError, match="no parquet files or tars of the split test"):
        open_stream(tmp_path, "test")
    with pytest.raises(ValueError, match="`split` must be one of train, .*; got 'google'"):
        open_stream(tmp_path, "google")


def test_patterns_files_and_lists(tmp_path, monkeypatch):
    paths = write_shards(tmp_path / "a", [1, 1, 1, 1])
    assert labels(open_stream(tmp_path / "a" / "train-{000..002}.tar")) == [0, 1, 2]
    assert labels(open_stream(str(tmp_path / "a" / "*-00[13].tar"))) == [1, 3]
    assert labels(open_stream(paths[2])) == [2]
    assert labels(open_stream(paths[::-2])) == [3, 1]  # a list keeps its order
    monkeypatch.chdir(tmp_path)
    assert find_shards("a") == paths


def test_braces_are_written_out_as_a_shell_does():
    assert expand_braces("a{08..10}-{x,yz}.tar") == [
        f"a{n}-{end}.tar" for n in ("08", "09", "10") for end in ("x", "yz")
    ]
    assert expand_braces("plain") == ["plain"]


def test_urls_go_through_fsspec(tmp_path):
    for path in write_shards(tmp_path, [2, 3], "parquet"):
        with (
            open(path, "rb") as source,
            fsspec.open(f"memory://stream/data/{path.rpartition('/')[2]}", "wb") as target,
        ):
            target.write(source.read())
    assert labels(open_stream("memory://stream")) == [0, 1, 2, 3, 4]
    assert labels(open_stream("memory://stream/data/train-{000..001}.parquet")) == [0, 1, 2, 3, 4]
    assert labels(open_stream("memory://stream/data/*-001.parquet")) == [2, 3, 4]


class RangeHandler(BaseHTTPRequestHandler):
    """Serves files by ranges of bytes, as every large host of data does."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            return self.send_error(404)
        data, asked = file.read_bytes(), re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        size = len(data)
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
            data = data[start : end + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as running:
        running.folder = tmp_path
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_loader_workers_read_from_a_web_server(tmp_path, server, kind):
    write_shards(tmp_path, [5, 4], kind)
    rows = open_stream(f"{server}/train-{{000..001}}.{kind}", window=3)
    assert labels(rows) == list(range(9))
    view = ImageView(rows, lambda image: torch.tensor(image.width), seed=0)
    order = StreamOrder(rows, 0, micro_batch=1, global_batch=1, workers=2)
    loader = DataLoader(view, sampler=order, batch_size=1, num_workers=2, timeout=60)
    assert sorted(int(batch["label"]) for batch in loader) == list(range(9))
    with pytest.raises(FileNotFoundError, match="train-002"):
        open_stream(f"{server}/train-{{001..002}}.{kind}")


def test_a_hub_id_is_looked_for_on_the_hub(monkeypatch):
    from fsspec import core

    asked = []

    def url_to_fs(url):
        asked.append(url)
        raise FileNotFoundError(url)

    monkeypatch.setattr(core, "url_to_fs", url_to_fs)
    with pytest.raises(FileNotFoundError, match="'namespace/name' is no local path, and the Hub has no list"):
        open_stream("namespace/name")
    assert asked == ["hf://datasets/namespace/name"]


def test_names_of_classes_are_those_of_the_files_or_given(tmp_path):
    write_shards(tmp_path / "named", [3], "parquet", names=["a", "b", "c"])
    rows = open_stream(tmp_path / "named")
    assert label_names(rows) == rows.label_names == ["a", "b", "c"]
    write_tar(tmp_path / "1.tar", {"1.png": b"", "1.json": {"kind": "cat"}})
    rows = open_stream(tmp_path / "1.tar", label_column="kind", label_names=["ape", "cat"])
    assert labels(rows) == [1]
    assert label_names(open_stream(tmp_path / "1.tar")) is None


def test_two_kinds_of_shards_are_refused(tmp_path):
    write_shards(tmp_path, [1], "tar")
    write_shards(tmp_path, [1], "parquet")
    with pytest.raises(ValueError, match="both parquet files and tars"):
        open_stream(tmp_path)


def test_a_shard_without_the_columns_of_the_first_is_named(tmp_path):
    write_shards(tmp_path, [1], "parquet")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"picture": [b""]}), tmp_path / "train-001.parquet")
    with pytest.raises(ValueError, match=r"train-001\.parquet has no column 'image'; it has picture"):
        open_stream(tmp_path)
