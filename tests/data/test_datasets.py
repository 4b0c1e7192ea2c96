import io
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_vitfm.data.datasets import load_images, split_off


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def save_image(path, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)


def encoded(grey=0):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), grey).save(buffer, "png")
    return buffer.getvalue()


def table(labels, feature=None, image="image", label="label", decode=True):
    images = [encoded(grey) for grey in range(len(labels))]
    dataset = datasets.Dataset.from_dict({image: images, label: labels})
    dataset = dataset.cast_column(image, datasets.Image(decode=decode)) if decode is not None else dataset
    return dataset.cast_column(label, feature) if feature else dataset


def greys(dataset):
    return [image.getpixel((0, 0)) for image in dataset["image"]]


def test_sample_opens_by_name_even_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "emoji" / "cat" / "a.png")
    splits = load_images("emoji", label_column="category")
    assert list(splits) == ["google", "twitter"]
    assert splits["google"].features["label"].num_classes == 9
    assert load_images("./emoji")["train"].num_rows == 1


def test_image_folder_with_classes_is_one_split(tmp_path):
    save_image(tmp_path / "dog" / "b.PNG", 2)
    save_image(tmp_path / "cat" / "deep" / "test_val.png", 1)  # words in deeper names are no splits
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    save_image(tmp_path / ".hidden" / "x.png")
    splits = load_images(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].features["label"].names == ["cat", "dog"]
    assert list(splits["train"]["label"]) == [0, 1]
    assert greys(splits["train"]) == [1, 2]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_image_folder_splits_share_their_classes(tmp_path, name):
    save_image(tmp_path / "train" / "cat" / "a.png")
    save_image(tmp_path / "train" / "dog" / "a.png")
    save_image(tmp_path / name / "dog" / "a.png", 7)
    save_image(tmp_path / "test" / "ape" / "a.png")
    splits = load_images(tmp_path)
    assert list(splits) == ["train", "validation", "test"]
    assert all(rows.features["label"].names == ["ape", "cat", "dog"] for rows in splits.values())
    assert list(splits["validation"]["label"]) == [2]
    assert greys(splits["validation"]) == [7]


def test_a_class_may_be_called_train(tmp_path):
    save_image(tmp_path / "train" / "a.png")
    save_image(tmp_path / "bus" / "a.png")
    assert load_images(tmp_path)["train"].features["label"].names == ["bus", "train"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png"], "no class folder"),
        (["cat/a.png", "b.png"], "no class folder"),
        (["train/a.png", "test/b.png"], "no class folder"),
        (["train/cat/a.png", "extra/cat/a.png"], r"split folders \(train\) beside other folders .*\(extra\)"),
        (["val/cat/a.png", "valid/cat/a.png"], "more than one folder for the same split: val, valid"),
        ([], "no images in"),
    ],
)
def test_image_folder_that_is_unclear_is_refused(tmp_path, files, message):
    for file in files:
        save_image(tmp_path / file)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path)


def test_parquet_files_go_by_the_split_in_their_name(tmp_path):
    feature = datasets.ClassLabel(names=["x", "y"])
    (tmp_path / "data").mkdir()
    table([0, 1], feature).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    table([1], feature).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    table([1, 0, 1, 1], feature).to_parquet(tmp_path / "data" / "valid.parquet")
    splits = load_images(str(tmp_path))
    assert {split: list(rows["label"]) for split, rows in splits.items()} == {
        "train": [0, 1, 1],
        "validation": [1, 0, 1, 1],
    }
    assert splits["train"].features["label"].names == ["x", "y"]
    assert greys(splits["validation"]) == [0, 1, 2, 3]
    one = load_images(tmp_path / "data" / "valid.parquet")
    assert {split: len(rows) for split, rows in one.items()} == {"validation": 4}
    both = load_images(sorted((tmp_path / "data").iterdir()))
    assert {split: len(rows) for split, rows in both.items()} == {"train": 3, "validation": 4}


