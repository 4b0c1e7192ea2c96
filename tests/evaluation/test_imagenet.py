"""Folders as ImageNet's relatives name them, and ReaL labels; timm's lists and code are the reference."""

import json
import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch.nn import functional as F

from hf_vitfm import ViTForImageClassification, ZeroShotClassifier
from hf_vitfm.data.datasets import label_names, load_images
from hf_vitfm.evaluation.classification import classify_images, evaluate_classification
from hf_vitfm.evaluation.imagenet import (
    image_files,
    imagenet_labels,
    imagenet_wnids,
    read_real_labels,
    real_accuracy,
    relabel,
)
from hf_vitfm.evaluation.zero_shot import zero_shot_metrics
from tests.data.images import encode, noise
from tests.evaluation.imagenet_lists import INFO, TORCHVISION, WNIDS
from tests.evaluation.test_classification import to_pixels
from tests.tiny import randomize, tiny_config


VAL = "ILSVRC2012_val_{:08d}.JPEG"


@pytest.fixture
def without_timm(monkeypatch):
    for name in ("timm", "timm.data"):
        monkeypatch.setitem(sys.modules, name, None)


# WordNet ids


def shuffled(values, seed: int = 0) -> list:
    values = list(values)
    return random.Random(seed).sample(values, len(values))


def test_ids_are_those_of_timm():
    assert list(imagenet_wnids()) == ImageNetInfo().label_names() == WNIDS


def test_ids_are_found_where_they_lie_and_sorted(tmp_path, without_timm):
    folder = tmp_path / "imagenet"
    for wnid in WNIDS:
        (folder / "train" / f"{wnid}").mkdir(parents=True)
    (folder / "train" / "lost+found").mkdir()
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text("\r\n".join(f"{wnid} a thing, n02 or so" for wnid in shuffled(WNIDS)), encoding="utf-8-sig")
    index = tmp_path / "imagenet_class_index.json"
    index.write_text(json.dumps({str(i): [wnid, "thing"] for i, wnid in enumerate(WNIDS)}))
    for source in (folder, str(folder / "train"), mapping, index, shuffled(WNIDS)):
        assert list(imagenet_wnids(source)) == WNIDS


def test_what_holds_no_ids_is_named_with_where_they_are(tmp_path, without_timm):
    with pytest.raises(ImportError, match=r"Name a folder with ImageNet's 1,000 class folders .*pip install timm"):
        imagenet_wnids()
    with pytest.raises(FileNotFoundError, match="nothing at .*Name a folder"):
        imagenet_wnids(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"found 0 in .*Name a folder"):
        imagenet_wnids(tmp_path)
    with pytest.raises(ValueError, match="found 999 in the list"):
        imagenet_wnids(WNIDS[1:])


# Folders


@pytest.mark.parametrize("relative", ["a", "r"])
def test_folders_of_a_and_r_are_timms_indices(relative):
    folders = (INFO / f"imagenet_{relative}_synsets.txt").read_text().split()
    expected = [int(line) for line in (INFO / f"imagenet_{relative}_indices.txt").read_text().split()]
    assert imagenet_labels(folders, WNIDS, num_classes=200) == expected
    order = shuffled(range(200))
    assert imagenet_labels([folders[i] for i in order], num_classes=200) == [expected[i] for i in order]
    with pytest.raises(ValueError, match="must have 200 of ImageNet's classes; found 199"):
        imagenet_labels(folders[1:], WNIDS, num_classes=200)


def test_numbers_are_numbers_in_whatever_order():
    folders = sorted(map(str, range(1000)))
    assert folders[:3] == ["0", "1", "10"]
    assert imagenet_labels(folders) == [int(folder) for folder in folders]
    assert imagenet_labels([f"{number:04d}" for number in range(1000)]) == list(range(1000))
    assert imagenet_labels(["7", "12"]) == [7, 12]


def test_folders_with_more_than_the_id_are_found():
    folders = [f"{wnid}_{name}" for wnid, name in zip(WNIDS, TORCHVISION, strict=True)]
    assert imagenet_labels(folders, WNIDS) == list(range(1000))


