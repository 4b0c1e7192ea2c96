import builtins
import math
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from hf_vitfm.evaluation.metrics import (
    classification_metrics,
    confusion_matrix,
    mean_per_class_accuracy,
    roc_auc,
    summarize_logits,
    top_k_accuracy,
)


CLASSES = 7
NAMES = [f"class {index}" for index in range(CLASSES)]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (200,), generator=generator)
    logits = torch.randn(200, CLASSES, generator=generator)
    logits[torch.arange(200), labels] += 1.0
    return logits, labels


def test_summary_columns_agree_with_a_plain_computation(batch):
    logits, labels = batch
    rows = summarize_logits(logits, labels)
    probabilities = logits.softmax(-1)
    order = logits.argsort(dim=-1, descending=True)
    assert rows.shape == (200, 4) and rows.dtype == torch.float32
    assert torch.equal(rows[:, 0].long(), logits.argmax(-1))
    assert torch.allclose(rows[:, 1], probabilities.max(-1).values)
    assert torch.equal(rows[:, 2].long(), (order == labels[:, None]).int().argmax(-1))
    assert torch.allclose(rows[:, 3], torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


def test_metrics_agree_with_scikit_learn(batch):
    logits, labels = batch
    metrics = classification_metrics(summarize_logits(logits, labels), labels, NAMES)
    probabilities, predictions = logits.double().softmax(-1).numpy(), logits.argmax(-1).numpy()
    truth = labels.numpy()
    every = list(range(CLASSES))
    assert metrics["loss"] == pytest.approx(sklearn_metrics.log_loss(truth, probabilities, labels=every), rel=1e-6)
    for k in (1, 5):
        expected = sklearn_metrics.top_k_accuracy_score(truth, logits.numpy(), k=k, labels=every)
        assert metrics[f"top{k}"] == pytest.approx(expected, abs=1e-12)
        assert top_k_accuracy(logits, labels, k) == pytest.approx(expected, abs=1e-12)
    assert metrics["mean_per_class"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(truth, predictions))
    recalls = sklearn_metrics.recall_score(truth, predictions, average=None)
    assert list(metrics["per_class"]) == NAMES
    assert list(metrics["per_class"].values()) == pytest.approx(recalls.tolist())
    assert all(type(metrics[name]) is float for name in ("loss", "top1", "top5", "mean_per_class"))


def test_confusion_matrix_agrees_with_scikit_learn(batch):
    logits, labels = batch
    ours = confusion_matrix(logits.argmax(-1), labels, CLASSES)
    assert ours.dtype == np.int64
    assert np.array_equal(ours, sklearn_metrics.confusion_matrix(labels, logits.argmax(-1), labels=range(CLASSES)))
    assert np.array_equal(confusion_matrix(np.array([1, 1]), np.array([0, 1]), 3), [[0, 1, 0], [0, 1, 0], [0, 0, 0]])


def test_bfloat16_logits_are_widened_before_the_softmax(batch):
    logits, labels = batch
    half = logits.bfloat16()
    rows = summarize_logits(half, labels)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, summarize_logits(half.float(), labels))


def test_float64_logits_are_not_rounded_into_ties():
    logits = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert summarize_logits(logits, torch.tensor([1]))[0, 2] == 0


def test_ties_go_to_the_smaller_index_and_never_inflate_accuracy():
    logits = torch.zeros(CLASSES, CLASSES)
    labels = torch.arange(CLASSES)
    rows = summarize_logits(logits, labels)
    assert rows[:, 2].tolist() == list(range(CLASSES))
    metrics = classification_metrics(rows, labels, NAMES)
    assert metrics["top1"] == pytest.approx(1 / CLASSES) and metrics["top5"] == pytest.approx(5 / CLASSES)
    assert metrics["top1"] == (rows[:, 0].long() == labels).double().mean().item()


def test_nan_logits_count_as_wrong_and_show_in_the_loss():
    logits = torch.full((6, 6), float("nan"))
    logits[1] = torch.tensor([float("nan"), 9.0, 0.0, 0.0, 0.0, 0.0])
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    metrics = classification_metrics(summarize_logits(logits, labels), labels, NAMES[:6])
    assert metrics["top1"] == 0.0 and math.isnan(metrics["loss"])


def test_impossible_class_has_infinite_loss():
    rows = summarize_logits(torch.tensor([[0.0, -float("inf")]]), torch.tensor([1]))
    assert rows[0].tolist() == [0.0, 1.0, 1.0, float("inf")]


