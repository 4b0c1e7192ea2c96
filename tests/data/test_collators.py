import numpy as np
import pytest
import torch

from hf_vitfm.data.collators import collate_labelled


def rows_with(labels, key="label"):
    return [{"pixel_values": torch.full((3, 4, 4), float(i)), key: label} for i, label in enumerate(labels)]


@pytest.mark.parametrize("key", ["label", "labels"])
@pytest.mark.parametrize("labels", [[1, 0, 2], [np.int32(1), np.int32(0), np.int32(2)], list(torch.tensor([1, 0, 2]))])
def test_class_ids_become_int64(labels, key):
    batch = collate_labelled(rows_with(labels, key))
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [1, 0, 2]
    assert batch["pixel_values"].shape == (3, 3, 4, 4)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [[[0.25, 0.75], [1, 0]], [[1, 0], [1, 1]], [np.array([0.25, 0.75]), np.ones(2)]])
def test_vectors_become_float32(labels):
    batch = collate_labelled(rows_with(labels))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[float(value) for value in label] for label in labels]


def test_numbers_for_regression_become_float32():
    labels = collate_labelled(rows_with([0.5, 2.0]))["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [0.5, 2.0]


def test_rows_without_label_give_none_and_other_keys_are_left_out():
    rows = [
        {"pixel_values": torch.zeros(3, 4, 4), "caption": "a"},
        {"pixel_values": torch.zeros(3, 4, 4), "label": None},
    ]
    assert list(collate_labelled(rows)) == ["pixel_values"]


def test_mixed_labels_win_over_the_class_id():
    row = {"pixel_values": torch.zeros(3, 4, 4), "label": 1, "labels": [0.5, 0.5]}
    assert collate_labelled([row])["labels"].tolist() == [[0.5, 0.5]]


def test_different_shapes_are_named():
    rows = [{"pixel_values": torch.zeros(3, 4, 4)}, {"pixel_values": torch.zeros(3, 5, 4)}]
    with pytest.raises(ValueError, match=r"\(3, 4, 4\), \(3, 5, 4\).*[Rr]esize"):
        collate_labelled(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{"image": 1}], r"row 0 has the keys \['image'\]"),
        (rows_with([1, None]), "1 of 2 without"),
        (rows_with([1, [0.5, 0.5]]), r"\(\), \(2,\)"),
    ],
)
def test_rows_that_make_no_batch_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        collate_labelled(rows)
