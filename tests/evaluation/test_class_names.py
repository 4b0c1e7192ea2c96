"""Class names from files in the layout that others write, and from the libraries that have them."""

import json
import sys

import datasets
import open_clip
import pytest
from torchvision.models import ResNet50_Weights

from hf_vitfm.data.datasets import label_names
from hf_vitfm.data.samples import load_sample
from hf_vitfm.evaluation.class_names import (
    NOT_CLIPS,
    class_names_beside,
    class_names_of_labels,
    class_names_of_sample,
    imagenet_class_names,
    read_class_names,
)
from hf_vitfm.evaluation.prompts import write_prompts


NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


def write(folder, names: bytes = b"cat\ndog\n", templates: bytes = b"a photo of a {c}.\n") -> None:
    (folder / NAMES).write_bytes(names)
    (folder / TEMPLATES).write_bytes(templates)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (b"cat\nbig dog\n", ("cat", "big dog")),
        (b"cat\nbig dog", ("cat", "big dog")),
        (b"\xef\xbb\xbfcat\r\nbig dog  \r\n\r\n \r\n", ("cat", "big dog")),
        ("T-shirt/top\nañu \u2028é".encode(), ("T-shirt/top", "añu \u2028é")),
        (b"missile\nox\nmissile\n", ("missile", "ox", "missile")),
    ],
    ids=["plain", "no last newline", "windows", "unicode", "twice"],
)
def test_names_lie_beside_the_data_one_a_line(tmp_path, names, expected):
    write(tmp_path, names)
    found = class_names_beside(tmp_path)
    assert (found.names, found.templates) == (expected, ("a photo of a {}.",))
    assert str(tmp_path) in found.source


def test_templates_have_either_place_for_the_name(tmp_path):
    write(tmp_path, templates=b"a {c}.\r\n\r\nart of {}\r\n  a {c}. \r\n")
    assert class_names_beside(tmp_path).templates == ("a {}.", "art of {}", "a {}.")  # twice counts double


def test_a_blank_name_keeps_its_place(tmp_path):
    # So clip-benchmark names the distances of CLEVR's objects.
    write(tmp_path, b"near\n\ndistant\n\n", b"{c} shapes.\n")
    found = class_names_beside(tmp_path)
    assert found.names == ("near", "", "distant")
    with pytest.warns(UserWarning, match="The name of class 1 is empty"):
        assert write_prompts(found.names, found.templates)[" shapes."] == [1]
    with pytest.raises(ValueError, match="that of class 1 is ''"):
        write_prompts(found.names, ["{}"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"names": b"\n \n"}, f"{NAMES} holds no texts"),
        ({"templates": b""}, f"{TEMPLATES} holds no texts"),
        ({"templates": b"a {c}\na photo\n"}, f"{TEMPLATES}: a template must hold"),
        ({"templates": b"a {c} and {c}"}, f"{TEMPLATES}: a template must hold"),
        ({"templates": b"a {name}"}, "got 'a {name}'"),
        ({"names": "año".encode("latin-1")}, f"{NAMES} must be a UTF-8 text file"),
    ],
)
def test_files_that_hold_something_else_are_named(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        class_names_beside(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / NAMES).write_text("cat")
    with pytest.raises(FileNotFoundError, match=TEMPLATES):
        class_names_beside(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file 'gone.txt'"):
        read_class_names(tmp_path / NAMES, "gone.txt")


def test_json_holds_a_list_or_one_for_each_data_set(tmp_path):
    names, templates = tmp_path / "names.json", tmp_path / "templates.json"
    names.write_text(json.dumps({"pets": ["cat", "dog "], "birds": ["hen"]}))
    templates.write_text(json.dumps(["a {c}", "{}"]))
    found = read_class_names(names, templates, "pets")
    assert (found.names, found.templates) == (("cat", "dog"), ("a {}", "{}"))
    assert found.source == "names.json and templates.json (pets)"
    with pytest.raises(ValueError, match=r"names.json has lists for birds, pets; got `dataset` None"):
        read_class_names(names, templates)
    names.write_text(json.dumps({"birds": ["hen"]}))
    assert read_class_names(names, templates).names == ("hen",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be a UTF-8 text file, or JSON"),
        ("[1, 2]", "must hold a list of texts"),
        ('"cat"', "must hold a list of texts"),
        ('{"pets": {"cat": ["a tabby cat"]}}', "has texts of their own for each class of 'pets'"),
    ],
)
def test_json_of_another_form_is_named(tmp_path, content, message):
    (tmp_path / "names.txt").write_text("cat")
    (tmp_path / "templates.json").write_text(content)
    with pytest.raises(ValueError, match=f"templates.json {message}"):
        read_class_names(tmp_path / "names.txt", tmp_path / "templates.json")


def test_labels_name_classes_with_spaces():
    feature = datasets.ClassLabel(names=["apple_pie", "cat", "sea__lion "])
    rows = datasets.Dataset.from_dict({"label": [0, 2]}, features=datasets.Features({"label": feature}))
    found = class_names_of_labels(rows)
    assert found.names == ("apple pie", "cat", "sea lion")
    assert NOT_CLIPS in found.source
    assert class_names_of_labels(rows, ["{c}"]).templates == ("{}",)
    with pytest.raises(ValueError, match="have no names"):
        class_names_of_labels(datasets.Dataset.from_dict({"label": [0, 2]}))


@pytest.mark.parametrize(
    ("sample", "split", "column"), [("emoji", "google", "category"), ("fashion-mnist", "test", None)]
)
def test_samples_have_a_name_for_every_class(sample, split, column):
    rows = load_sample(sample)[split]
    labels = rows.features[column].names if column else label_names(rows)
    found = class_names_of_sample(sample)
    assert len(found.names) == len(labels)
    assert len(write_prompts(found.names, found.templates)) == len(found.names) * len(found.templates)
    shared = [name[:3].lower() in label.lower() for name, label in zip(found.names, labels, strict=True)]
    assert sum(shared) >= len(labels) / 2  # in the order of the labels
    with pytest.raises(ValueError, match="must be one of emoji, fashion-mnist"):
        class_names_of_sample("cifar10")


def test_imagenet_has_clips_prompts_where_open_clip_is():
    found = imagenet_class_names()
    assert found.names == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert len(found.templates) == 80
    for template, function in zip(found.templates, open_clip.OPENAI_IMAGENET_TEMPLATES, strict=True):
        assert template.format("red {fox}") == function("red {fox}")
    assert "open_clip" in found.source and NOT_CLIPS not in found.source
    with pytest.warns(UserWarning, match=r"657 and 744 \('missile'\), 836 and 837 \('sunglasses'\)"):
        write_prompts(found.names, found.templates)


def test_imagenet_elsewhere_has_torchvisions_names_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    found = imagenet_class_names()
    assert list(found.names) == ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    assert NOT_CLIPS in found.source
    write_prompts(found.names, found.templates)
