import math

import numpy as np
import pytest
import torch

from hf_vitfm.evaluation.calibration import calibration_error
from hf_vitfm.evaluation.metrics import classification_metrics, summarize_logits


def by_the_papers_formula(confidences, right, bins):
    """Guo et al. 2017, equation 3, bin by bin as it is printed."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, value in enumerate(confidences) if (m - 1) / bins < value <= m / bins]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            confidence = sum(float(confidences[i]) for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_error_is_the_papers_formula(bins):
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.2, 1.0, 300)
    right = generator.uniform(size=300) < confidences**2
    expected = by_the_papers_formula(confidences, right, bins)
    assert calibration_error(confidences, right, bins) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def test_bins_take_their_upper_end():
    # 0.5 lies in (0.25, 0.5] of four bins, so the two rows do not share one and cannot make up for each other.
    assert calibration_error([0.5, 0.6], [True, False], bins=4) == pytest.approx((0.5 + 0.6) / 2)
    assert calibration_error([0.5, 0.6], [True, False], bins=1) == pytest.approx(abs(1 - 1.1) / 2)


@pytest.mark.parametrize("bins", [10, 15, 25, 41, 58])
def test_every_end_of_a_bin_lies_in_the_bin_below(bins):
    ends = np.arange(1, bins + 1) / bins
    for number, end in enumerate(ends):
        inside = (number + 0.5) / bins
        # In one bin, a row that is right and one that is wrong make up for each other but for the confidence.
        expected = abs(1 - end - inside) / 2
        assert calibration_error([end, inside], [True, False], bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bins", [5, 15, 30])
def test_error_is_that_of_bins_found_by_bucketize(bins):
    # As torchmetrics finds them; it differs on the ends alone, which random numbers do not meet.
    confidences = torch.rand(500, dtype=torch.float64)
    right = torch.rand(500) < 0.6
    index = torch.bucketize(confidences, torch.linspace(0, 1, bins + 1, dtype=torch.float64), right=True) - 1
    gaps = [
        (index == i).double().mean() * (right[index == i].double().mean() - confidences[index == i].mean()).abs()
        for i in index.unique()
    ]
    assert calibration_error(confidences, right, bins) == pytest.approx(sum(gaps).item(), abs=1e-12)


def test_certain_and_right_has_no_error_and_certain_and_wrong_the_largest():
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [False, False]) == 1


def test_metrics_hold_the_error_of_the_top_class():
    torch.manual_seed(1)
    logits, labels = 2 * torch.randn(400, 6), torch.randint(6, (400,))
    logits[torch.arange(400), labels] += 1.5
    confidences, predictions = logits.double().softmax(-1).max(-1)
    metrics = classification_metrics(summarize_logits(logits, labels), labels, list("abcdef"))
    expected = by_the_papers_formula(confidences.tolist(), (predictions == labels).tolist(), 15)
    assert metrics["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_a_model_that_diverged_has_no_error_of_zero():
    assert math.isnan(calibration_error([float("nan"), 0.5], [True, True]))


@pytest.mark.parametrize(
    ("confidences", "right", "bins", "message"),
    [
        ([0.5], [True, False], 15, "one length"),
        ([], [], 15, "at least 1"),
        ([0.5], [True], 0, "0 bins"),
        ([50.0], [True], 15, "Apply the softmax"),
        ([-0.1], [True], 15, "probabilities in 0..1"),
    ],
)
def test_bad_input_is_named(confidences, right, bins, message):
    with pytest.raises(ValueError, match=message):
        calibration_error(confidences, right, bins)


def test_evaluate_class_gives_the_same_number(tmp_path):
    from hf_vitfm.evaluation.evaluate_metrics import CalibrationError

    logits, labels = torch.randn(50, 4), torch.randint(4, (50,))
    metric = CalibrationError(cache_dir=str(tmp_path))
    expected = classification_metrics(summarize_logits(logits, labels), labels, list("abcd"))["calibration_error"]
    found = metric.compute(predictions=logits.numpy(), references=labels.numpy())
    assert found == {"calibration_error": pytest.approx(expected)}
