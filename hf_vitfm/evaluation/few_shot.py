"""Accuracy from a few labelled images of every class, without training (ViT paper, section 4.1).

The ridge regression follows big_vision's protocol: features whitened by the few images alone, a constant feature,
targets of -1 and 1, one fixed l2 for every data set.

The logistic regression is that of CLIP's few-shot probes (Radford et al. 2021, section 3.1.5; shots 1, 2, 4, 8, 16). Its
authors do not say how they regularised it; nothing is searched here, where no labelled image is left to search with, and
test images must not serve. C is one number for every data set and number of shots, by default that of the example in
OpenAI's repository. It suits features as they come out of the network: those of unit length need a larger one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .features import check_labelled
from .logistic import LogisticProblem
from .neighbours import knn_predict


METHODS = ("ridge", "knn", "nearest_mean", "logistic")
CONSTANT_FEATURE = 100.0  # so large that l2 hardly holds the bias back
NEIGHBOURS = 20
_CHUNK = 1 << 22  # test features in float64 at a time


def few_shot(  # noqa: PLR0913 - the public signature
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    shots: Sequence[int] = (1, 5, 10, 25),
    seeds: Sequence[int] = (0, 1, 2),
    method: str = "ridge",
    l2: float = 2.0**10,
    *,
    C: float = 0.316,
) -> dict[int, list[float]]:
    """Learn classes from a few images each and classify the test images, for several draws of the few.

    A seed shuffles the images of every class; the first of each are the few, so those of fewer shots are among those of
    more. A class with fewer images than shots gives what it has.

    Args:
        train_features: (rows, dim), of which the few are drawn.
        train_labels: (rows,) class ids.
        test_features: (test rows, dim).
        test_labels: (test rows,) class ids.
        shots: images per class.
        seeds: of the draws.
        method: "ridge", the paper's closed form; "knn", cosine neighbours as `knn_accuracy` weighs them, 20 or as many
            as there are; "nearest_mean", the class whose mean is nearest by Euclidean distance; "logistic", CLIP's probes.
        l2: of the ridge regression, above 0.
        C: inverse strength of the logistic regression's penalty, as scikit-learn defines it, above 0.

    Returns:
        By shots, the accuracy in 0..1 of every seed.

    Raises:
        ValueError: if features and labels do not fit each other, or an option is outside its range.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}.")
    if min(shots, default=0) < 1:
        raise ValueError(f"`shots` must hold numbers of images of at least 1; got {shots!r}.")
    if not l2 > 0:
        raise ValueError(f"`l2` must be above 0; got {l2!r}.")
    train_features, train_labels = check_labelled(train_features, train_labels, "train")
    test_features, test_labels = check_labelled(test_features, test_labels, "test")
    accuracies = {count: [] for count in shots}
    for seed in seeds:
        for count in accuracies:
            few = draw_few(train_labels, count, seed)
            predicted = predict_from_few(train_features[few], train_labels[few], test_features, method, l2, C)
            accuracies[count].append((predicted == test_labels).double().mean().item())
    return accuracies


def draw_few(labels: Tensor, shots: int, seed: int) -> Tensor:
    """The rows (few,) that a seed takes: `shots` of every class, or what a class has; one generator serves all in turn."""
    generator, labels = np.random.default_rng(seed), labels.cpu().numpy()
    orders = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return torch.from_numpy(np.concatenate([order[:shots] for order in orders]))


def predict_from_few(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    method: str = "ridge",
    l2: float = 2.0**10,
    C: float = 0.316,
) -> Tensor:
    """Learn classes from all rows given and classify others; the arguments are those of `few_shot`.

    Returns:
        (test rows,) class ids.
    """
    if method == "knn":
        return knn_predict(features, labels, test_features, k=min(NEIGHBOURS, len(features)))
    if method == "ridge":
        linear = ridge(features, labels, l2)
    elif method == "logistic":
        linear = _logistic(features, labels, C)
    else:
        linear = _class_means(features, labels)
    return _linear_predict(*linear, labels, test_features)


