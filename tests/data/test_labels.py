"""Labels of every form become numbers with names."""

import json

import datasets
import numpy as np
import pytest
from sklearn.preprocessing import MultiLabelBinarizer

from hf_vitfm.data.datasets import label_names, load_images
from hf_vitfm.data.labels import encode_labels
from hf_vitfm.training.recipe import DataArguments
from tests.data.images import grey_png


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def save(path, labels, feature=None, **columns):
    columns = {"label": labels, **columns} if labels is not None else columns
    rows = len(next(iter(columns.values())))
    dataset = datasets.Dataset.from_dict({"image": [grey_png(i) for i in range(rows)], **columns})
    dataset = dataset.cast_column("image", datasets.Image())
    if feature is not None:
        dataset = dataset.cast_column("label", feature)
    dataset.to_parquet(path)


def write_jsonl(folder, rows, name="train.jsonl"):
    (folder / "1.png").write_bytes(grey_png(1))
    lines = [json.dumps({"image": "1.png", **row}) for row in rows]
    (folder / name).write_text("\n".join(lines))
    return folder / name


def test_lists_of_names_become_vectors_with_names_shared_by_the_splits(tmp_path):
    train, test = [["dog", "cat"], [], ["emu"]], [["cat"], ["bee", "dog"]]
    save(tmp_path / "train.parquet", train)
    save(tmp_path / "test.parquet", test)
    splits = load_images(tmp_path)
    binarizer = MultiLabelBinarizer().fit(train + test)
    for rows, lists in ((splits["train"], train), (splits["test"], test)):
        assert label_names(rows) == list(binarizer.classes_) == ["bee", "cat", "dog", "emu"]
        assert rows.features["label"].feature.dtype == "float32"
        assert np.array_equal(rows["label"], binarizer.transform(lists))


def test_lists_of_class_ids_become_vectors(tmp_path):
    save(tmp_path / "a.parquet", [[2, 0], [1]], datasets.List(datasets.ClassLabel(names=["x", "y", "z"])))
    rows = load_images(tmp_path)["train"]
    assert label_names(rows) == ["x", "y", "z"]
    assert list(rows["label"]) == [[1, 0, 1], [0, 1, 0]]


def test_several_columns_become_one_vector(tmp_path):
    save(
        tmp_path / "a.parquet",
        None,
        cat=[1, 0, 1],
        dog=[True, False, False],
        soft=[0.0, 0.5, 1.0],
        other=["a", "b", "c"],
    )
    rows = load_images(tmp_path, label_column=["dog", "cat", "soft"])["train"]
    assert label_names(rows) == ["dog", "cat", "soft"]
    assert list(rows["label"]) == [[1, 1, 0], [0, 0, 0.5], [0, 1, 1]]
    assert sorted(rows.column_names) == ["image", "label", "other"]


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"a": [0, -1]}, ["a"], r"row 1 of split train has -1 in the column 'a'"),
        ({"a": ["1", "0"]}, ["a"], r"row 0 of split train has '1' in the column 'a'"),
        ({"a": [0.0, None]}, ["a"], r"row 1 of split train has None in the column 'a'"),
        ({"a": [0, 1]}, ["a", "b"], "no column 'b'; it has image, a"),
    ],
)
def test_columns_that_are_no_classes_are_refused(tmp_path, columns, names, message):
    save(tmp_path / "a.parquet", None, **columns)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, label_column=names)


def test_names_survive_what_is_done_to_a_data_set(tmp_path):
    save(tmp_path / "a.parquet", [["b"], ["a", "b"], []])
    rows = load_images(tmp_path)["train"]
    changed = rows.select([0, 1]).shuffle(seed=0).map(lambda row: {"more": 1}).filter(lambda row: True)
    assert label_names(changed) == ["a", "b"]
    changed.save_to_disk(tmp_path / "saved")
    assert label_names(datasets.load_from_disk(tmp_path / "saved")) == ["a", "b"]
    again = load_images(tmp_path / "saved")["train"]
    assert label_names(again) == ["a", "b"] and sorted(again["label"]) == [[0, 1], [1, 1]]
    changed.to_parquet(tmp_path / "saved.parquet")
    assert label_names(load_images(tmp_path / "saved.parquet")["train"]) == ["a", "b"]


