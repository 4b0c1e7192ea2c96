"""Logistic regression, compared with scikit-learn in float64."""

import logging
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hf_vitfm.evaluation import logistic
from hf_vitfm.evaluation.logistic import LogisticProblem


def clouds(rows: int, classes: int, seed: int = 0, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds of very different spread by direction, far from the origin, of unequal frequency."""
    generator = np.random.default_rng(seed)
    spread = np.linspace(0.05, 3, dim)
    centres = np.random.default_rng(9).normal(size=(classes, dim)) * spread
    shares = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = np.concatenate([np.arange(classes), generator.choice(classes, rows - classes, p=shares)])
    features = 4 + centres[labels] + 1.3 * spread * generator.normal(size=(rows, dim))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def reference(features, labels, C: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it goes on by L-BFGS where its Newton steps stop
        return LogisticRegression(C=C, solver="newton-cholesky", tol=1e-11, max_iter=3000).fit(
            features.double(), labels
        )


def distance(found: torch.Tensor, expected: np.ndarray) -> float:
    found = found.numpy()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("C", [1e-4, 0.03, 1.0, 100.0])
@pytest.mark.parametrize("rows", [9, 300])
def test_coefficients_are_those_of_the_float64_optimum(C, rows):
    features, labels = clouds(rows, 4)  # 9 rows: fewer than features
    solution = LogisticProblem(features, labels).solve(C)
    expected = reference(features, labels, C)
    assert solution.is_converged and solution.gradient <= 1e-6
    assert distance(solution.coefficients, expected.coef_ - expected.coef_.mean(0)) < 1e-3
    centred = solution.intercept - solution.intercept.mean()
    assert distance(centred, expected.intercept_ - expected.intercept_.mean()) < 1e-3
    unseen, _ = clouds(200, 4, seed=1)
    scores = unseen.double() @ solution.coefficients.T + solution.intercept
    assert scores.argmax(1).tolist() == expected.predict(unseen.double()).tolist()


@pytest.mark.parametrize("C", [0.01, 10.0])
def test_two_classes_have_one_sigmoid_as_in_scikit_learn(C):
    features, labels = clouds(200, 2)
    solution = LogisticProblem(features, labels).solve(C)
    expected = reference(features, labels, C)
    assert distance(solution.coefficients[1:] - solution.coefficients[:1], expected.coef_) < 1e-3
    assert (solution.intercept[1] - solution.intercept[0]).item() == pytest.approx(expected.intercept_[0], rel=1e-3)
    assert torch.equal(solution.coefficients[0], -solution.coefficients[1])


@pytest.mark.parametrize("C", [0.01, 10.0])
def test_several_labels_are_fits_of_their_own_without_the_rows_left_out(C):
    features, labels = clouds(200, 3)
    targets = torch.stack([labels == 0, labels != 1, labels == 2], dim=1).long()
    targets[:40, 1], targets[150:, 2] = -1, -1
    solution = LogisticProblem(features, targets).solve(C)
    for k in range(3):
        known = targets[:, k] >= 0
        expected = reference(features[known], targets[known, k], C)
        assert distance(solution.coefficients[k], expected.coef_[0]) < 1e-3
        assert solution.intercept[k].item() == pytest.approx(expected.intercept_[0], rel=1e-3)


def test_the_reported_gradient_is_that_of_the_mean_loss():
    features, labels = clouds(300, 4)
    solution = LogisticProblem(features, labels).solve(0.5, max_iterations=4)
    weights = solution.coefficients.clone().requires_grad_()
    intercept = solution.intercept.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features.double() @ weights.T + intercept, labels)
    (loss + weights.square().sum() / (2 * 0.5 * 300)).backward()
    largest = max(weights.grad.abs().max().item(), intercept.grad.abs().max().item())
    assert largest == pytest.approx(solution.gradient, rel=1e-3) and largest > 1e-4


def test_a_start_and_a_strong_penalty_save_steps():
    problem = LogisticProblem(*clouds(300, 4))
    cold, near = problem.solve(1.0), problem.solve(0.95)
    warm = problem.solve(1.0, near)
    assert warm.evaluations < cold.evaluations < 40
    assert distance(warm.coefficients, cold.coefficients.numpy()) < 1e-3
    # The first step is Newton's own, and with next to no coefficients it arrives.
    assert problem.solve(1e-6).iterations <= 3


def test_chunks_and_half_precision_give_the_same(monkeypatch):
    features, labels = clouds(300, 4)
    whole = LogisticProblem(features, labels).solve(1.0)
    monkeypatch.setattr("hf_vitfm.evaluation.logistic._CHUNK", {"cpu": 12 * 64})
    assert distance(LogisticProblem(features, labels).solve(1.0).coefficients, whole.coefficients.numpy()) < 1e-4
    half = LogisticProblem(features.bfloat16(), labels).solve(1.0)
    widened = LogisticProblem(features.bfloat16().float(), labels).solve(1.0)
    assert distance(half.coefficients, widened.coefficients.numpy()) < 1e-4


def test_separable_classes_take_renewed_curvature_and_end_at_the_optimum():
    features, labels = clouds(60, 3, dim=40)
    solution = LogisticProblem(features, labels).solve(1e4)
    expected = reference(features, labels, 1e4)
    assert solution.iterations > 25 and solution.is_converged
    assert distance(solution.coefficients, expected.coef_ - expected.coef_.mean(0)) < 1e-3


def test_probabilities_next_to_one_leave_a_way_down():
    # Where rounding makes the approximate Hessian indefinite, its steps lead uphill.
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, 257).float() ** -0.5
    centres = 2 * spread * torch.randn(10, 256, generator=generator)
    labels = torch.randint(0, 10, (4000,), generator=generator)
    features = centres[labels] + spread * torch.randn(4000, 256, generator=generator)
    assert LogisticProblem(features, labels).solve(100.0).is_converged


@pytest.mark.parametrize("C", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("classes", [2, 3])
def test_clouds_far_apart_by_the_measure_of_their_spread_are_fitted(C, classes):
    # All probabilities are 0 and 1 in float32, and rounding of the features' products is as large as what tells rows apart.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % classes
    features = 1e3 * torch.randn(classes, 8, generator=generator)[labels] + torch.randn(30, 8, generator=generator)
    assert LogisticProblem(features, labels).solve(C).is_converged


def test_small_problems_take_one_thread_and_give_the_others_back(monkeypatch):
    used, threads = [], torch.get_num_threads()
    minimize = logistic.minimize
    monkeypatch.setattr(logistic, "minimize", lambda *a: used.append(torch.get_num_threads()) or minimize(*a))
    torch.set_num_threads(2)
    try:
        LogisticProblem(*clouds(300, 4)).solve(1.0)
        monkeypatch.setattr(logistic, "_FEW_PRODUCTS", 300 * 12 * 4)
        LogisticProblem(*clouds(300, 4)).solve(1.0)
        assert used == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_too_few_iterations_are_said(caplog):
    with caplog.at_level(logging.WARNING, "hf_vitfm"):
        solution = LogisticProblem(*clouds(300, 4)).solve(1.0, max_iterations=2)
    assert not solution.is_converged and solution.iterations == 2 and "after 2 iterations" in caplog.text


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(5, dtype=torch.long), "index 0 do not"),
        (torch.tensor([0, 2, 2, 0, 2]), "index 1 do not"),
        (torch.tensor([[1, 0], [1, 1], [-1, 0], [1, 0], [1, 1]]), "index 0 do not"),
        (torch.zeros(4, dtype=torch.long), "as many rows"),
    ],
)
def test_wrong_targets(targets, message):
    with pytest.raises(ValueError, match=message):
        LogisticProblem(torch.randn(5, 3), targets)


def test_wrong_options():
    problem = LogisticProblem(*clouds(20, 2))
    for options in ({"C": 0.0}, {"C": 1.0, "tol": 0.0}, {"C": 1.0, "max_iterations": 0}):
        with pytest.raises(ValueError, match="above 0"):
            problem.solve(**options)