def test_absent_classes_are_none_and_leave_the_mean_alone():
    logits = torch.eye(4)[[0, 0, 1]]
    labels = torch.tensor([0, 1, 1])
    metrics = classification_metrics(summarize_logits(logits, labels), labels, ["a", "b", "c", "d"])
    assert metrics["per_class"] == {"a": 1.0, "b": 0.5, "c": None, "d": None}
    assert metrics["mean_per_class"] == 0.75
    assert "top5" not in metrics


def test_classes_of_the_same_name_stay_apart():
    labels = torch.tensor([0, 1, 2])
    metrics = classification_metrics(summarize_logits(torch.eye(3), labels), labels, ["crane", "heron", "crane"])
    assert metrics["per_class"] == {"crane (0)": 1.0, "heron": 1.0, "crane (2)": 1.0}


def test_no_gradient_is_recorded(batch):
    logits, labels = batch
    assert not summarize_logits(logits.requires_grad_(), labels).requires_grad


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"0\.\.2 for 3 classes; got values from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-100, 0]), "got values from -100 to 0"),
        (torch.zeros(2, 3), torch.tensor([0]), r"shape \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), r"argmax"),
        (torch.zeros(2, 3), torch.zeros(2), "must be integers; got torch.float32"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no rows"),
        (torch.zeros(2, 3, 1), torch.tensor([0, 1]), r"\(rows, classes\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]), "floating point"),
    ],
)
def test_bad_input_is_named(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        summarize_logits(logits, labels)


def test_bad_input_of_the_other_functions_is_named():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"1\.\.3, the number of classes; got 4"):
        top_k_accuracy(torch.zeros(2, 3), labels, 4)
    with pytest.raises(ValueError, match=r"`rows` must have the shape \(rows, 4\)"):
        classification_metrics(torch.zeros(2, 3), labels, ["a", "b"])
    with pytest.raises(ValueError, match="predicted classes must be in"):
        classification_metrics(torch.full((2, 4), 7.0), labels, ["a", "b"])
    with pytest.raises(ValueError, match="`predictions` must have the shape"):
        confusion_matrix(torch.tensor([0]), labels, 2)
    with pytest.raises(ValueError, match="`predictions` must be in"):
        confusion_matrix(torch.tensor([0, 2]), labels, 2)


def test_evaluate_classes_give_the_same_numbers(batch, tmp_path):
    from hf_vitfm.evaluation import evaluate_metrics

    logits, labels = batch
    expected = classification_metrics(summarize_logits(logits, labels), labels, NAMES)
    inputs = {"predictions": logits.numpy(), "references": labels.numpy()}
    top_k = evaluate_metrics.TopKAccuracy(cache_dir=str(tmp_path))
    assert top_k.compute(**inputs) == {"top1": pytest.approx(expected["top1"])}
    assert top_k.compute(**inputs, k=5) == {"top5": pytest.approx(expected["top5"])}
    per_class = evaluate_metrics.MeanPerClassAccuracy(cache_dir=str(tmp_path))
    assert per_class.compute(**inputs) == {"mean_per_class": pytest.approx(expected["mean_per_class"])}
    for start in range(0, 200, 50):
        rows = slice(start, start + 50)
        top_k.add_batch(predictions=logits[rows].tolist(), references=labels[rows].tolist())
    assert top_k.compute() == {"top1": pytest.approx(expected["top1"])}


def test_without_evaluate_the_error_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "evaluate":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "hf_vitfm.evaluation.evaluate_metrics", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install evaluate"):
        import hf_vitfm.evaluation.evaluate_metrics  # noqa: F401


def test_mean_per_class_and_roc_auc_agree_with_scikit_learn(batch):
    logits, labels = batch
    expected = sklearn_metrics.balanced_accuracy_score(labels, logits.argmax(-1))
    assert mean_per_class_accuracy(logits, labels) == pytest.approx(expected, abs=1e-12)
    few = labels < 4  # classes that do not occur do not count
    expected = sklearn_metrics.recall_score(
        labels[few], logits[few].argmax(-1), labels=range(4), average="macro", zero_division=0
    )
    assert mean_per_class_accuracy(logits[few], labels[few]) == pytest.approx(expected, abs=1e-12)
    truth, scores = (labels == 2).numpy(), (2 * logits[:, 2]).round().numpy()  # many equal ones
    assert roc_auc(scores, truth) == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores), abs=1e-12)
    assert roc_auc([math.nan, 1.0, math.nan, 0.0], [True, True, False, False]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="at least one of each; got 200 and 0"):
        roc_auc(scores, np.ones(200))