def test_parquet_is_opened_without_any_request(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("load_dataset asks the network, also for local files")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    table([0, 1]).to_parquet(tmp_path / "a.parquet")
    assert load_images(tmp_path)["train"].num_rows == 2


@pytest.mark.parametrize("decode", [None, False])
def test_encoded_bytes_are_decoded(tmp_path, decode):
    table([0, 0, 1], decode=decode).to_parquet(tmp_path / "a.parquet")
    rows = load_images(tmp_path)["train"]
    assert rows.features["image"] == datasets.Image()
    assert greys(rows) == [0, 1, 2]


def test_struct_columns_without_image_type_are_decoded(tmp_path):
    images = [{"bytes": encoded(5), "path": None}]
    datasets.Dataset.from_dict({"img": images, "label": [0]}).to_parquet(tmp_path / "a.parquet")
    assert greys(load_images(tmp_path)["train"]) == [5]


def test_save_to_disk_of_splits_and_of_one_set(tmp_path):
    splits = datasets.DatasetDict(val=table([1, 0]), train=table([0, 1]))
    splits.save_to_disk(tmp_path / "splits")
    table([0]).save_to_disk(tmp_path / "one")
    assert sorted(load_images(tmp_path / "splits")) == ["train", "validation"]
    assert list(load_images(tmp_path / "one")) == ["train"]


def test_string_labels_get_the_same_ids_in_every_split(tmp_path):
    datasets.DatasetDict(train=table(["dog", "cat"]), test=table(["emu", "cat"])).save_to_disk(tmp_path)
    splits = load_images(tmp_path)
    assert all(rows.features["label"].names == ["cat", "dog", "emu"] for rows in splits.values())
    assert list(splits["train"]["label"]) == [1, 0]
    assert list(splits["test"]["label"]) == [2, 0]
    assert greys(splits["test"]) == [0, 1]


def test_integers_keep_their_value_and_get_it_as_name(tmp_path):
    datasets.DatasetDict(train=table([3, 1]), test=table([0])).save_to_disk(tmp_path)
    splits = load_images(tmp_path)
    assert all(rows.features["label"].names == ["0", "1", "2", "3"] for rows in splits.values())
    assert list(splits["train"]["label"]) == [3, 1]


@pytest.mark.parametrize("labels", [[[0.5, 0.5], [1.0, 0.0]], [0.25, 1.5]])
def test_vectors_and_floats_are_left_as_they_are(tmp_path, labels):
    dataset = table(labels)
    dataset.save_to_disk(tmp_path)
    rows = load_images(tmp_path)["train"]
    assert rows.features["label"] == dataset.features["label"]
    assert list(rows["label"]) == labels


def test_chosen_columns_are_renamed_and_replace_those_of_that_name(tmp_path):
    dataset = (
        table([0, 1], image="photo", label="fine").add_column("label", ["a", "b"]).add_column("caption", ["c", "d"])
    )
    dataset.save_to_disk(tmp_path)
    rows = load_images(tmp_path, label_column="fine")["train"]
    assert sorted(rows.column_names) == ["caption", "image", "label"]
    assert list(rows["label"]) == [0, 1]


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (
            lambda: table([0], image="a").rename_column("a", "b").remove_columns("b"),
            {},
            "no column of images; .* label",
        ),
        (lambda: table([0]).remove_columns("label"), {}, "no column of labels; the columns are image"),
        (lambda: table([0], label="fine_grained"), {}, "columns are image, fine_grained. Name one as `label_column`"),
        (lambda: table([0]), {"image_column": "picture"}, "one of image, label; got 'picture'"),
        (lambda: table([0]), {"label_column": "kind"}, "one of label; got 'kind'"),
        (lambda: table([0]), {"image_column": "label"}, "must hold images"),
        (lambda: table([-1, 0]), {}, "got -1"),
        (lambda: table(["a", None]), {}, "1 of 2 rows of split train have no label"),
        (lambda: table([0]), {"revision": "main"}, "for data sets on the Hub"),
    ],
)
def test_unclear_tables_are_refused(tmp_path, dataset, arguments, message):
    dataset().save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, **arguments)


def test_split_without_rows_is_refused(tmp_path):
    table([0, 1]).to_parquet(tmp_path / "train.parquet")
    table([0]).select([]).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="no rows in test"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        load_images([])


def test_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not a table at all")
    with pytest.raises(ValueError, match=r"a\.parquet is no parquet file"):
        load_images(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.zip"):
        load_images(tmp_path / "a.zip")
    with pytest.raises(FileNotFoundError, match=r"b\.parquet does not exist"):
        load_images([tmp_path / "b.parquet"])


def test_two_columns_of_class_labels_have_to_be_chosen_from(tmp_path):
    feature = datasets.ClassLabel(names=["x", "y"])
    dataset = table([0, 1], feature, label="fine").add_column("coarse", [1, 1], feature=feature)
    dataset.save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="several columns of class labels: fine, coarse"):
        load_images(tmp_path)
    assert list(load_images(tmp_path, label_column="coarse")["train"]["label"]) == [1, 1]


def test_class_names_that_differ_between_splits_are_refused(tmp_path):
    names = [datasets.ClassLabel(names=pair) for pair in (["x", "y"], ["y", "x"])]
    datasets.DatasetDict(train=table([0, 1], names[0]), test=table([0, 1], names[1])).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="differ"):
        load_images(tmp_path)


@pytest.mark.parametrize("source", ["flowers", "/no/such/folder", "./namespace/name", "a/b/c"])
def test_missing_path_is_named(source):
    with pytest.raises(FileNotFoundError, match="namespace/name"):
        load_images(source)


def test_hub_id_goes_to_load_dataset(monkeypatch):
    calls = []

    def load_dataset(path, **arguments):
        calls.append((path, arguments))
        return datasets.DatasetDict(train=table(["b", "a"]), valid=table(["a"]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_images("namespace/name", revision="v1", config_name="plain")
    assert calls == [("namespace/name", {"name": "plain", "revision": "v1"})]
    assert list(splits) == ["train", "validation"]


def test_hub_id_that_cannot_be_reached_says_that_no_such_path_exists():
    with pytest.raises(ConnectionError, match="no local path"):
        load_images("namespace/name")


def test_split_off_holds_the_share_of_every_class():
    labels = [0] * 100 + [1] * 50 + [2] * 7
    dataset = table(np.random.default_rng(0).permutation(labels).tolist())
    rest, held_out = split_off(dataset, 0.1, seed=3)
    assert len(held_out) == 16
    counts = Counter(held_out["label"])
    assert (counts[0], counts[1], counts[2]) == (10, 5, 1)
    assert Counter(rest["label"]) + counts == Counter(labels)
    rows = greys(rest) + greys(held_out)
    assert sorted(rows) == list(range(157))
    assert greys(held_out) == sorted(greys(held_out))


def test_split_off_is_a_function_of_the_seed():
    dataset = table([i % 4 for i in range(80)])
    first, again, other = (greys(split_off(dataset, 0.25, seed=seed)[1]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, 0.01])
def test_split_off_refuses_a_share_that_leaves_nothing(share):
    with pytest.raises(ValueError, match="share"):
        split_off(table([0, 1]), share, seed=0)


def test_split_off_needs_class_ids():
    with pytest.raises(ValueError, match="class id"):
        split_off(table([[0.5, 0.5], [1.0, 0.0]]), 0.5, seed=0)
    with pytest.raises(ValueError, match="image, label; got 'kind'"):
        split_off(table([0, 1]), 0.5, seed=0, label_column="kind")
