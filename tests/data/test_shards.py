"""Parquet files and tars read in ranges of rows, from anywhere, never more than needed, never to disk."""

import gzip
import io
import pickle
import tarfile

import fsspec
import numpy as np
import pytest

from hf_vitfm.data.decode import BadImageError, decode_image
from hf_vitfm.data.order import ImageView
from hf_vitfm.data.shards import ParquetShard, TarShard
from tests.data.images import grey_png, write_tar
from tests.data.streaming import count_reads, open_shards, picture, write_shards


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_any_range_of_rows_can_be_read(tmp_path, kind):
    (shard,) = open_shards(write_shards(tmp_path, [13], kind))
    shard = pickle.loads(pickle.dumps(shard))
    assert shard.num_rows == 13
    for start, stop in [(0, 13), (4, 6), (5, 10), (12, 13), (0, 1), (3, 3)]:
        rows = shard.read(start, stop)
        assert [int(row["label"]) for row in rows] == list(range(start, stop))
        assert [row["image"]["bytes"] for row in rows] == [picture(row) for row in range(start, stop)]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_are_read_wherever_fsspec_reads(tmp_path, kind):
    (path,) = write_shards(tmp_path, [6], kind)
    memory = f"memory://shards/{kind}/train-000.{kind}"
    with open(path, "rb") as source, fsspec.open(memory, "wb") as target:
        target.write(source.read())
    (shard,) = open_shards([memory])
    assert [int(row["label"]) for row in shard.read(2, 5)] == [2, 3, 4]


def test_parquet_reads_only_the_row_groups_it_needs(tmp_path, monkeypatch):
    (path,) = write_shards(tmp_path, [40], "parquet", group=4)
    shard = ParquetShard(path)
    counts = count_reads(monkeypatch)
    shard.read(9, 11)
    group = 4 * len(picture(0))
    assert group < counts["bytes"] < 1.5 * group
    shard.read(11, 13)  # begins in the group that is at hand
    assert counts["bytes"] < 3 * group
    shard.release()
    shard.read(11, 12)
    assert counts["bytes"] > 3 * group


def test_parquet_of_plain_bytes_without_labels(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"jpg": [b"a", b"b"], "n": [1, 2]}), tmp_path / "a.parquet")
    shard = ParquetShard(str(tmp_path / "a.parquet"), "jpg", None)
    assert shard.read(1, 2) == [{"image": {"bytes": b"b", "path": f"{tmp_path / 'a.parquet'}, row 1"}}]
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'png'; it has jpg, n"):
        ParquetShard(str(tmp_path / "a.parquet"), "png", None)


def test_a_tar_is_indexed_without_reading_its_images(tmp_path, monkeypatch):
    counts = count_reads(monkeypatch)
    write_tar(tmp_path / "a.tar", {f"{i}.png": bytes(100_000) for i in range(10)})
    shard = TarShard(str(tmp_path / "a.tar"))
    assert shard.num_rows == 10
    assert counts["bytes"] < 30_000  # a header of 512 bytes per member, and a read-ahead
    shard.read(3, 4)
    assert 100_000 <= counts["bytes"] < 130_000


def test_members_of_a_row_share_their_name_up_to_the_first_dot(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "info.json": {"about": "no row"},
            "x/1.JPG": b"one",
            "x/1.cls": "cat\n",
            "x/1.txt": "a cat ",
            "x/1.seg.png": b"not the image",
            "2.png": b"two",
            "y/1.png": b"three",
            "2.json": {"label": 7, "width": 5},
            "x/.3.png": b"hidden",
        },
    )
    shard = TarShard(str(tmp_path / "a.tar"))
    rows = shard.read(0, 9)
    assert [row["image"]["bytes"] for row in rows] == [b"one", b"two", b"three"]
    assert [row["image"]["path"] for row in rows] == [
        f"{tmp_path / 'a.tar'}/{name}" for name in ("x/1.JPG", "2.png", "y/1.png")
    ]
    assert [row.get("label") for row in rows] == ["cat", 7, None]
    assert [row["caption"] for row in rows] == ["a cat", None, None]
    assert rows[1]["width"] == 5
    assert shard.read_fields() == [{name: row[name] for name in row if name != "image"} for row in rows]


def test_the_field_with_the_label_can_be_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": b"", "1.json": {"label": "x", "species": "emu"}})
    assert TarShard(str(tmp_path / "a.tar"), "species").read(0, 1)[0]["label"] == "emu"


def test_numbers_beside_an_image_are_labels_only_where_asked(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([0, 1, 1], dtype=np.int8))
    write_tar(tmp_path / "a.tar", {"0.png": grey_png(0), "0.npy": buffer.getvalue(), "1.png": grey_png(1)})
    assert "label" not in TarShard(str(tmp_path / "a.tar")).read_fields()[0]  # they may be an embedding
    rows = TarShard(str(tmp_path / "a.tar"), label_column="npy").read_fields()
    assert rows[0]["label"] == [0.0, 1.0, 1.0] and "label" not in rows[1]


