"""Losses of the classification heads: hard and soft targets, several labels, regression.

All return a scalar in float32 (float64 for float64 logits). Divided by `num_items_in_batch` where that is given
(the count of label elements in the whole accumulated batch over all processes, as transformers' Trainer counts them),
so that accumulation and several devices give the gradient of one big batch. Rows without a target count nowhere.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


IGNORE_INDEX = -100


def resolve_problem_type(problem_type: str | None, num_labels: int, labels: Tensor) -> str:
    """The kind of targets: the configured one, else guessed from the labels as transformers guesses it.

    One label is regression, integers are classes, floats are several labels. Soft targets (rows of probabilities)
    look like several labels, so they need `problem_type="single_label_classification"`. Nothing is remembered.
    """
    if problem_type is not None:
        return problem_type
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def known_rows(labels: Tensor) -> Tensor:
    """The rows that have a target: (B,) booleans, False where the class id is -100 or a number of the row is NaN."""
    unknown = labels.isnan() if labels.is_floating_point() else labels.long() == IGNORE_INDEX
    return ~(unknown if labels.ndim < 2 else unknown.flatten(1).any(dim=1))


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str | None = None,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy, binary cross entropy or mean squared error, by the kind of targets.

    Rows without a target (`known_rows`) add nothing to the sum, nor to the count of a batch.

    Args:
        logits: (B, K) of any float dtype.
        labels: (B,) class ids or (B, K) probabilities for "single_label_classification"; (B, K) of 0 and 1 for
            "multi_label_classification"; (B,) or (B, K) numbers for "regression". A class id of -100, or a NaN anywhere
            in a row of floats, leaves the row out.
        problem_type: one of these three, or None to guess it (see `resolve_problem_type`).
        num_items_in_batch: elements of the known rows of `labels` in the whole accumulated global batch; None = mean
            over this batch.
        label_smoothing: share in [0, 1) of each target spread evenly over the classes (single label only).
        class_weights: (K,) factors of the rows' losses (single label only): that of the row's class, or the mean by the
            row's probabilities. The sum is still divided by the number of rows, not by the sum of their weights as
            `torch.nn.CrossEntropyLoss` does, so that micro-batches add up to the whole.

    Raises:
        ValueError: if the shape of the labels or a class id does not fit the logits, or weights are given for labels
            that are no single classes.
    """
    num_labels = logits.shape[-1]
    kind = resolve_problem_type(problem_type, num_labels, labels)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if kind == "single_label_classification":
        losses = _single_label(logits, labels, label_smoothing, class_weights)
    elif kind not in ("multi_label_classification", "regression"):
        raise ValueError(
            "`problem_type` must be one of single_label_classification, multi_label_classification, regression, or "
            f"None to tell it from the labels; got {kind!r}."
        )
    elif class_weights is not None:
        raise ValueError(f"`class_weights` are for one class per row; got the problem type {kind!r}.")
    else:
        losses = _element_wise(kind, logits, labels)
    known = known_rows(labels)
    total = torch.where(known, losses, 0).sum()
    items_per_row = 1 if labels.ndim == 1 else labels.shape[1]
    if num_items_in_batch is None:
        num_items_in_batch = known.sum() * items_per_row
    num_items_in_batch = torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)  # no target at all: 0
    if kind == "single_label_classification":  # a mean over rows, the others are means over elements
        return total / (num_items_in_batch / items_per_row)
    return total / num_items_in_batch


def _single_label(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Cross entropy of every row, (B,)."""
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise ValueError(
                f"Soft targets of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; "
                "give one probability per class."
            )
        labels = labels.to(logits.dtype).nan_to_num()
    else:
        _check_class_ids(labels, logits)
        labels = labels.long()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=smoothing)
    if weights is None:
        return losses
    weights = weights.to(logits)
    return losses * (labels @ weights if labels.is_floating_point() else weights[labels.clamp(min=0)])


def _element_wise(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the outputs of every row's losses, (B,)."""
    if kind == "regression" and labels.shape != logits.shape:
        logits = logits.squeeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(
            f"`labels` of shape {tuple(labels.shape)} do not fit {logits.shape[-1]} outputs for {kind}; expected "
            f"{tuple(logits.shape)}. Check the dataset's labels against the model's `num_labels`."
        )
    labels = labels.to(logits.dtype).nan_to_num()
    function = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
    losses = function(logits, labels, reduction="none")
    return losses if losses.ndim == 1 else losses.sum(dim=1)


def _check_class_ids(labels: Tensor, logits: Tensor) -> None:
    num_labels = logits.shape[-1]
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Class ids must have shape ({logits.shape[0]},); got {tuple(labels.shape)}. Several labels per image are "
            'floats of shape (batch, classes) with `problem_type="multi_label_classification"`.'
        )
    # A look at the values would make a GPU wait and cannot be compiled.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if high >= num_labels or (low < 0 and low != IGNORE_INDEX):
            remedy = f"Load the model with `num_labels={high + 1}` or correct" if high >= num_labels else "Correct"
            raise ValueError(
                f"Class ids must be 0 to {num_labels - 1} (or {IGNORE_INDEX} to ignore a row); got {low} to {high}. "
                f"{remedy} the labels."
            )