def test_class_names_are_matched_without_case_and_by_synonyms():
    assert imagenet_labels([name.replace(" ", "_") for name in TORCHVISION]) == list(range(1000))
    upper = [name for name in TORCHVISION if name.lower() != "cardigan"]  # two classes, told apart by case alone
    assert imagenet_labels(list(map(str.upper, upper))) == [TORCHVISION.index(name) for name in upper]
    with pytest.raises(ValueError, match="'CARDIGAN' may be any of the classes 264, 474"):
        imagenet_labels(["CARDIGAN"])
    names = [f"thing {i}, synonym {i}" for i in range(1000)]
    names[3], names[4], names[5] = "crane", "crane", "thing 7"
    assert imagenet_labels(["Synonym_9", "thing 8, synonym 8", "thing-10"], names=names) == [9, 8, 10]
    assert imagenet_labels(["thing 7"], names=names) == [5]  # the whole name before a synonym
    with pytest.raises(ValueError, match="'crane' may be any of the classes 3, 4"):
        imagenet_labels(["crane"], names=names)
    with pytest.raises(ValueError, match="`names` must be 1,000"):
        imagenet_labels(["crane"], names=names[1:])


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["n01440764", "misc", "n01443537", "n99999999", "7"], [0, -100, 1, -100, -100]),
        (["0", "1", "10", "misc", "extra"], [0, 1, 10, -100, -100]),
        (["tench", "no such thing"], [0, -100]),
    ],
)
def test_strangers_are_left_out_and_named(folders, expected, caplog):
    with caplog.at_level(logging.WARNING):
        assert imagenet_labels(folders) == expected
    strangers = [folder for folder, label in zip(folders, expected, strict=True) if label < 0]
    named = ", ".join(map(repr, strangers))
    assert (
        f"{len(strangers)} folders are no classes of ImageNet, and their images are left out: {named}" in caplog.text
    )


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([str(number) for number in range(1, 1001)], "must be 0 to 999, .* got 1000. If they count from 1"),
        (["1", "01", "2"], "'1' and '01' are both ImageNet's class 1"),
        (["n01440764", "n01440764_tench"], "are both ImageNet's class 0"),
        (["beaver lodge", "airlock"], "None of the 2 folders"),
        (["n99999999"], "None of the 1 folders is a class of ImageNet: 'n99999999'"),
        ([], "None of the 0 folders"),
    ],
)
def test_folders_that_cannot_be_right_are_an_error(folders, message):
    with pytest.raises(ValueError, match=message):
        imagenet_labels(folders)


def test_numbers_and_names_need_no_timm_and_ids_ask_for_it(without_timm):
    assert imagenet_labels(["3", "0"]) == [3, 0]
    assert imagenet_labels(["tench"]) == [0]
    assert imagenet_labels(["n01443537"], WNIDS) == [1]
    with pytest.raises(ImportError, match="WordNet ids of ImageNet's classes are needed"):
        imagenet_labels(["n01443537"])


# Whole data sets in their layouts


def make_classifier() -> ViTForImageClassification:
    return randomize(ViTForImageClassification(tiny_config(num_labels=1000)))