def test_class_ids_have_names_and_numbers_have_none(tmp_path):
    save(tmp_path / "ids.parquet", ["b", "a"])
    save(tmp_path / "numbers.parquet", [0.5, 2.0])
    save(tmp_path / "vectors.parquet", [[0.5, 2.0], [1.0, 0.0]])
    assert label_names(load_images(tmp_path / "ids.parquet")["train"]) == ["a", "b"]
    assert label_names(load_images(tmp_path / "numbers.parquet")["train"]) is None
    assert label_names(load_images(tmp_path / "vectors.parquet")["train"]) is None
    assert label_names([{"label": 1}]) is None


def test_an_absurd_class_id_is_named_with_its_row(tmp_path):
    write_jsonl(tmp_path, [{"label": 3}], "test.jsonl")
    write_jsonl(tmp_path, [{"label": label} for label in (0, 1, 2**40, 2)])
    with pytest.raises(ValueError, match=rf"row 2 of split train has the class id {2**40}, .* 5 different ids"):
        load_images([tmp_path / "test.jsonl", tmp_path / "train.jsonl"])
    write_jsonl(tmp_path, [{"label": label} for label in (0, 21_840)])  # a few classes of a large set
    assert len(label_names(load_images(tmp_path / "train.jsonl")["train"])) == 21_841


def test_many_classes_are_no_mistake_if_there_are_rows_of_them():
    splits = {"train": datasets.Dataset.from_dict({"label": list(range(100_500)), "image": list(range(100_500))})}
    assert encode_labels(datasets, splits)["train"].features["label"].num_classes == 100_500
    splits = {"train": datasets.Dataset.from_dict({"label": [0, 100_500], "image": [0, 1]})}
    with pytest.raises(ValueError, match="row 1 of split train has the class id 100500, and there are 2"):
        encode_labels(datasets, splits)


def test_a_list_without_a_value_is_refused(tmp_path):
    save(tmp_path / "a.parquet", [["a"], ["b", None]])
    with pytest.raises(ValueError, match="row 1 of split train has the label None"):
        load_images(tmp_path)
    save(tmp_path / "a.parquet", [["a"], None])
    with pytest.raises(ValueError, match="1 of 2 rows of split train have no label"):
        load_images(tmp_path)


@pytest.mark.parametrize("missing", [None, -1])
def test_named_classes_are_complete_but_for_splits_without_any(tmp_path, missing):
    classes = datasets.ClassLabel(names=["a", "b"])
    save(tmp_path / "train.parquet", [0, 1, 1], classes)
    save(tmp_path / "test.parquet", [missing, missing], classes)
    assert {name: list(rows["label"]) for name, rows in load_images(tmp_path).items()} == {
        "train": [0, 1, 1],
        "test": [missing, missing],
    }
    with pytest.raises(ValueError, match=r"2 of 2 rows of split test have no label \(None or -1\)"):
        load_images(tmp_path / "test.parquet")
    save(tmp_path / "test.parquet", [missing, 0], classes)
    with pytest.raises(ValueError, match="1 of 2 rows of split test have no label"):
        load_images(tmp_path)
    save(tmp_path / "test.parquet", [1, 0], classes)
    save(tmp_path / "train.parquet", [0, missing, missing], classes)
    with pytest.raises(ValueError, match="2 of 3 rows of split train have no label"):
        load_images(tmp_path)


def test_a_split_without_labels_is_not_evaluated_on(tmp_path):
    classes = datasets.ClassLabel(names=["a", "b"])
    save(tmp_path / "train.parquet", [0, 1, 1, 0], classes)
    save(tmp_path / "test.parquet", [-1, -1], classes)
    with pytest.raises(ValueError, match=r"The split test of .* has no labels. Give another as `eval_split`"):
        DataArguments(dataset=str(tmp_path)).load(seed=0)
    train, held_out, _ = DataArguments(dataset=str(tmp_path), holdout=0.5).load(seed=0)
    assert len(train) == len(held_out) == 2
