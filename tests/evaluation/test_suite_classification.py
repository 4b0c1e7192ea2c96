"""Classifiers are measured by their own heads: by which outputs, on which data sets; a loop over logits is the reference."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from timm.data import ImageNetInfo
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTImageProcessor,
)

from hf_vitfm import ViTForImageClassification
from hf_vitfm.evaluation import suite_tasks
from hf_vitfm.evaluation.features import extract_features
from hf_vitfm.evaluation.suite_classes import classes_of_outputs
from hf_vitfm.evaluation.suite_data import open_row
from hf_vitfm.evaluation.suite_models import load_suite_model
from hf_vitfm.evaluation.suite_report import write_report
from hf_vitfm.evaluation.suite_runner import SuiteOptions, run_suite
from hf_vitfm.evaluation.suites import load_suite
from tests.evaluation.imagenet_lists import INFO, TORCHVISION, WNIDS
from tests.evaluation.suite_fixtures import NAMES, write_fixture
from tests.tiny import randomize, tiny_config


DESCRIPTIONS = [ImageNetInfo().index_to_description(number) for number in range(1000)]
ROTATED = [(number + 7) % 1000 for number in range(1000)]  # the class of every output
SUITE = load_suite("imagenet")


def save_classifier(folder, names) -> str:
    config = tiny_config(image_size=16, num_hidden_layers=1, num_labels=len(names), id2label=dict(enumerate(names)))
    randomize(ViTForImageClassification(config)).save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)
    return str(folder)


def evaluate(suite, names, models, folder, tasks=("classification",)):
    """Run on fixtures; results by (data set, model), and the folders."""
    places = {}
    for row in suite.select(names):
        places[row.name] = folder / "data" / row.name
        if not places[row.name].exists():
            write_fixture(row, places[row.name])
    options = SuiteOptions(tasks=tasks, data={name: str(place) for name, place in places.items()})
    run = run_suite(suite, suite.select(names), models, folder / "output", options)
    assert not run.failures
    return {(result["dataset"], Path(result["model"]).name): result for result in run.results}, run


def logits_by_hand(source, row, place) -> tuple[torch.Tensor, list[int]]:
    """Logits and labels of the test images, one image at a time."""
    model, rows = load_suite_model(source), open_row(row, place).splits["test"]
    with torch.no_grad():
        logits = [model.model(pixel_values=model.transform(image)[None]).logits[0] for image in rows["image"]]
    return torch.stack(logits), rows["label"]


def test_the_classes_of_a_and_r_are_those_of_timm():
    for name, row in (("a", "imagenet-a"), ("r", "imagenet-r")):
        (found,) = SUITE.select([row])
        assert list(found.imagenet_classes) == list(
            map(int, (INFO / f"imagenet_{name}_indices.txt").read_text().split())
        )
    for suite, name in (("clip27", "imagenet"), ("imagenet", "imagenet-v2"), ("imagenet", "imagenet-sketch")):
        assert load_suite(suite).select([name])[0].imagenet_classes == tuple(range(1000))


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r", "imagenet-v2"])
def test_logits_are_compared_among_the_classes_of_the_row(name, tmp_path):
    source = save_classifier(tmp_path / "model", [WNIDS[number] for number in ROTATED])
    (row,) = SUITE.select([name])
    found = evaluate(SUITE, [name], [source], tmp_path)[0][name, "model"]
    logits, labels = logits_by_hand(source, row, tmp_path / "data" / name)
    outputs = [ROTATED.index(number) for number in row.imagenet_classes]  # label k of a tar is the k-th of these
    scores = logits[:, outputs].double().softmax(dim=1).numpy()
    everything = list(range(len(outputs)))
    assert found["status"] == "done", found
    metrics = found["metrics"]
    assert found["score"] == metrics["top1"] == top_k_accuracy_score(labels, scores, k=1, labels=everything)
    assert metrics["top5"] == top_k_accuracy_score(labels, scores, k=5, labels=everything)
    assert metrics["mean_per_class"] == pytest.approx(
        sum((scores.argmax(1) == k)[[i for i, x in enumerate(labels) if x == k]].mean() for k in range(3)) / 3
    )
    assert metrics["loss"] == pytest.approx(
        -sum(map(float, map(torch.log, torch.tensor(scores)[range(len(labels)), labels]))) / len(labels)
    )
    assert (metrics["rows"], metrics["classes"]) == (9, len(outputs)) and 0 <= metrics["calibration_error"] <= 1
    assert [text.split(" are taken")[0] for text in found["assumptions"]] == ["labels from 0"]


def test_real_labels_are_scored_in_the_pass_of_imagenet(tmp_path, monkeypatch):
    source, calls = save_classifier(tmp_path / "model", [WNIDS[number] for number in ROTATED]), []
    place = tmp_path / "data" / "imagenet-real"
    write_fixture(SUITE.select(["imagenet-real"])[0], place)
    logits, labels = logits_by_hand(source, SUITE.select(["imagenet-real"])[0], place)
    right = [ROTATED[output] for output in logits.argmax(dim=1).tolist()]
    # Of all nine images, three have no label, and of the others every second is right.
    files = sorted(place.rglob("*.JPEG"))
    number_of = [int(file.stem.split("_")[-1]) - 1 for file in files]
    real = [[] for _ in files]
    for place_of, (number, guess) in enumerate(zip(number_of, right, strict=True)):
        real[number] = [] if place_of < 3 else [guess, 5] if place_of % 2 else [(guess + 1) % 1000]
    (place / "real.json").write_text(json.dumps(real))
    classify = suite_tasks.classify_images
    monkeypatch.setattr(suite_tasks, "classify_images", lambda *a, **k: calls.append(1) or classify(*a, **k))
    (tmp_path / "data" / "imagenet").symlink_to(place)
    results, _ = evaluate(SUITE, ["imagenet", "imagenet-real"], [source], tmp_path)
    whole, found = results["imagenet", "model"], results["imagenet-real", "model"]
    assert found["status"] == "done", found
    assert found["score"] == found["metrics"]["real_top1"] == 0.5
    assert (found["metrics"]["real_rows"], found["metrics"]["real_left_out"]) == (6, 3)
    expected = sum(guess == label for guess, label in zip(right, labels, strict=True)) / 9
    assert whole["score"] == found["metrics"]["top1"] == expected and found["assumptions"] == [] and len(calls) == 1
    # Other labels are another request.
    (place / "real.json").write_text(json.dumps([[right[number_of.index(i)]] for i in range(9)]))
    results, _ = evaluate(SUITE, ["imagenet", "imagenet-real"], [source], tmp_path)
    assert results["imagenet-real", "model"]["score"] == 1 and results["imagenet", "model"]["resumed"]


def test_outputs_are_known_by_their_names():
    identity = list(range(1000))
    assert classes_of_outputs(WNIDS) == (identity, False)
    assert classes_of_outputs([WNIDS[number] for number in ROTATED]) == (ROTATED, False)
    assert classes_of_outputs(TORCHVISION) == classes_of_outputs(DESCRIPTIONS) == (identity, False)
    assert classes_of_outputs([TORCHVISION[number] for number in ROTATED]) == (ROTATED, False)
    assert classes_of_outputs(["background", *DESCRIPTIONS]) == ([-100, *identity], False)
    assert classes_of_outputs([f"LABEL_{number}" for number in identity]) == (identity, True)
    numbers = sorted(map(str, identity))  # as folders are sorted
    assert classes_of_outputs(numbers) == ([int(number) for number in numbers], True)
    with pytest.raises(ValueError, match="11,821 outputs have no names"):
        classes_of_outputs([f"LABEL_{number}" for number in range(11821)])
    with pytest.raises(ValueError, match="not 0 to 999"):
        classes_of_outputs(list(map(str, range(1, 1001))))


def test_other_heads_are_skipped_with_the_reason(tmp_path):
    models = [
        save_classifier(tmp_path / "few", WNIDS[:2]),
        save_classifier(tmp_path / "other", ["unicorn", "mermaid", "griffin"]),
        save_classifier(tmp_path / "nameless", [f"LABEL_{k}" for k in range(200)]),
        "fashion-mae",
    ]
    found, run = evaluate(SUITE, ["imagenet-r"], models, tmp_path)
    reasons = {model: result["reason"] for (_, model), result in found.items()}
    assert {result["status"] for result in found.values()} == {"skipped"} and run.is_whole
    assert reasons["few"] == "the model has no output for 199 of the 200 classes"
    assert reasons["other"] == "the model's 3 outputs, such as 'unicorn', are not ImageNet's classes"
    assert reasons["nameless"].startswith("the model's 200 outputs have no names")
    assert reasons["fashion-mae"] == "the model has no head that classifies"


def test_other_data_sets_are_measured_where_the_names_are_the_same(tmp_path):
    suite = load_suite("clip27")
    names = [name.title().replace(" ", "_") for name in NAMES]
    models = [
        save_classifier(tmp_path / "same", names[::-1]),
        save_classifier(tmp_path / "other", [*names[:2], "yellow thing"]),
        save_classifier(tmp_path / "nameless", ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ]
    # UCF101 has folders, Pets tars of numbers with a list of names beside them.
    rows = ["pets", "ucf101", "voc2007", "hateful_memes"]
    found, run = evaluate(suite, rows, models, tmp_path)
    for name in ("pets", "ucf101"):
        row = suite.select([name])[0]
        logits, labels = logits_by_hand(models[0], row, tmp_path / "data" / name)
        own = open_row(row, tmp_path / "data" / name).label_names
        # Folders are sorted by their names, which are blue, green, red.
        place_of = [0, 1, 2] if own[0] != "0" else [2, 1, 0]
        expected = [place_of[label] for label in labels]
        result = found[name, "same"]
        assert result["status"] == "done", result
        assert result["score"] == pytest.approx(balanced_accuracy_score(expected, logits.argmax(dim=1)))
        assert result["assumptions"] == []
        for model in ("other", "nameless"):
            assert (
                found[name, model]["status"] == "skipped"
                and "are not the data set's 3" in found[name, model]["reason"]
            )
    assert found["voc2007", "same"]["reason"] == "several labels per image"
    assert found["hateful_memes", "same"]["status"] == "skipped"
    files = write_report(tmp_path / "report", suite, suite.select(rows), run)
    table = files[2].read_text()
    assert "## The model's own classifier" in table and "| Data set | Model | Top-1 | Top-5 |" in table


def test_models_of_transformers_are_loaded_once_for_head_and_features(tmp_path):
    names = {"id2label": dict(enumerate(TORCHVISION)), "num_labels": 1000}
    models = {
        "resnet": ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **names)
        ),
        "swin": SwinForImageClassification(
            SwinConfig(
                image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, **names
            )
        ),
    }
    (row,) = SUITE.select(["imagenet-v2"])
    for name, model in models.items():
        randomize(model).save_pretrained(tmp_path / name)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
    found, _ = evaluate(SUITE, [row.name], [str(tmp_path / name) for name in models], tmp_path)
    for name, model in models.items():
        result, loaded = found[row.name, name], load_suite_model(tmp_path / name)
        assert type(loaded.model) is type(model) and loaded.has_head
        logits, labels = logits_by_hand(tmp_path / name, row, tmp_path / "data" / row.name)
        assert result["status"] == "done", result
        assert result["score"] == (logits.argmax(dim=1) == torch.tensor(labels)).double().mean().item()
        images = open_row(row, tmp_path / "data" / row.name).splits["test"]
        pooling = suite_tasks.probe_pooling(loaded.model)
        own = extract_features(loaded.model, images, loaded.transform, pooling=pooling)[0]
        torch.testing.assert_close(
            own, extract_features(model.base_model, images, loaded.transform, pooling="mean")[0]
        )
