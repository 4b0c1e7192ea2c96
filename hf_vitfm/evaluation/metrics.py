"""Classification metrics as plain functions of tensors: no network, no `evaluate`.

Every row of logits is first reduced to four numbers (`summarize_logits`), on the device and batch by batch; only those
are gathered across processes, whatever the number of classes. `classification_metrics` turns the gathered rows into the
reported numbers. All shares are fractions in 0..1, never percent.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..models.modeling_losses import known_rows
from .calibration import calibration_error


# Columns of a summary row.
PREDICTION, PROBABILITY, RANK, LOSS = range(4)


@torch.no_grad()
def summarize_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Reduce each row of logits to the four numbers that all classification metrics need.

    A class that ties with the true one comes before it when its index is smaller, so at most k classes are ever counted
    as the top k, and rank 0 means that the predicted class is the true one. A NaN counts as larger than everything:
    a model that has diverged scores last place, not first.

    Args:
        logits: (rows, classes), any floating-point type.
        labels: (rows,) integer class indices, 0 <= label < classes.

    Returns:
        (rows, 4) float32 on the device of `logits`: predicted class, its probability in 0..1, rank of the true class
        (0 = best), negative log-likelihood of the true class in nats. Half-precision logits are widened first.

    Raises:
        ValueError: if the shapes do not fit, there are no rows, or a label is out of range.
    """
    labels = _check_logits(logits, labels)
    # float64 logits stay so: rounding them first could create ties.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_probabilities = logits.log_softmax(dim=-1)
    index = labels.unsqueeze(-1)  # (B, 1)
    prediction = logits.argmax(dim=-1, keepdim=True)  # the first of equal maxima
    return torch.cat(
        [
            prediction.float(),
            log_probabilities.gather(-1, prediction).exp().float(),
            _true_rank(logits, index).float(),
            -log_probabilities.gather(-1, index).float(),
        ],
        dim=-1,
    )


def classification_metrics(rows: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict:
    """Compute the reported numbers from the summary rows of a whole evaluation set.

    Args:
        rows: (rows, 4) from `summarize_logits`, of all processes and batches.
        labels: (rows,) integer class indices in the same order.
        class_names: one name per class, in index order. Of names that occur twice, all carry their index in the result.

    Returns:
        `loss` (mean negative log-likelihood, nats), `top1`, `top5` (only with more than 5 classes), `mean_per_class`
        (mean accuracy of the classes that occur, also known as balanced accuracy), `calibration_error` (of the top-1
        probability in 15 bins, see `calibration_error`) and `per_class` (name -> accuracy, None for a class that does
        not occur). Python floats; accuracies and the error are fractions in 0..1.

    Raises:
        ValueError: if the shapes do not fit, there are no rows, or a class index is out of range.
    """
    rows, labels = torch.as_tensor(rows), torch.as_tensor(labels)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(
            f"`rows` must have the shape (rows, 4); got {tuple(rows.shape)}. Pass what `summarize_logits` returns."
        )
    num_classes = len(class_names)
    labels = _check_labels(labels, len(rows), num_classes).cpu().numpy()
    rows = rows.detach().cpu().double().numpy()
    _check_indices("predicted classes", rows[:, PREDICTION], num_classes)

    right = rows[:, RANK] == 0
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[right], minlength=num_classes)
    accuracies = [hit / count if count else None for hit, count in zip(hits.tolist(), counts.tolist(), strict=True)]
    present = [accuracy for accuracy in accuracies if accuracy is not None]

    metrics = {"loss": float(rows[:, LOSS].mean()), "top1": float(right.mean())}
    if num_classes > 5:
        metrics["top5"] = float((rows[:, RANK] < 5).mean())
    metrics["mean_per_class"] = math.fsum(present) / len(present)
    metrics["calibration_error"] = calibration_error(rows[:, PROBABILITY], right)
    metrics["per_class"] = dict(zip(unique_names(class_names), accuracies, strict=True))
    return metrics


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """Count how often each class was taken for each.

    Args:
        predictions: (rows,) predicted class indices.
        labels: (rows,) true class indices.
        num_classes: number of classes K.

    Returns:
        (classes, classes) int64 counts; the row is the true class, the column the predicted one.

    Raises:
        ValueError: if the shapes do not fit, there are no rows, or a class index is out of range.
    """
    predictions, labels = torch.as_tensor(predictions).cpu(), torch.as_tensor(labels).cpu()
    labels = _check_labels(labels, len(labels) if labels.ndim else 0, num_classes).numpy()
    if predictions.shape != labels.shape:
        raise ValueError(
            f"`predictions` must have the shape of `labels`, {labels.shape}; got {tuple(predictions.shape)}. "
            "Pass one predicted class per row."
        )
    predictions = predictions.numpy()
    _check_indices("`predictions`", predictions, num_classes)
    cells = labels * num_classes + predictions.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


