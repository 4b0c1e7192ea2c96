"""Every kind of source opens to the same rows, and a corrupt file is named."""

import gzip
import json
import struct

import datasets
import numpy as np
import pytest

from hf_vitfm.data.datasets import label_names, load_images
from tests.data.images import grey_png, write_tar


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def save_images(folder, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    for level in range(count):
        (folder / f"{level}.png").write_bytes(grey_png(level))


def greys(rows):
    return [image.getpixel((0, 0)) for image in rows["image"]]


def write_idx(path, array):
    array = np.asarray(array, dtype=np.uint8)
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# Folders


def test_a_folder_without_classes_opens_without_labels(tmp_path):
    save_images(tmp_path / "train")
    save_images(tmp_path / "val" / "deep", 1)
    with pytest.raises(ValueError, match=r"or open them without labels \(`labels=False`\)"):
        load_images(tmp_path)
    splits = load_images(tmp_path, labels=False)
    assert splits["train"].column_names == ["image", "file_name"]
    assert list(splits["train"]["file_name"]) == [f"train/{i}.png" for i in range(4)]
    assert list(splits["validation"]["file_name"]) == ["val/deep/0.png"]
    assert greys(splits["train"]) == [0, 1, 2, 3]
    flat = load_images(tmp_path / "train", labels=False)["train"]
    assert list(flat["file_name"]) == ["0.png", "1.png", "2.png", "3.png"]
    assert label_names(flat) is None


def test_without_labels_other_sources_need_none_and_keep_theirs(tmp_path):
    dataset = datasets.Dataset.from_dict({"jpg": [grey_png(1)], "kind": ["a"]})
    dataset.to_parquet(tmp_path / "a.parquet")
    rows = load_images(tmp_path, image_column="jpg", labels=False)["train"]
    assert rows.column_names == ["image", "kind"] and list(rows["kind"]) == ["a"]
    with pytest.raises(ValueError, match="goes with labels; got `labels=False`"):
        load_images(tmp_path, labels=False, label_column="kind")


# Tables


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables_of_paths_are_relative_to_themselves(tmp_path, kind):
    save_images(tmp_path / "images")
    mark = {"csv": ",", "tsv": "\t"}[kind]
    lines = [("path", "label", "note"), ("images/2.png", "dog", "a, b"), ("images/1.png", "cat", "")]
    text = "\n".join(mark.join(f'"{cell}"' for cell in line) for line in lines)
    (tmp_path / f"train.{kind}").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / f"test.{kind}").write_text(
        mark.join(("path", "label", "note")) + "\n" + mark.join((str(tmp_path / "images/3.png"), "dog", "n"))
    )
    splits = load_images([tmp_path / f"{split}.{kind}" for split in ("train", "test")])
    assert greys(splits["train"]) == [2, 1] and greys(splits["test"]) == [3]
    assert list(splits["train"]["label"]) == [1, 0] and list(splits["test"]["label"]) == [1]
    assert label_names(splits["test"]) == ["cat", "dog"]
    assert list(splits["train"]["note"]) == ["a, b", None]


