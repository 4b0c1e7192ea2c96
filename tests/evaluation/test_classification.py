"""Classifiers on labelled images, against scikit-learn's metrics and the logits of the model itself."""

import logging

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification
from transformers import ViTConfig as TheirViTConfig
from transformers import ViTForImageClassification as TheirViT

from hf_vitfm import ViTForImageClassification
from hf_vitfm.data.datasets import load_images
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.evaluation.classification import classify_images, evaluate_classification, restrict_logits
from tests.data.images import encode, noise
from tests.tiny import FIELDS, random_images, randomize, tiny_config


CLASSES = 8


def make_rows(count: int = 23, labels: int = CLASSES) -> list[dict]:
    return [{"pixel_values": pixels, "label": 5 * i % labels} for i, pixels in enumerate(random_images(count))]


def make_model(**fields) -> nn.Module:
    return randomize(ViTForImageClassification(tiny_config(num_labels=CLASSES, **fields)))


def logits_of(model: nn.Module, rows: list[dict]) -> np.ndarray:
    with torch.no_grad():
        return model(pixel_values=torch.stack([row["pixel_values"] for row in rows])).logits.double().numpy()


MODELS = {
    "ours": make_model,
    "transformers' ViT": lambda: randomize(TheirViT(TheirViTConfig(**{**FIELDS, "num_labels": CLASSES}))),
    "ResNet": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES)
    ).eval(),
}


