"""Linear probes as CLIP's authors make them (Radford et al. 2021, appendix A.3).

Logistic regression on fixed features. The strength of the regularisation is searched on validation rows alone, on a grid
of 8 values of lambda = 1 / C per decade from 1e-6 to 1e6: first at every second decade, then ever closer to the peak.
The chosen one is fitted again on training and validation rows together, and only that fit sees the test rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .features import check_labelled, check_width
from .logistic import LogisticProblem, LogisticSolution
from .metrics import mean_per_class_accuracy, roc_auc, top_k_accuracy
from .multi_label import mean_eleven_point_precision


STEPS_PER_DECADE, LOWEST, HIGHEST, FIRST_SPACING = 8, -48, 48, 16  # of lambda, in steps of the grid
VALIDATION_SHARE = 0.2
_CHUNK = 1 << 24  # test features at a time


@dataclass(frozen=True)
class LinearProbeResult:
    """A linear probe and how good it is.

    Args:
        score: of the test rows, by the metric that was asked for, 0..1.
        accuracy: share of test rows classified right, 0..1; None with several labels per row.
        coefficients: (classes, dim) float64.
        intercept: (classes,) float64.
        C: that the probe was fitted with, 1 / lambda.
        classes: the class id of every row of the coefficients; columns of the labels with several labels per row.
        searched: by each C that was tried, its score on the validation rows; empty if `C` was given.
        solution: the fit: its gradient, number of iterations, and whether it converged.
    """

    score: float
    accuracy: float | None
    coefficients: Tensor
    intercept: Tensor
    C: float
    classes: tuple[int, ...]
    searched: dict[float, float]
    solution: LogisticSolution


def _mean_of_top1_and_top5(scores: Tensor, labels: Tensor) -> float:
    return (top_k_accuracy(scores, labels, 1) + top_k_accuracy(scores, labels, min(5, scores.shape[1]))) / 2


def _pair_auc(scores: Tensor, labels: Tensor) -> float:
    if scores.shape[1] != 2:
        raise ValueError(f"The metric roc_auc is for two classes; got {scores.shape[1]}. Choose another `metric`.")
    return roc_auc((scores[:, 1] - scores[:, 0]).cpu().numpy(), labels.cpu().numpy() == 1)


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {  # scores (rows, classes), labels -> 0..1
    "accuracy": lambda scores, labels: top_k_accuracy(scores, labels, 1),
    "map11": mean_eleven_point_precision,
    "mean_per_class": mean_per_class_accuracy,
    "mean_top1_top5": _mean_of_top1_and_top5,
    "roc_auc": _pair_auc,
}


def linear_probe(  # noqa: PLR0913 - the public signature
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    C: float | None = None,
    validation: tuple[Tensor, Tensor] | float | None = None,
    metric: str = "accuracy",
    *,
    seed: int = 0,
    tol: float = 1e-6,
    max_iterations: int = 1000,
) -> LinearProbeResult:
    """Fit a logistic regression to features and test it, with the regularisation searched on validation rows.

    It runs on the device of `train_features`. The features are taken as they are: CLIP's authors neither scale nor
    normalise them, and take them before the projection.

    Args:
        train_features: (rows, dim).
        train_labels: (rows,) class ids; or, for several labels per row, (rows, classes) of 1, 0 and -1, where -1 leaves
            the row out for that class (VOC's difficult objects).
        test_features: (test rows, dim).
        test_labels: as `train_labels`. A class that was not seen in training counts as wrong.
        C: inverse strength of the regularisation, as scikit-learn defines it; None searches it.
        validation: features and labels of a validation split, or the share of every class's training rows to search
            with, in (0, 1); by default 0.2. A split that is given joins the training rows of the last fit, also where `C`
            is given.
        metric: of the score and of the search: "accuracy", "mean_per_class", "map11" (VOC2007's 11-point mean average
            precision, for several labels per row), "roc_auc" (two classes) or "mean_top1_top5".
        seed: of the draw of the share.
        tol: largest absolute entry of the mean loss's gradient at which a fit ends.
        max_iterations: of L-BFGS, after which a fit ends.

    Raises:
        ValueError: if features and labels do not fit each other or the metric, or an option is outside its range.
    """
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {', '.join(METRICS)}; got {metric!r}.")
    train = _check(train_features, train_labels, "train", metric)
    test = _check(test_features, test_labels, "test", metric)
    check_width(test[0], train[0], "test")
    held_out, whole = None, train
    if isinstance(validation, tuple | list):
        held_out = _check(*validation, "validation", metric)
        check_width(held_out[0], train[0], "validation")
        whole = tuple(torch.cat([ours, theirs.to(ours.device)]) for ours, theirs in zip(train, held_out, strict=True))
    elif C is None:
        chosen = _draw(train[1], VALIDATION_SHARE if validation is None else validation, seed)
        train, held_out = tuple(x[~chosen] for x in train), tuple(x[chosen] for x in train)
    options = {"tol": tol, "max_iterations": max_iterations}
    searched = {}
    if C is None:
        searched = _search(_Probe(*train), held_out, metric, options)
        # Of equal scores, the strongest regularisation: it disturbs the features' geometry least.
        C = min(searched, key=lambda value: (-searched[value], value))
    probe = _Probe(*whole)
    solution = probe.problem.solve(C, **options)
    scores, labels = probe.scores(solution, *test)
    return LinearProbeResult(
        score=METRICS[metric](scores, labels),
        accuracy=top_k_accuracy(scores, labels, 1) if labels.ndim == 1 else None,
        coefficients=solution.coefficients,
        intercept=solution.intercept,
        C=C,
        classes=probe.classes,
        searched=searched,
        solution=solution,
    )


class _Probe:
    """Training rows with their class ids as indices."""

    def __init__(self, features: Tensor, labels: Tensor):
        if labels.ndim == 1:
            classes, labels = labels.unique(return_inverse=True)
            if len(classes) < 2:
                raise ValueError(f"A probe tells classes apart; all training rows are of class {classes.item()}.")
            self.classes = tuple(classes.tolist())
        else:
            self.classes = tuple(range(labels.shape[1]))
        self.problem = LogisticProblem(features, labels)

    def scores(self, solution: LogisticSolution, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (rows, classes) and, for class ids, the index of each in them; unseen classes score lowest."""
        weights = solution.coefficients.T
        scores = torch.cat(
            [
                chunk.to(weights.device).double() @ weights + solution.intercept
                for chunk in features.split(max(1, _CHUNK // features.shape[1]))
            ]
        )
        labels = labels.to(weights.device)
        if labels.ndim == 2:
            return scores, labels
        unseen = sorted(set(labels.unique().tolist()) - set(self.classes))
        place = {label: index for index, label in enumerate((*self.classes, *unseen))}
        ids, inverse = labels.unique(return_inverse=True)
        index = torch.tensor([place[label] for label in ids.tolist()], device=weights.device)[inverse]
        return torch.cat([scores, scores.new_full((len(scores), len(unseen)), -torch.inf)], dim=1), index


def _search(probe: _Probe, held_out: tuple[Tensor, Tensor], metric: str, options: dict) -> dict[float, float]:
    """The validation score by C, of the values that the search comes by."""
    solutions, found = {}, {}

    def visit(step: int) -> None:
        if step in found or not LOWEST <= step <= HIGHEST:
            return
        nearest = min(solutions, key=lambda other: abs(other - step), default=None)
        solutions[step] = probe.problem.solve(_inverse_lambda(step), solutions.get(nearest), **options)
        found[step] = METRICS[metric](*probe.scores(solutions[step], *held_out))

    for step in range(HIGHEST, LOWEST - 1, -FIRST_SPACING):  # from the strongest: each fit begins at the one before
        visit(step)
    spacing = FIRST_SPACING
    while spacing > 1:
        spacing //= 2
        peak = max(found, key=lambda step: (found[step], step))
        visit(peak + spacing)
        visit(peak - spacing)
    return {_inverse_lambda(step): found[step] for step in sorted(found, reverse=True)}


def _inverse_lambda(step: int) -> float:
    return float(10.0 ** (-step / STEPS_PER_DECADE))


def _draw(labels: Tensor, share: float, seed: int) -> Tensor:
    """Which rows (rows,) are held out: a share of every class, of all rows where they have several labels.

    Some of every class stay for training, and some that are not of it.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"`validation` must be features with labels or a share of the training rows in (0, 1); got {share!r}."
        )
    generator, plain = np.random.default_rng(seed), labels.cpu().numpy()
    groups = [np.arange(len(plain))] if plain.ndim == 2 else [np.flatnonzero(plain == k) for k in np.unique(plain)]
    # A row of each class stays for training.
    chosen = [generator.permutation(rows)[: min(round(share * len(rows)), len(rows) - 1)] for rows in groups]
    chosen = torch.from_numpy(np.concatenate(chosen))
    if not len(chosen):
        raise ValueError(
            f"A share of {share:g} of the {len(plain)} training rows leaves no validation rows. Pass a larger "
            "`validation`, or `C`."
        )
    held = torch.zeros(len(plain), dtype=torch.bool).index_fill_(0, chosen, True)
    if plain.ndim == 2:
        for column in plain.T:
            for rows in (np.flatnonzero(column == value) for value in (0, 1)):
                if held[rows].all():
                    held[rows[:1]] = False
    return held.to(labels.device)


def _check(features: Tensor, labels: Tensor, name: str, metric: str) -> tuple[Tensor, Tensor]:
    """Return both as tensors, or say what is wrong."""
    labels = torch.as_tensor(labels)
    if (labels.ndim == 2) != (metric == "map11"):
        raise ValueError(
            f"The metric {metric} is for {'several labels' if metric == 'map11' else 'one class'} per row; got "
            f'`{name}_labels` of the shape {tuple(labels.shape)}. (rows, classes) of 1, 0 and -1 need `metric="map11"`.'
        )
    if labels.ndim != 2:
        return check_labelled(features, labels, name)
    if not ((labels == 1) | (labels == 0) | (labels == -1)).all():
        raise ValueError(
            f"`{name}_labels` of several classes must be 1, 0 or -1; got values from {labels.min().item()} to "
            f"{labels.max().item()}."
        )
    features, _ = check_labelled(features, torch.zeros(len(labels), dtype=torch.long), name)
    return features, labels
