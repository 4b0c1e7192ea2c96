"""Accuracy from a few labelled images of every class, without training (ViT paper, section 4.1).

The ridge regression follows big_vision's protocol: features whitened by the few images alone, a constant feature,
targets of -1 and 1, one fixed l2 for every data set.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .features import check_labelled
from .neighbours import knn_predict


METHODS = ("ridge", "knn", "nearest_mean")
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
            as there are; "nearest_mean", the class whose mean is nearest by Euclidean distance.
        l2: of the ridge regression, above 0.

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
        order = _draw(train_labels, seed)
        for count in accuracies:
            few = torch.cat([rows[:count] for rows in order])
            chosen = train_features[few], train_labels[few]
            if method == "ridge":
                predicted = _linear_predict(*ridge(*chosen, l2), chosen[1], test_features)
            elif method == "knn":
                predicted = knn_predict(*chosen, test_features, k=min(NEIGHBOURS, len(few)))
            else:
                predicted = _linear_predict(*_class_means(*chosen), chosen[1], test_features)
            accuracies[count].append((predicted == test_labels).double().mean().item())
    return accuracies


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


def _draw(labels: Tensor, seed: int) -> list[Tensor]:
    """The rows of every class in the order in which a seed takes them; one generator serves the classes in turn."""
    generator, labels = np.random.default_rng(seed), labels.cpu().numpy()
    return [torch.from_numpy(generator.permutation(np.flatnonzero(labels == label))) for label in np.unique(labels)]


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