@torch.no_grad()
def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows whose true class is among the k largest logits.

    Args:
        logits: (rows, classes).
        labels: (rows,) integer class indices.
        k: 1 <= k <= classes. Ties are broken as in `summarize_logits`.

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: if `k` or a label is out of range, or the shapes do not fit.
    """
    labels = _check_logits(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(
            f"`k` must be in 1..{logits.shape[1]}, the number of classes; got {k!r}. Choose a smaller `k`, or leave "
            "this metric out."
        )
    return (_true_rank(logits, labels.unsqueeze(-1)) < k).double().mean().item()


@torch.no_grad()
def mean_per_class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean of the top-1 accuracies of the classes that occur; CLIP's metric for unbalanced test sets.

    Args:
        logits: (rows, classes).
        labels: (rows,) integer class indices. Ties are broken as in `summarize_logits`.

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: if a label is out of range, or the shapes do not fit.
    """
    labels = _check_logits(logits, labels)
    right = (_true_rank(logits, labels.unsqueeze(-1)) == 0).squeeze(-1).double()
    counts, hits = torch.bincount(labels), torch.bincount(labels, weights=right)
    return (hits / counts)[counts > 0].mean().item()


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the receiver operating characteristic: how often a positive row scores above a negative one.

    Equal scores count half. A NaN is below everything among the positive rows and above it among the others.

    Args:
        scores: (rows,) any monotonous function of the probability.
        truth: (rows,) booleans.

    Returns:
        A fraction in 0..1; 0.5 is chance.

    Raises:
        ValueError: if either kind of row is missing.
    """
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    num_positive = int(truth.sum())
    num_negative = len(truth) - num_positive
    if scores.shape != truth.shape or not num_positive or not num_negative:
        raise ValueError(
            f"ROC AUC compares positive and negative rows, at least one of each; got {num_positive} and "
            f"{num_negative}, and {scores.shape} scores."
        )
    scores = np.where(np.isnan(scores), np.where(truth, -np.inf, np.inf), scores)
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1; equal scores share the mean of their ranks (Mann-Whitney)
    return float((ranks[place][truth].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _true_rank(logits: Tensor, index: Tensor) -> Tensor:
    """(rows, 1) number of classes that come before the class `index` (rows, 1)."""
    true_logit = logits.gather(-1, index)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    # Written as "not smaller", so that a NaN on either side counts against the row.
    ahead = torch.where(classes < index, ~(logits < true_logit), ~(logits <= true_logit))
    return ahead.scatter(-1, index, False).sum(dim=-1, keepdim=True)


def _check_logits(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"`logits` must be floating point with the shape (rows, classes); got {logits.dtype} with the shape "
            f"{tuple(logits.shape)}. Pass the model's `logits`, one row per image."
        )
    return _check_labels(labels, len(logits), logits.shape[1]).to(logits.device)


def _check_labels(labels: Tensor, num_rows: int, num_classes: int) -> Tensor:
    """Return the labels as int64, or say what is wrong with them."""
    if labels.ndim != 1 or len(labels) != num_rows:
        raise ValueError(
            f"`labels` must have the shape ({num_rows},), one class index per row; got {tuple(labels.shape)}. "
            "Soft or one-hot labels have no rank: pass `labels.argmax(-1)`."
        )
    if num_rows == 0:
        raise ValueError("There are no rows; at least one is needed. Check that the evaluation set is not empty.")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"`labels` must be integers; got {labels.dtype}. Pass class indices, 0..{num_classes - 1}.")
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"`labels` must be in 0..{num_classes - 1} for {num_classes} classes; got values from {low} to {high}. "
            "Check that the dataset has the model's classes, and leave unlabelled rows out."
        )
    return labels.long()


def _check_indices(what: str, values: np.ndarray, num_classes: int):
    if values.min() < 0 or values.max() >= num_classes:
        raise ValueError(
            f"The {what} must be in 0..{num_classes - 1} for {num_classes} classes; got values from "
            f"{int(values.min())} to {int(values.max())}. Check that there is one class name per output of the model."
        )


def keep_labelled(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the rows whose targets hold no NaN, as float64 on the CPU.

    Raises:
        ValueError: if no row is left.
    """
    kept = known_rows(targets)
    if not kept.any():
        raise ValueError("No row has a target without NaN; at least one is needed. Check the evaluation set.")
    return predictions[kept].detach().cpu().double(), targets[kept].detach().cpu().double()


def unique_names(class_names: Sequence[str]) -> list[str]:
    """Tell classes of one name apart by their index: ImageNet has two "crane" and two "maillot"."""
    counts = Counter(class_names)
    return [name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(class_names)]