def test_links_and_paths_that_lead_elsewhere_are_harmless(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        info = tarfile.TarInfo("../../escaped.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    before = sorted(tmp_path.rglob("*"))
    rows = TarShard(str(tmp_path / "a.tar")).read(0, 5)
    assert [row["image"]["bytes"] for row in rows] == [b"abc"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corrupt_file_is_named(tmp_path):
    def message(content, name):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
            open_shards([str(path)])
        return str(error.value)

    (path,) = write_shards(tmp_path, [10], "tar")
    whole = open(path, "rb").read()
    assert "no whole tar without compression" in message(b"this is no tar" * 100, "a.tar")
    assert "no whole tar" in message(whole[:3000], "cut.tar")
    assert "no whole tar" in message(gzip.compress(whole), "packed.tar")
    assert "no whole tar" in message(b"", "empty.tar")
    assert "no parquet file" in message(b"this is no table", "a.parquet")
    write_tar(tmp_path / "twice.tar", {"1.png": b"a", "1.jpg": b"b"})
    with pytest.raises(ValueError, match=r"twice\.tar holds 1\.jpg beside 1\.png"):
        TarShard(str(tmp_path / "twice.tar"))
    write_tar(tmp_path / "json.tar", {"1.png": b"a", "1.json": "{no"})
    with pytest.raises(ValueError, match=r"the \.json of 1\.png in .*json\.tar is none"):
        TarShard(str(tmp_path / "json.tar")).read(0, 1)


def test_data_that_goes_bad_later_is_named(tmp_path):
    (path,) = write_shards(tmp_path, [10], "tar")
    shard = TarShard(path)
    with open(path, "r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match="has become shorter"):
        shard.read(8, 10)
    (path,) = write_shards(tmp_path, [10], "parquet")
    shard = ParquetShard(path)
    with open(path, "r+b") as file:
        file.write(b"\xff" * 3000)
    with pytest.raises(ValueError, match=r"rows 0 to 1 of .*\.parquet cannot be read"):
        shard.read(0, 2)


def test_images_with_further_dots_in_their_name_are_not_lost_in_silence(tmp_path, caplog):
    path = tmp_path / "a.tar"
    write_tar(path, {"img.v1.jpg": b"1", "photo 2021.05.01.png": b"2"})
    with pytest.raises(ValueError, match=rf"2 images in {path} are no rows, img\.v1\.jpg the first: .* single dot"):
        TarShard(str(path))
    write_tar(path, {"0.png": b"0", "0.seg.png": b"a map", "img.v1.JPG": b"1", "info.v1.txt": b""})
    assert TarShard(str(path)).num_rows == 1
    assert [record.message.split(": ")[0] for record in caplog.records] == [
        f"1 images in {path} are no rows, img.v1.JPG the first"
    ]
    caplog.clear()
    write_tar(path, {"0.seg.png": b"a map", "0.png": b"0"})
    assert TarShard(str(path)).num_rows == 1 and not caplog.records


def test_names_in_another_encoding_are_written_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, content in (("café.png", grey_png(1)), ("café.cls", b"4")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (row,) = TarShard(str(tmp_path / "a.tar")).read(0, 1)
    assert row["image"]["path"] == rf"{tmp_path}/a.tar/caf\xe9.png" and row["label"] == "4"
    assert decode_image(row["image"]).getpixel((0, 0)) == 1
    write_tar(tmp_path / "b.tar", {"café.png": b"1"})  # UTF-8
    assert TarShard(str(tmp_path / "b.tar")).read(0, 1)[0]["image"]["path"].endswith("b.tar/café.png")


def test_json_that_is_too_deep_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": b"a", "1.json": "[" * 200_000 + "]" * 200_000})
    with pytest.raises(ValueError, match=r"the \.json of 1\.png in .*a\.tar is none: .*recursion"):
        TarShard(str(tmp_path / "a.tar")).read(0, 1)


def test_json_does_not_take_the_place_of_the_image_or_of_a_label_that_is_named(tmp_path):
    fields = {"pixel_values": [0.0], "image": "x", "labels": 3, "species": "emu", "width": 4}
    write_tar(tmp_path / "a.tar", {"1.png": grey_png(7), "1.json": fields, "2.png": b"", "2.json": {"label": 3}})
    rows = TarShard(str(tmp_path / "a.tar"), "species").read(0, 2)
    assert rows[0].keys() == {"image", "label", "width", "caption"} and rows[0]["label"] == "emu"
    assert rows[1].keys() == {"image", "caption"}
    seen = []
    ImageView(rows, lambda image: seen.append(image.getpixel((0, 0))))[0]
    assert seen == [7]


def test_a_parquet_row_without_an_image_says_so(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pictures = [{"bytes": grey_png(1), "path": None}, {"bytes": None, "path": None}, None]
    for images in (pictures, [grey_png(1), None, None]):
        pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet")
        view = ImageView(ParquetShard(str(tmp_path / "a.parquet"), label_column=None).read(0, 3), None)
        assert view.image(0).getpixel((0, 0)) == 1
        for number in (1, 2):
            with pytest.raises(
                BadImageError, match=f"^row {number} cannot be decoded: it has neither bytes nor a path"
            ):
                view.image(number)
