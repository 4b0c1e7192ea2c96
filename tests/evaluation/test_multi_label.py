import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_recall_curve

from hf_vitfm.evaluation.multi_label import (
    average_precision,
    eleven_point_precision,
    mean_eleven_point_precision,
    multi_label_metrics,
)


NAMES = list("abcdef")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(120, 6, generator=generator) < torch.linspace(0.1, 0.7, 6)).float()
    logits = torch.randn(120, 6, generator=generator) + 1.5 * targets - 0.5
    logits = (logits * 4).round() / 4  # equal scores, whose order must not matter
    return logits, targets


def test_metrics_agree_with_scikit_learn(batch):
    logits, targets = batch
    metrics = multi_label_metrics(logits, targets, NAMES)
    truth, scores = targets.numpy(), logits.sigmoid().numpy()
    predicted = scores > 0.5
    expected = average_precision_score(truth, scores, average=None)
    assert list(metrics["per_class"]) == NAMES
    assert list(metrics["per_class"].values()) == pytest.approx(expected.tolist(), abs=1e-12)
    assert metrics["mean_average_precision"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    for average in ("micro", "macro"):
        assert metrics[f"{average}_f1"] == pytest.approx(f1_score(truth, predicted, average=average), abs=1e-12)
    losses = [log_loss(truth[:, k], logits[:, k].double().sigmoid().numpy()) for k in range(6)]
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-9)
    assert all(type(metrics[name]) is float for name in ("loss", "mean_average_precision", "micro_f1", "macro_f1"))


def test_rows_with_nan_are_left_out(batch):
    logits, targets = batch
    expected = multi_label_metrics(logits[20:], targets[20:], NAMES)
    targets = targets.clone()
    targets[:20, 3] = float("nan")
    assert multi_label_metrics(logits, targets, NAMES) == expected


def test_a_class_without_a_positive_row_has_no_average_precision(batch):
    logits, targets = batch
    logits, targets = logits.clone(), targets.clone()
    targets[:, 2], logits[:, 2] = 0, -1
    metrics = multi_label_metrics(logits, targets, NAMES)
    assert metrics["per_class"]["c"] is None
    others = [0, 1, 3, 4, 5]
    expected = average_precision_score(targets[:, others].numpy(), logits[:, others].numpy())
    assert metrics["mean_average_precision"] == pytest.approx(expected)
    macro = f1_score(targets.numpy(), logits.numpy() > 0, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(macro)
    assert multi_label_metrics(logits, torch.zeros_like(targets), NAMES)["mean_average_precision"] is None


def test_nan_scores_are_never_rewarded():
    truth = np.array([True, False, True, False])
    nothing = np.full(4, np.nan)
    assert average_precision(nothing, truth) == pytest.approx(0.5)  # two positives behind two others, as one run
    assert average_precision(np.array([np.nan, 0.0, 1.0, np.nan]), truth) < average_precision_score(
        truth, [0.5, 0.0, 1.0, 0.4]
    )


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"\(rows, 6\)"),
        (torch.zeros(2, 6), torch.zeros(2), r"got \(2, 6\) and \(2,\)"),
        (torch.zeros(2, 6), torch.full((2, 6), 0.5), "0 or 1"),
        (torch.zeros(2, 6), torch.full((2, 6), float("nan")), "No row"),
        (torch.zeros(0, 6), torch.zeros(0, 6), "No row"),
    ],
)
def test_bad_input_is_named(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        multi_label_metrics(logits, targets, NAMES)


def test_eleven_points_are_the_best_precisions_from_each_recall_on():
    # Found in the order 1 0 1 0 0 1 0 1 1 0: precisions at the positives are 1, 2/3, 3/6, 4/8, 5/9 at recalls 0.2 to 1.
    truth = np.array([1, 0, 1, 0, 0, 1, 0, 1, 1, 0], dtype=bool)
    scores = np.linspace(1, 0, 10)
    expected = (3 * 1 + 2 * 2 / 3 + 6 * 5 / 9) / 11
    assert eleven_point_precision(scores, truth) == pytest.approx(expected, abs=1e-12)
    assert eleven_point_precision(scores, np.zeros(10, dtype=bool)) is None
    assert eleven_point_precision(np.zeros(10), truth) == pytest.approx(0.5)  # one run of equal scores
    assert eleven_point_precision(np.where(truth, np.nan, 0.0), truth) == pytest.approx(0.5)


def test_mean_of_eleven_points_agrees_with_scikit_learns_curve_without_difficult_rows(batch):
    logits, targets = batch
    targets = targets.clone()
    targets[::7, 2], targets[5:30, 4] = -1, -1
    expected = []
    for k in range(6):
        known = targets[:, k] >= 0
        precision, recall, _ = precision_recall_curve(targets[known, k], logits[known, k])
        expected.append(np.mean([precision[:-1][recall[:-1] >= t / 10 - 1e-12].max() for t in range(11)]))
    assert mean_eleven_point_precision(logits, targets) == pytest.approx(np.mean(expected), abs=1e-12)
    with pytest.raises(ValueError, match="No class"):
        mean_eleven_point_precision(logits, torch.zeros_like(targets))
    with pytest.raises(ValueError, match="must both be"):
        mean_eleven_point_precision(logits, targets[:, :2])