@pytest.mark.parametrize(
    ("cells", "expected", "names"),
    [
        (["2", "0"], [2, 0], ["0", "1", "2"]),
        (["0.5", "-2"], [0.5, -2.0], None),
        (["007", "012"], [0, 1], ["007", "012"]),
        (["nan", "b"], [1, 0], ["b", "nan"]),
    ],
)
def test_labels_in_a_table_are_integers_numbers_or_names(tmp_path, cells, expected, names):
    save_images(tmp_path)
    (tmp_path / "a.csv").write_text("file_name,label\n" + "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells)))
    rows = load_images(tmp_path / "a.csv")["train"]
    assert list(rows["label"]) == expected
    assert label_names(rows) == names


def test_columns_of_a_table_are_chosen(tmp_path):
    save_images(tmp_path)
    (tmp_path / "a.csv").write_text("scan,cat,dog\n1.png,0,1\n2.png,1,1\n")
    rows = load_images(tmp_path / "a.csv", image_column="scan", label_column=["cat", "dog"])["train"]
    assert list(rows["label"]) == [[0, 1], [1, 1]] and greys(rows) == [1, 2]
    assert label_names(rows) == ["cat", "dog"]


def test_json_lines_hold_lists_of_names(tmp_path):
    save_images(tmp_path)
    rows = [{"file_name": "1.png", "label": ["b", "a"]}, {"file_name": "2.png", "label": ["b"]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    opened = load_images(tmp_path / "a.jsonl")["train"]
    assert label_names(opened) == ["a", "b"]
    assert list(opened["label"]) == [[1, 1], [0, 1]] and greys(opened) == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file,label\n1.png,a\n2.png\n", r"a\.csv cannot be read: line 3 does not have 2 cells"),
        ("a.csv", 'file,label\n"1.png,a\n', r"a\.csv cannot be read"),
        ("a.csv", "file,file\n1.png,a\n", "two columns have the same name: file, file"),
        ("a.csv", b"file,label\n1.png,\xff\n", r"a\.csv cannot be read: .*utf-8"),
        ("a.csv", "file,label\n", r"a\.csv holds no rows"),
        ("a.csv", "", r"a\.csv holds no rows"),
        ("a.csv", "picture,label\n1.png,a\n", r"a\.csv has no column of paths; the columns are picture, label"),
        ("a.csv", "filepath\ttitle\n1.png\ta\n", "separated by commas, those of a .tsv by tabs"),
        ("a.csv", "file,label\n,a\n", r"row 0 of .*a\.csv has no path in the column 'file'; got None"),
        ("a.csv", "file,label\n1.png,\n2.png,a\n", "1 of 2 rows of split train have no label"),
        ("a.jsonl", '{"file": "1.png", "label": 1}\n{"file"', r"a\.jsonl cannot be read: line 2 is no JSON"),
        ("a.jsonl", "3\n", r"a\.jsonl cannot be read: line 1 holds 3, not an object"),
        (
            "a.jsonl",
            '{"file": "1.png", "label": 1}\n{"file": "2.png", "label": "a"}',
            r"column of .*a\.jsonl mixes types",
        ),
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path, name, content, message):
    save_images(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / name)


def test_a_table_in_the_wrong_folder_is_noticed(tmp_path):
    (tmp_path / "a.csv").write_text("file,label\nx/1.png,a\n")
    with pytest.raises(FileNotFoundError, match=r"row 0 of .*a\.csv names the image .*x/1\.png, which does not exist"):
        load_images(tmp_path / "a.csv")


# MNIST's files


@pytest.mark.parametrize(("mark", "end"), [("-", ".gz"), ("-", ""), (".", "")])
def test_idx_files_open_without_loss(tmp_path, mark, end):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4))
    for part, images, labels in (("train", pixels, [3, 1, 0, 1, 2]), ("t10k", pixels[:2], [0, 3])):
        write_idx(tmp_path / f"{part}-images{mark}idx3-ubyte{end}", images)
        write_idx(tmp_path / f"{part}-labels{mark}idx1-ubyte{end}", labels)
    splits = load_images(tmp_path)
    assert sorted(splits) == ["test", "train"]
    assert np.array_equal([np.asarray(image) for image in splits["train"]["image"]], pixels)
    assert {image.mode for image in splits["test"]["image"]} == {"L"}
    assert list(splits["train"]["label"]) == [3, 1, 0, 1, 2] and list(splits["test"]["label"]) == [0, 3]
    assert label_names(splits["test"]) == ["0", "1", "2", "3"]
    one = load_images(tmp_path / f"t10k-images{mark}idx3-ubyte{end}", labels=False)
    assert one["test"].column_names == ["image"]