def save(root: Path, folders: list[str], files: list[str] | None = None):
    for number, folder in enumerate(folders):
        file = root / folder / (files[number] if files else f"image_{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(noise(32, 32, seed=number)))
    return load_images(root)["train"]


def logits_by_folder(root: Path, model) -> dict[str, torch.Tensor]:
    """Logits (images, 1000) of each folder, read without this library."""
    from PIL import Image

    found = {}
    for folder in sorted(root.iterdir()):
        pixels = torch.stack([to_pixels(Image.open(file)) for file in sorted(folder.iterdir())])
        with torch.no_grad():
            found[folder.name] = model(pixel_values=pixels).logits
    return found


def test_v2_is_scored_by_the_numbers_of_its_folders(tmp_path):
    model, folders = make_classifier(), [str(number) for number in (0, 1, 2, 3, 10, 11, 100, 999)]
    rows = save(tmp_path, folders + ["10", "2"])
    by_folder = logits_by_folder(tmp_path, model)
    best = {folder: logits.argmax(1).tolist() for folder, logits in by_folder.items()}
    found = classify_images(model, rows, to_pixels, class_ids=imagenet_labels(label_names(rows)))
    assert found.predictions.tolist() == [guess for folder in sorted(folders) for guess in best[folder]]
    assert found.labels.tolist() == [int(folder) for folder in sorted(folders) for _ in best[folder]]
    assert found.metrics()["classes_without_images"] == 992


def test_rows_with_other_labels_are_the_same_rows(tmp_path):
    rows, model = save(tmp_path, ["0", "10", "2", "misc", "2"]), make_classifier()
    class_ids = imagenet_labels(label_names(rows))
    changed = relabel(rows, class_ids)
    assert changed["label"][:] == [0, 10, 2, 2, -100]
    assert label_names(changed) is None
    expected = classify_images(model, rows, to_pixels, class_ids=class_ids)
    found = classify_images(model, changed, to_pixels)
    assert torch.equal(found.labels, expected.labels) and torch.equal(found.summary[:4], expected.summary[:4])
    assert relabel(rows.select([4, 1]), class_ids)["label"][:] == [-100, 10]
    unlabelled = rows.map(lambda row: {"label": -1})
    assert set(relabel(unlabelled, class_ids)["label"][:]) == {-100}  # not the last class
    with pytest.raises(ValueError, match="each of the data set's 4 labels; got 3"):
        relabel(rows, class_ids[:3])
    with pytest.raises(ValueError, match="have no names"):
        relabel(changed, class_ids)


def test_v2_and_a_are_classified_zero_shot_by_the_names_of_imagenets_classes(tmp_path):
    images = torch.randn(1000, 6)
    names = [f"thing {number}" for number in range(1000)]
    rows = save(tmp_path / "v2", ["0", "10", "2"])
    class_ids = imagenet_labels(label_names(rows))
    classifier = ZeroShotClassifier(F.normalize(images, dim=1).T.contiguous(), tuple(names), ("{}",))
    labels = torch.tensor(relabel(rows, class_ids)["label"][:])
    assert zero_shot_metrics(classifier, images[[0, 10, 2]], labels)["top1"] == 1
    # Of A and R the classifier has the 200 names alone.
    some = imagenet_labels(["n01498041", "n01531178"], WNIDS)
    rows = save(tmp_path / "a", ["n01498041", "n01531178"])
    few = ZeroShotClassifier(classifier.weights[:, some], tuple(names[i] for i in some), ("{}",))
    assert zero_shot_metrics(few, images[some], torch.tensor(rows["label"][:]))["top1"] == 1


def test_r_is_scored_among_its_200_classes_alone(tmp_path):
    synsets = (INFO / "imagenet_r_synsets.txt").read_text().split()
    indices = torch.tensor([int(line) for line in (INFO / "imagenet_r_indices.txt").read_text().split()])
    rows, model = save(tmp_path, synsets), make_classifier()
    classes = imagenet_labels(label_names(rows), WNIDS, num_classes=200)
    metrics = evaluate_classification(model, rows, to_pixels, class_ids=classes, restrict_to=classes)
    # As timm's validation script does: the logits of the 200, in their order, against labels 0 to 199.
    logits = torch.cat([values for _, values in sorted(logits_by_folder(tmp_path, model).items())])[:, indices]
    ranks = (logits > logits.gather(1, torch.arange(200)[:, None])).sum(1)
    assert metrics["top1"] == pytest.approx((ranks == 0).double().mean().item())
    assert metrics["top5"] == pytest.approx((ranks < 5).double().mean().item())
    assert (metrics["rows"], metrics["classes"], metrics["classes_without_images"]) == (200, 200, 0)
    assert metrics["top5"] != evaluate_classification(model, rows, to_pixels, class_ids=classes)["top5"]


# ReaL


@pytest.fixture(scope="module")
def real_labels() -> list[list[int]]:
    return read_real_labels()


def test_labels_are_read_from_a_file_a_folder_and_timm(tmp_path, real_labels):
    content = (INFO / "imagenet_real_labels.json").read_text()
    assert real_labels == json.loads(content)
    (tmp_path / "real.json").write_text(content)
    assert read_real_labels(tmp_path / "real.json") == read_real_labels(str(tmp_path)) == real_labels
    assert sum(map(bool, real_labels)) == 46_837


def test_accuracy_is_that_of_timm_in_any_order_of_the_files(tmp_path, real_labels):
    real = real_labels[:2000]
    (tmp_path / "real.json").write_text(json.dumps(real))
    files = shuffled(VAL.format(number) for number in range(1, 2001))
    logits = torch.randn(2000, 1000)
    for row, file in enumerate(files):
        labels = real[int(file[15:23]) - 1]
        if row % 3 and labels:
            logits[row, labels[-1]] = 9
    theirs = RealLabelsImagenet(files, tmp_path / "real.json")
    theirs.add_result(logits)
    found = real_accuracy(logits, real, [f"val/n01440764/{file}" for file in files])
    assert 100 * found["real_top1"] == pytest.approx(theirs.get_accuracy(1))
    assert (found["rows"], found["left_out"]) == (sum(map(bool, real)), real.count([]))
    assert 0.6 < found["real_top1"] < 0.7
    order = np.argsort(files)
    assert real_accuracy(logits[order].argmax(1), real) == found  # without names: in the order of the numbers


def test_images_without_labels_and_images_that_cannot_be_read_are_left_out():
    real = [[], [3, 5], [5], [0], [7]]
    files = [VAL.format(number) for number in (5, 4, 3, 2, 1)]
    found = real_accuracy(torch.tensor([7, -1, 4, 5, 0]), real, files)
    assert found == {"real_top1": 2 / 3, "rows": 3, "left_out": 2}


def test_validation_images_in_class_folders_are_matched_by_name(tmp_path):
    # Sorted by folder, so that the third file comes first.
    files = [VAL.format(number) for number in (3, 1, 4, 2)]
    rows, model = save(tmp_path, ["n01440764", "n01443537", "n01443537", "n01484850"], files), make_classifier()
    found = classify_images(model, rows, to_pixels, class_ids=imagenet_labels(label_names(rows), WNIDS))
    assert [Path(file).name for file in image_files(rows)] == files
    real = [[] for _ in range(4)]
    real[2] = [int(found.predictions[0])]
    real[1] = [int(found.predictions[3]) + 1]
    assert real_accuracy(found.predictions, real, image_files(rows)) == {"real_top1": 0.5, "rows": 2, "left_out": 2}


def test_paths_are_read_without_the_images(tmp_path):
    rows = save(tmp_path, ["a", "b", "b"])
    for file in image_files(rows):
        Path(file).write_bytes(b"no image")
    assert len(image_files(rows)) == 3
    assert image_files(rows.select([2])) == image_files(rows)[2:]
    with pytest.raises(ValueError, match="Row 0 has an image without a path"):
        image_files(rows.map(lambda row: {"image": {"bytes": b"", "path": None}}, features=rows.features))


@pytest.mark.parametrize(
    ("predictions", "files", "message"),
    [
        ([1, 2], None, "2 predictions for 3 images"),
        ([1, 2], [VAL.format(1)], "2 predictions for 1 images"),
        ([1, 2], [VAL.format(1), VAL.format(4)], "ILSVRC2012_val_00000001 to 00000003; got .*00000004"),
        ([1, 2], [VAL.format(1), VAL.format(0)], "got 'ILSVRC2012_val_00000000"),
        ([1, 2], [VAL.format(1), "n01440764_10026.JPEG"], "got 'n01440764_10026.JPEG'"),
        ([1, 2], [VAL.format(2), "other/" + VAL.format(2)], "is there twice"),
        ([1], [VAL.format(3)], "No image has a ReaL label"),
        ([-1, -1, -1], None, "No image has a ReaL label"),
        ([0.5, 1.0, 2.0], None, "one class per row, or logits"),
    ],
)
def test_predictions_and_files_that_do_not_fit_are_named(predictions, files, message):
    with pytest.raises(ValueError, match=message):
        real_accuracy(torch.tensor(predictions), [[1], [2, 4], []], files)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "[[1], [1000]]", '[["1"]]'])
def test_a_file_of_another_form_is_named(tmp_path, content):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(ValueError, match="real.json must"):
        read_real_labels(tmp_path)


def test_without_a_file_and_timm_it_is_said_where_the_labels_are(without_timm, tmp_path):
    with pytest.raises(FileNotFoundError, match="google-research/reassessed-imagenet"):
        read_real_labels()
    with pytest.raises(FileNotFoundError, match=r"holds no 'real.json'"):
        read_real_labels(tmp_path)
