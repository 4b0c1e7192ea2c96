import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score, root_mean_squared_error

from hf_vitfm.evaluation.regression import regression_metrics


NAMES = ["age", "height"]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(80, 2, generator=generator) * torch.tensor([10.0, 0.1]) + torch.tensor([40.0, 1.7])
    noise = torch.randn(80, 2, generator=generator) * torch.tensor([4.0, 0.2])
    return targets + noise, targets


def test_metrics_agree_with_scikit_learn_and_scipy(batch):
    predictions, targets = batch
    metrics = regression_metrics(predictions, targets, NAMES)
    truth, found = targets.double().numpy(), predictions.double().numpy()
    assert metrics["loss"] == pytest.approx(mean_squared_error(truth, found), rel=1e-12)
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(truth, found), rel=1e-12)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(truth, found), rel=1e-12)
    assert metrics["r2"] == pytest.approx(r2_score(truth, found), rel=1e-12)
    correlations = [pearsonr(truth[:, k], found[:, k]).statistic for k in range(2)]
    assert metrics["pearson"] == pytest.approx(np.mean(correlations), rel=1e-12)
    assert list(metrics["per_output"]) == NAMES
    for k, values in enumerate(metrics["per_output"].values()):
        assert values == {
            "rmse": pytest.approx(root_mean_squared_error(truth[:, k], found[:, k])),
            "mae": pytest.approx(mean_absolute_error(truth[:, k], found[:, k])),
            "r2": pytest.approx(r2_score(truth[:, k], found[:, k])),
            "pearson": pytest.approx(correlations[k]),
        }
    assert metrics["per_output"]["height"]["r2"] < 0  # worse than the mean, and said so


def test_one_output_may_come_as_a_vector(batch):
    predictions, targets = batch[0][:, :1], batch[1][:, 0]
    assert regression_metrics(predictions, targets, ["x"]) == regression_metrics(predictions[:, 0], targets, ["x"])


def test_rows_with_nan_are_left_out(batch):
    predictions, targets = batch
    expected = regression_metrics(predictions[10:], targets[10:], NAMES)
    targets = targets.clone()
    targets[:10, 1] = float("nan")
    assert regression_metrics(predictions, targets, NAMES) == expected


def test_constants_leave_correlation_undefined_and_not_zero(batch):
    predictions, targets = batch
    flat = torch.full_like(predictions, 0.1)
    values = regression_metrics(flat, targets, NAMES)
    assert values["pearson"] is None and values["r2"] < 0
    values = regression_metrics(predictions, flat, NAMES)
    assert values["pearson"] is None and values["r2"] is None and values["rmse"] > 0
    half = torch.stack([targets[:, 0], flat[:, 0]], dim=1)
    values = regression_metrics(predictions, half, NAMES)
    assert values["r2"] == values["per_output"]["age"]["r2"]


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3, 2), r"got \(3, 1\) and \(3, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3), r"\(rows, 2\)"),
        (torch.zeros(3, 2), torch.full((3, 2), float("nan")), "No row"),
    ],
)
def test_bad_input_is_named(predictions, targets, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(predictions, targets, NAMES)