def test_idx_files_that_are_wrong_are_named(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(images, np.zeros((3, 4, 4)))
    with pytest.raises(FileNotFoundError, match=r"there is no train-labels-idx1-ubyte\.gz beside"):
        load_images(tmp_path)
    write_idx(labels, [1, 2])
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz holds 2 labels for the 3 images"):
        load_images(tmp_path)
    whole = gzip.decompress(images.read_bytes())
    for content, message in [
        (gzip.compress(whole[:-1]), "declares 48 bytes and holds 47"),
        (gzip.compress(whole + b"1"), "declares 48 bytes and holds more"),
        (images.read_bytes()[:-12], "ended before"),
        (b"this is no gzip", "gzip"),
        (gzip.compress(b"\0\0\x0d\x03" + whole[4:]), "does not begin as 3-dimensional idx data"),
        (gzip.compress(whole[:4] + b"\xff" * 12), "declares 79228162458924105385300197375 bytes"),
    ]:
        images.write_bytes(content)
        with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte\.gz is no .*{message}"):
            load_images(tmp_path)


# Tars


def test_tars_are_splits_of_rows(tmp_path, monkeypatch):
    write_tar(
        tmp_path / "train-000.tar",
        {"1.png": grey_png(1), "1.cls": "dog", "1.txt": "a dog", "2.png": grey_png(2), "2.cls": "cat"},
    )
    write_tar(tmp_path / "train-001.tar", {"3.png": grey_png(3), "3.cls": "emu"})
    write_tar(tmp_path / "val-000.tar", {"4.png": grey_png(4), "4.cls": "cat"})
    splits = load_images(tmp_path)
    assert greys(splits["train"]) == [1, 2, 3] and greys(splits["validation"]) == [4]
    assert label_names(splits["train"]) == ["cat", "dog", "emu"]
    assert list(splits["train"]["label"]) == [1, 0, 2] and list(splits["validation"]["label"]) == [0]
    assert list(splits["train"]["caption"]) == ["a dog", None, None]
    pattern = load_images(str(tmp_path / "train-{000..001}.tar"))
    assert greys(pattern["train"]) == [1, 2, 3]
    assert greys(load_images(str(tmp_path / "*-001.tar"))["train"]) == [3]
    write_tar(
        tmp_path / "train-001.tar", {"3.png": grey_png(9), "3.cls": "emu"}
    )  # the copy of the old one is not used
    assert greys(load_images(tmp_path)["train"]) == [1, 2, 9]


def test_labels_of_tars_are_ids_fields_or_missing(tmp_path):
    write_tar(tmp_path / "ids.tar", {"1.png": grey_png(1), "1.cls": "2", "2.png": grey_png(2), "2.cls": "0"})
    assert list(load_images(tmp_path / "ids.tar")["train"]["label"]) == [2, 0]
    write_tar(tmp_path / "fields.tar", {"1.png": grey_png(1), "1.json": {"tags": ["b", "a"]}})
    rows = load_images(tmp_path / "fields.tar", label_column="tags")["train"]
    assert list(rows["label"]) == [[1, 1]] and label_names(rows) == ["a", "b"]
    write_tar(tmp_path / "none.tar", {"1.png": grey_png(1)})
    assert load_images(tmp_path / "none.tar", labels=False)["train"].column_names == ["image"]
    with pytest.raises(ValueError, match="no column of labels"):
        load_images(tmp_path / "none.tar")
    write_tar(tmp_path / "some.tar", {"1.png": grey_png(1), "1.cls": "a", "2.png": grey_png(2)})
    with pytest.raises(ValueError, match="1 of 2 rows of split train have no label"):
        load_images(tmp_path / "some.tar")


def test_tars_that_are_wrong_are_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is no whole tar"):
        load_images(tmp_path)
    write_tar(tmp_path / "a.tar", {"1.txt": "no image"})
    with pytest.raises(ValueError, match=r"a\.tar holds no image"):
        load_images(tmp_path)


# Nowhere


def test_files_of_two_kinds_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": grey_png(1)})
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"one kind are opened at a time; got .*a\.(tar|parquet)"):
        load_images(tmp_path)


def test_a_mistyped_path_that_looks_like_a_hub_id_is_said_to_be_neither(tmp_path, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'data/imgs' doesn't exist on the Hub.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        FileNotFoundError,
        match=rf"'data/imgs' is no local path \(there is nothing at {tmp_path}/data/imgs\) and no data set on the Hub",
    ):
        load_images("data/imgs")
