"""Metrics of models that say of every class, on its own, whether it is in the image.

Rows whose targets hold a NaN are not labelled and left out. All shares are fractions in 0..1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..models.modeling_losses import classification_loss
from .metrics import keep_labelled, unique_names


def multi_label_metrics(logits: Tensor, targets: Tensor, class_names: Sequence[str]) -> dict:
    """Compute the reported numbers from the logits of a whole evaluation set.

    A class counts as predicted when its probability, the sigmoid of its logit, is above 0.5.

    Args:
        logits: (rows, classes), any floating-point type.
        targets: (rows, classes) of 0 and 1; a row with a NaN is left out.
        class_names: one name per class. Of names that occur twice, all carry their index in the result.

    Returns:
        `loss` (mean binary cross entropy over rows and classes, nats), `mean_average_precision` (mean over the classes
        that have a positive row), `micro_f1` (of all decisions in one pot), `macro_f1` (mean over all classes; 0 for a
        class that neither occurs nor is predicted, as in scikit-learn) and `per_class` (name -> average precision, None
        for a class without a positive row). `mean_average_precision` is None if no class has one.

    Raises:
        ValueError: if the shapes do not fit, no row is labelled, or a target is neither 0 nor 1.
    """
    logits, targets = _check(torch.as_tensor(logits), torch.as_tensor(targets), len(class_names))
    loss = classification_loss(logits, targets, "multi_label_classification").item()
    scores, truth = logits.numpy(), targets.numpy() == 1
    precisions = [average_precision(scores[:, k], truth[:, k]) for k in range(len(class_names))]
    known = [value for value in precisions if value is not None]

    predicted = scores > 0
    hits, mistakes = (predicted & truth).sum(axis=0), (predicted ^ truth).sum(axis=0)
    f1 = 2 * hits / np.maximum(2 * hits + mistakes, 1)
    return {
        "loss": loss,
        "mean_average_precision": float(np.mean(known)) if known else None,
        "micro_f1": float(2 * hits.sum() / max(2 * hits.sum() + mistakes.sum(), 1)),
        "macro_f1": float(f1.mean()),
        "per_class": dict(zip(unique_names(class_names), precisions, strict=True)),
    }


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the steps of the precision-recall curve: the mean, over the positive rows, of the precision there.

    Rows of equal score enter together, so their order cannot matter. A NaN comes last among the positive rows and first
    among the others: a model that has diverged is not rewarded.

    Args:
        scores: (rows,) any monotonous function of the probability.
        truth: (rows,) booleans.

    Returns:
        A fraction in 0..1, or None without a positive row.
    """
    hits, precision = _precision_steps(scores, truth)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / hits[-1]) if hits.size else None


def eleven_point_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """VOC2007's average precision: the mean of the best precision at a recall of at least 0, 0.1, ..., 1.

    Rows of equal score enter together, and a NaN is never rewarded, as in `average_precision`.

    Args:
        scores: (rows,) any monotonous function of the probability; VOC's rows that are difficult for the class are to be
            left out.
        truth: (rows,) booleans.

    Returns:
        A fraction in 0..1, or None without a positive row.
    """
    hits, precision = _precision_steps(scores, truth)
    if not hits.size:
        return None
    # Whole numbers: 0.1 * 3 in floating point is above 3 / 10.
    return float(np.mean([precision[10 * hits >= tenth * hits[-1]].max() for tenth in range(11)]))


def mean_eleven_point_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over the classes of VOC2007's 11-point average precision.

    Args:
        scores: (rows, classes), of each class on its own: a softmax over the classes would change the order of rows.
        targets: (rows, classes) of 1, 0 and -1; rows of -1 are left out for that class (VOC's difficult ones).

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: if the shapes differ or no class has a positive row.
    """
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(
            f"`scores` and `targets` must both be (rows, classes); got {tuple(scores.shape)} and {tuple(targets.shape)}."
        )
    scores, targets = scores.detach().cpu().double().numpy(), targets.detach().cpu().numpy()
    known = targets >= 0
    precisions = [
        eleven_point_precision(scores[known[:, k], k], targets[known[:, k], k] == 1) for k in range(scores.shape[1])
    ]
    precisions = [value for value in precisions if value is not None]
    if not precisions:
        raise ValueError("No class has a positive row, so there is no average precision. Check the targets.")
    return float(np.mean(precisions))


def _precision_steps(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive rows found and precision at every threshold, from the highest; both empty without a positive row."""
    if not truth.any():
        return np.empty(0), np.empty(0)
    scores = np.where(np.isnan(scores), np.where(truth, -np.inf, np.inf), scores)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(truth[order])
    # Only the last row of each run of equal scores is a threshold.
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)
    return hits[ends], hits[ends] / (ends + 1)


def _check(logits: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the labelled rows as float64 on the CPU, or say what is wrong."""
    if logits.ndim != 2 or logits.shape[1] != num_classes or targets.shape != logits.shape:
        raise ValueError(
            f"`logits` and `targets` must have the shape (rows, {num_classes}), one column per class; got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}. Pass multi-hot targets."
        )
    logits, targets = keep_labelled(logits, targets)
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError(
            f"`targets` must be 0 or 1 for several labels; got values from {targets.min():g} to {targets.max():g}. "
            'Soft targets of one class are `problem_type="single_label_classification"`.'
        )
    return logits, targets