@dataclass(frozen=True)
class EquivalentShots:
    """How many labelled images per class a probe needs to be as good as zero-shot classification.

    Args:
        shots: the number, or the bound that is known of it.
        bound: "" for the number itself; "<" where the fewest shots measured are already better, ">" where the most are
            still worse.
    """

    shots: float
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.bound}{self.shots:.3g}"


def equivalent_shots(
    accuracies_by_shots: Mapping[int, Sequence[float] | float], zero_shot_accuracy: float
) -> EquivalentShots:
    """The number of shots at which a probe's mean accuracy meets that of zero-shot classification (CLIP, figure 7).

    Between two measured numbers the accuracy is taken as linear in the logarithm of the shots. Where it meets zero-shot
    more than once, the first time counts.

    Args:
        accuracies_by_shots: by the number of shots, at least 1, one accuracy or that of every draw, as `few_shot` returns.
        zero_shot_accuracy: in the same unit.

    Raises:
        ValueError: if there are no accuracies, or a number is not finite.
    """
    means = {shots: float(np.mean(accuracies_by_shots[shots])) for shots in sorted(accuracies_by_shots)}
    if min(means, default=0) < 1 or not all(map(math.isfinite, [zero_shot_accuracy, *means.values()])):
        raise ValueError(
            "`accuracies_by_shots` must hold finite accuracies by shots of at least 1, and `zero_shot_accuracy` be "
            f"finite; got {dict(accuracies_by_shots)!r} and {zero_shot_accuracy!r}."
        )
    before = None
    for shots, accuracy in means.items():
        if accuracy >= zero_shot_accuracy:
            if before is None:
                return EquivalentShots(float(shots), "<" if accuracy > zero_shot_accuracy else "")
            share = (zero_shot_accuracy - means[before]) / (accuracy - means[before])
            return EquivalentShots(before * (shots / before) ** share)
        before = shots
    return EquivalentShots(float(before), ">")


def ridge(features: Tensor, labels: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Solve the regression of targets -1 and 1 on whitened features in float64.

    Args:
        features: (rows, dim).
        labels: (rows,) class ids.
        l2: weight of the squared coefficients, the constant feature's included.

    Returns:
        Weights (dim, classes) and biases (classes,) for plain features, classes in the order of their ids.
    """
    classes, targets = labels.unique(return_inverse=True)
    features = features.double()
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-5
    whitened = F.pad((features - mean) / std, (0, 1), value=CONSTANT_FEATURE)
    wanted = 2 * F.one_hot(targets, len(classes)).double() - 1
    rows, dim = whitened.shape
    if rows >= dim:
        solution = torch.linalg.solve(whitened.T @ whitened + l2 * _identity(whitened, dim), whitened.T @ wanted)
    else:  # the same by the smaller matrix
        solution = whitened.T @ torch.linalg.solve(whitened @ whitened.T + l2 * _identity(whitened, rows), wanted)
    weights = solution[:-1] / std[:, None]
    return weights, CONSTANT_FEATURE * solution[-1] - mean @ weights


def _logistic(features: Tensor, labels: Tensor, C: float) -> tuple[Tensor, Tensor]:
    """Weights and biases of the logistic regression, classes in the order of their ids."""
    solution = LogisticProblem(features, labels.unique(return_inverse=True)[1]).solve(C)
    return solution.coefficients.T, solution.intercept


def _class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases whose largest score belongs to the nearest class mean."""
    means = torch.stack([features[labels == label].double().mean(dim=0) for label in labels.unique()])
    return means.T, -means.square().sum(dim=1) / 2  # |x - m|² = |x|² - 2 (xm - |m|² / 2)


def _linear_predict(weights: Tensor, biases: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """The class id with the largest score, (rows,); `labels` hold every class."""
    classes = labels.unique()
    chunks = features.split(max(1, _CHUNK // features.shape[1]))
    return torch.cat([classes[(chunk.double() @ weights + biases).argmax(dim=1)] for chunk in chunks])


def _identity(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)
