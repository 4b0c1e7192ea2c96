"""Data sets of suites are opened in the layouts in which they are published, and in others."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest

from hf_vitfm.evaluation.suite_data import Unavailable, open_row
from hf_vitfm.evaluation.suites import SuiteRow, load_suite
from tests.data.images import write_tar
from tests.evaluation.suite_fixtures import NAMES, picture, rows_of, write_fixture


def find_row(suite: str, name: str) -> SuiteRow:
    (row,) = load_suite(suite).select([name])
    return row


ONE_OF_A_LAYOUT = [
    ("clip27", "pets"),
    ("clip27", "voc2007"),
    ("clip27", "birdsnap"),
    ("clip27", "ucf101"),
    ("clip27", "kinetics700"),
    ("clip27", "hateful_memes"),
    ("imagenet", "imagenet-v2"),
    ("imagenet", "imagenet-real"),
]


@pytest.mark.parametrize(("suite", "name"), ONE_OF_A_LAYOUT)
def test_a_published_layout_is_opened(suite, name, tmp_path):
    row = find_row(suite, name)
    data = open_row(row, write_fixture(row, tmp_path))
    assert list(data.splits) == (["train", "test"] if row.train_size else ["test"])
    for split, dataset in data.splits.items():
        expected = rows_of(split, min(3, row.num_classes))
        assert len(dataset) == len(expected)
        labels = [label if row.task == "single_label" else int(np.argmax(label)) for label in dataset["label"]]
        # The picture tells its class whatever the order of the rows.
        seen = [int(np.asarray(image.convert("RGB")).mean((0, 1)).argmax()) for image in dataset["image"]]
        names = data.label_names
        if names and not names[0].isdecimal() and not row.reassessed:
            assert [names[label].lower().replace("_", " ") for label in labels] == [NAMES[color] for color in seen]
        else:
            assert labels == seen
        assert sorted(seen) == sorted(label for _, label in expected)


def test_the_hub_route_reads_the_same_rows(tmp_path, monkeypatch):
    row, asked = find_row("clip27", "pets"), []
    folder = write_fixture(row, tmp_path / "repository")
    load = datasets.load_dataset

    def local(name, config, data_files):
        asked.append((name, config, data_files))
        return load(str(folder), config, data_files=data_files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    found, expected = open_row(row), open_row(row, folder)
    assert asked == [(row.hub, None, {"train": "train/*.tar", "test": "test/*.tar"})]
    assert found.source == row.hub
    for split in ("train", "test"):
        assert found.splits[split]["label"] == expected.splits[split]["label"]
        images = zip(found.splits[split]["image"], expected.splits[split]["image"], strict=True)
        assert all(np.array_equal(one, other) for one, other in images)


def test_what_is_not_given_is_named_with_the_reason():
    with pytest.raises(Unavailable, match="needs the network .clip-benchmark/wds_vtab-pets.*--data pets=PATH"):
        open_row(find_row("clip27", "pets"))
    with pytest.raises(Unavailable, match="not given .*licence: to be accepted from Meta"):
        open_row(find_row("clip27", "hateful_memes"))


def test_other_forms_of_a_copy_are_opened_too(tmp_path):
    row = find_row("clip27", "dtd")
    for split in ("train", "val", "test"):
        for number, label in rows_of("test"):
            place = tmp_path / "folders" / split / NAMES[label] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture(label, number).save(place)
    data = open_row(row, tmp_path / "folders")
    assert list(data.splits) == ["train", "validation", "test"]
    datasets.DatasetDict(data.splits).save_to_disk(tmp_path / "saved")
    again = open_row(row, tmp_path / "saved")
    assert again.label_names == data.label_names == sorted(NAMES)
    assert again.splits["test"]["label"] == data.splits["test"]["label"]


def test_folders_named_by_numbers_are_class_ids(tmp_path):
    row = find_row("imagenet", "imagenet-v2")
    for label in range(12):
        (tmp_path / str(label)).mkdir()
        picture(label % 3, label).save(tmp_path / str(label) / f"{label}.png")
    data = open_row(row, tmp_path)
    # As text they are sorted 0, 1, 10, 11, 2, ...
    assert data.label_names == [str(label) for label in range(12)]
    paths = [
        image["path"] for image in data.splits["test"].cast_column("image", datasets.Image(decode=False))["image"]
    ]
    assert [path.rsplit("/", 1)[1] for path in paths] == [f"{label}.png" for label in data.splits["test"]["label"]]


def test_differences_from_the_paper_are_noted_with_numbers(tmp_path):
    row = find_row("clip27", "birdsnap")
    data = open_row(row, write_fixture(row, tmp_path))
    assert data.notes == (
        "3 classes, the suite says 500",
        "9 test images, the suite says 2,149",
        "24 training images, the suite says 42,283",
    )


def test_the_first_rows_of_vtab_are_taken(tmp_path):
    row = find_row("vtab1k", "pets")
    folder = write_fixture(row, tmp_path)
    labels = open_row(row, folder).splits["train"]["label"]
    data = open_row(row, folder, {"train": 12, "validation": 6})
    assert data.splits["train"]["label"] == labels[:12]
    assert data.splits["validation"]["label"] == labels[12:18]
    assert len(data.splits["test"]) == 9
    assert "no validation split: 6 training rows behind the first 12" in data.notes


def test_sorted_training_rows_are_drawn_not_cut(tmp_path):
    for split in ("train", "test"):
        for label in range(3):
            for number in range(8):
                place = tmp_path / split / NAMES[label] / f"{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                picture(label, number).save(place)
    data = open_row(find_row("vtab1k", "pets"), tmp_path, {"train": 8, "validation": 4})
    assert set(data.splits["train"]["label"]) == {0, 1, 2}
    assert any(note.startswith("training rows are sorted: 12 were drawn") for note in data.notes)


def test_a_missing_path_and_a_missing_test_split_are_errors(tmp_path):
    row = find_row("clip27", "pets")
    with pytest.raises(FileNotFoundError, match="--data pets=.*nothing at this path"):
        open_row(row, tmp_path / "nowhere")
    folder = write_fixture(row, tmp_path)
    (folder / "test" / "0.tar").unlink()
    with pytest.raises(ValueError, match="pets must have a split test to test on; .* has train"):
        open_row(row, folder)


def test_an_empty_test_split_is_an_error(tmp_path):
    row = find_row("clip27", "pets")
    folder = write_fixture(row, tmp_path)
    write_tar(folder / "test" / "0.tar", {"README": "nothing"})
    with pytest.raises(ValueError, match="holds no image"):
        open_row(row, folder)


def test_a_broken_vector_of_labels_is_named(tmp_path):
    row = find_row("clip27", "voc2007")
    folder = write_fixture(row, tmp_path)
    write_tar(folder / "test" / "0.tar", {"s0000000.webp": b"x", "s0000000.npy": b"no array"})
    with pytest.raises(ValueError, match="the .npy of s0000000.webp in .*0.tar is no row of numbers"):
        open_row(row, folder)


def test_fingerprints_change_with_a_label_and_with_a_pixel(tmp_path):
    row = find_row("clip27", "hateful_memes")
    folder = write_fixture(row, tmp_path)
    first = open_row(row, folder).fingerprints
    assert open_row(row, folder).fingerprints == first
    picture(1, 99).save(folder / "img" / "test00000.png")
    second = open_row(row, folder).fingerprints
    assert second["train"] == first["train"] and second["test"] != first["test"]
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    lines[0]["label"] = 1 - lines[0]["label"]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert open_row(row, folder).fingerprints["train"] != first["train"]


def test_a_lone_split_for_training_is_tested_on_and_said_so(tmp_path):
    row = replace(find_row("clip27", "pets"), train_size=None)
    for place in ("named/train", "unnamed"):
        for label in range(2):
            (tmp_path / place / NAMES[label]).mkdir(parents=True)
            picture(label, 0).save(tmp_path / place / NAMES[label] / "0.png")
    said = "no test split: all images of 'train' are tested on, and none is learnt from"
    assert said in open_row(row, tmp_path / "named").notes
    assert said not in open_row(row, tmp_path / "unnamed").notes
