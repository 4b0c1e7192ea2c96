"""Losses of the classification heads: hard and soft targets, several labels, regression.

All return a scalar in float32 (float64 for float64 logits). Divided by `num_items_in_batch` where that is given
(the count of label elements in the whole accumulated batch over all processes, as transformers' Trainer counts them),
so that accumulation and several devices give the gradient of one big batch.
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


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str | None = None,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy, binary cross entropy or mean squared error, by the kind of targets.

    Args:
        logits: (B, K) of any float dtype.
        labels: (B,) class ids (-100 is ignored) or (B, K) probabilities for "single_label_classification"; (B, K) of
            0 and 1 for "multi_label_classification"; (B,) or (B, K) numbers for "regression".
        problem_type: one of these three, or None to guess it (see `resolve_problem_type`).
        num_items_in_batch: elements of `labels` in the whole accumulated global batch; None = mean over this batch.
        label_smoothing: share in [0, 1) of each target spread evenly over the classes (single label only).

    Raises:
        ValueError: if the shape of the labels or a class id does not fit the logits.
    """
    num_labels = logits.shape[-1]
    kind = resolve_problem_type(problem_type, num_labels, labels)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if kind == "single_label_classification":
        return _single_label(logits, labels, num_items_in_batch, label_smoothing)
    if kind not in ("multi_label_classification", "regression"):
        raise ValueError(
            "`problem_type` must be one of single_label_classification, multi_label_classification, regression, or "
            f"None to tell it from the labels; got {kind!r}."
        )
    if kind == "regression" and labels.shape != logits.shape:
        logits = logits.squeeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(
            f"`labels` of shape {tuple(labels.shape)} do not fit {num_labels} outputs for {kind}; expected "
            f"{tuple(logits.shape)}. Check the dataset's labels against the model's `num_labels`."
        )
    labels = labels.to(logits.dtype)
    if kind == "regression":
        total = F.mse_loss(logits, labels, reduction="sum")
    else:
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def _single_label(logits: Tensor, labels: Tensor, num_items: Tensor | int | None, smoothing: float) -> Tensor:
    num_labels = logits.shape[-1]
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise ValueError(
                f"Soft targets of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; "
                "give one probability per class."
            )
        labels = labels.to(logits.dtype)
        rows = labels.shape[0] if num_items is None else num_items / num_labels  # elements -> rows
    else:
        _check_class_ids(labels, logits)
        labels = labels.long()
        rows = (labels != IGNORE_INDEX).sum().clamp(min=1) if num_items is None else num_items
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing)
    return total / rows


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