@pytest.mark.parametrize("name", MODELS)
def test_metrics_of_any_classifier_are_those_of_scikit_learn(name):
    model, rows = MODELS[name](), make_rows()
    labels, logits = np.array([row["label"] for row in rows]), logits_of(model, rows)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    found = evaluate_classification(model, rows, batch_size=5)
    assert found["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(CLASSES)))
    assert found["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(CLASSES)), rel=1e-5)
    assert (found["rows"], found["left_out"], found["classes_without_images"]) == (23, 0, 0)
    assert 0 < found["calibration_error"] < 1
    assert 0 < found["top5"] < 1


def test_the_model_is_left_as_it_was_and_used_without_dropout():
    model, rows = make_model(hidden_dropout_prob=0.5).train(), make_rows(6)
    assert evaluate_classification(model, rows) == evaluate_classification(model, rows)
    assert model.training and not any(parameter.grad_fn for parameter in model.parameters())


def test_restricted_classes_are_compared_among_themselves():
    model, rows = make_model(), make_rows()
    outputs = [6, 1, 3]
    kept = [row for row in rows if row["label"] in outputs]
    logits = torch.from_numpy(logits_of(model, kept))[:, outputs]
    labels = torch.tensor([outputs.index(row["label"]) for row in kept])
    found = evaluate_classification(model, rows, restrict_to=outputs)
    assert found["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert (found["rows"], found["left_out"], found["classes"]) == (len(kept), 23 - len(kept), 3)
    assert list(found["per_class"]) == ["LABEL_6", "LABEL_1", "LABEL_3"]
    everything = classify_images(model, rows, restrict_to=outputs)
    assert set(everything.predictions.tolist()) <= set(outputs)
    expected = np.array(outputs)[logits_of(model, rows)[:, outputs].argmax(1)]
    assert everything.predictions.tolist() == expected.tolist()


def test_logits_are_sliced():
    logits = torch.arange(12.0).view(2, 6)
    assert restrict_logits(logits, [4, 1]).tolist() == [[4, 1], [10, 7]]
    assert restrict_logits(logits, range(6)) is logits
    for wrong in ([], [6], [-1], [2, 2]):
        with pytest.raises(ValueError, match=r"0 to 5, each once"):
            restrict_logits(logits, wrong)


def test_class_ids_say_which_output_a_label_is():
    model, rows = make_model(), make_rows(20, labels=3)
    class_ids = [5, -100, 2]
    renamed = [{**row, "label": class_ids[row["label"]]} for row in rows]
    expected = evaluate_classification(model, renamed)
    assert evaluate_classification(model, rows, class_ids=class_ids) == expected
    assert expected["left_out"] == sum(row["label"] == 1 for row in rows) > 0
    both = evaluate_classification(model, rows, class_ids=class_ids, restrict_to=[2, 5])
    assert both == evaluate_classification(model, renamed, restrict_to=[2, 5])


def save_folders(root, names: list[str], images: int = 2):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for copy in range(images):
            (root / name / f"{copy}.png").write_bytes(encode(noise(32, 32, seed=10 * number + copy)))
    return load_images(root)["train"]


def to_pixels(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 64 - 2).permute(2, 0, 1)


def test_names_in_another_order_are_matched(tmp_path):
    names = ["ox", "Cat", "hen", "dog", "ant", "bee", "cow", "eel"]
    model = make_model(id2label=dict(enumerate(names)))
    rows = save_folders(tmp_path, ["hen", "cat", "ant"])
    found = classify_images(model, rows, to_pixels)
    assert found.labels.tolist() == [4, 4, 1, 1, 2, 2]  # ant, cat, hen
    # Where case alone tells two classes apart, as ImageNet's "Cardigan" and "cardigan", it has to be the same.
    model.config.id2label[7] = "cat"
    with pytest.raises(ValueError, match="The data set has 3 classes"):
        evaluate_classification(make_model(id2label=dict(enumerate([*names[:7], "CAT"]))), rows, to_pixels)
    assert classify_images(model, rows, to_pixels).labels.tolist() == [4, 4, 7, 7, 2, 2]


def test_numbers_in_the_order_of_the_alphabet_are_not_taken_for_ids(tmp_path):
    names = [str(number) for number in (0, 1, 2, 3, 4, 5, 6, 10)]
    rows = save_folders(tmp_path, names)
    with pytest.raises(ValueError, match="numbers in the order of the alphabet, such as '0' and '6'"):
        evaluate_classification(make_model(), rows, to_pixels)
    ids = [int(name) % 8 for name in rows.features["label"].names]
    assert classify_images(make_model(), rows, to_pixels, class_ids=ids).labels[4:6].tolist() == [2, 2]


def test_another_number_of_classes_is_an_error(tmp_path):
    rows = save_folders(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match=r"2 classes, such as 'a' and 'b', and the model 8, such as 'LABEL_0'"):
        evaluate_classification(make_model(), rows, to_pixels)


def test_a_class_without_images_is_counted_and_said(caplog):
    rows = [row for row in make_rows() if row["label"] not in (2, 7)]
    with caplog.at_level(logging.WARNING):
        found = evaluate_classification(make_model(), rows)
    assert found["classes_without_images"] == 2
    assert "2 of 8 classes have no image, such as 'LABEL_2', 'LABEL_7'" in caplog.text
    assert found["per_class"]["LABEL_7"] is None


def with_bad_images() -> list[dict]:
    images = [encode(noise(32, 32, seed=i)) for i in range(11)]
    rows = [{"image": image, "label": i % CLASSES} for i, image in enumerate(images)]
    rows[4]["image"] = images[4][:60]
    rows[10]["image"] = b"no image"
    return rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_an_error_or_left_out(num_workers):
    model, rows = make_model(), with_bad_images()
    with pytest.raises(BadImageError, match="row 4"):
        evaluate_classification(model, rows, to_pixels, num_workers=num_workers)
    found = classify_images(model, rows, to_pixels, 4, on_bad_image="skip", num_workers=num_workers)
    assert [i for i, prediction in enumerate(found.predictions) if prediction < 0] == [4, 10]
    good = [row for i, row in enumerate(rows) if i not in (4, 10)]
    expected, metrics = evaluate_classification(model, good, to_pixels), found.metrics()
    assert (metrics["rows"], metrics["left_out"], metrics["top1"]) == (9, 2, expected["top1"])
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_images_without_labels_are_predicted():
    rows = [{"pixel_values": row["pixel_values"]} for row in make_rows(7)]
    found = classify_images(make_model(), rows, batch_size=3)
    assert found.predictions.tolist() == logits_of(make_model(), rows).argmax(1).tolist()
    with pytest.raises(ValueError, match="No image has a class"):
        found.metrics()


def run_all(count: int, is_sharded: bool = False) -> tuple:
    model, group = make_model(), dist.group.WORLD if dist.is_initialized() else None
    if group is not None and is_sharded:
        mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.base_model.encoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    found = classify_images(model, make_rows(count), batch_size=4, restrict_to=[1, 0, 6], group=group)
    bad = classify_images(model, with_bad_images(), to_pixels, 3, on_bad_image="skip", group=group)
    return found.metrics(), found.summary, found.predictions, bad.metrics(), bad.predictions


@pytest.mark.parametrize(("count", "is_sharded"), [(23, False), (3, False), (17, True)])
def test_processes_give_the_numbers_of_one(two_processes, count, is_sharded):
    expected = run_all(count)
    for found in two_processes.run(run_all, count, is_sharded):
        for got, want in zip(found, expected, strict=True):
            assert torch.equal(got, want) if isinstance(want, torch.Tensor) else got == want


class Fewer(nn.Module):
    """A model with fewer logits than its configuration says."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixel_values):
        outputs = self.model(pixel_values=pixel_values)
        outputs.logits = outputs.logits[:, 1:]
        return outputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": []}, "at least one row"),
        ({"dataset": [{"pixel_values": torch.zeros(3, 32, 32), "label": 8}]}, r"0\.\.7, or -100 .* row 0 has 8"),
        ({"dataset": [{"pixel_values": torch.zeros(3, 32, 32), "label": -1}]}, "row 0 has -1"),
        ({"dataset": [{"pixel_values": torch.zeros(3, 32, 32), "label": [0.0, 1.0]}]}, "one class id per image"),
        ({"dataset": [{"pixel_values": torch.zeros(3, 32, 32), "label": -100}]}, "No image has a class"),
        ({"class_ids": [0, 8]}, "outputs of the model, 0 to 7, .* got 8"),
        ({"class_ids": [0, -1]}, "got -1"),
        ({"class_ids": [0, 1], "restrict_to": [2]}, "None of the data set's labels"),
        ({"restrict_to": [0, 0]}, "each once"),
        ({"model": make_model(problem_type="multi_label_classification")}, "multi_label_classification"),
        ({"model": Fewer(make_model())}, r"must give 8 logits"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"model": make_model(), "dataset": make_rows(2), **change}
    with pytest.raises(ValueError, match=message):
        evaluate_classification(**arguments)
