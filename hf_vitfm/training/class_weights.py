"""Weights that make rare classes count as much as frequent ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.modeling_losses import known_rows


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weigh every class with rows / (classes that occur x rows of the class), as scikit-learn's "balanced" does.

    The mean weight of the given rows is exactly 1, so a learning rate keeps its meaning.

    Args:
        labels: (rows,) class ids, or (rows, classes) probabilities; rows with -100 or a NaN are left out.
        num_classes: number of classes K.

    Returns:
        (classes,) float64; 0 for a class that does not occur.

    Raises:
        ValueError: if no row has a label, or labels do not fit the number of classes.
    """
    labels = labels[known_rows(labels)]
    if labels.ndim == 1 and not labels.is_floating_point() and len(labels):
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"Class ids must be 0 to {num_classes - 1}; got {int(labels.min())} to {int(labels.max())}. Load the "
                "model with the classes of the training set."
            )
        counts = torch.bincount(labels, minlength=num_classes).double()
    elif labels.ndim == 2 and labels.shape[1] == num_classes and len(labels):
        counts = labels.double().sum(dim=0)
    else:
        raise ValueError(
            f"Class weights need class ids (rows,) or probabilities (rows, {num_classes}), at least one row; got "
            f"{tuple(labels.shape)} of {labels.dtype}. Leave `class_weights` out for regression."
        )
    occurring = counts > 0
    weights = counts.sum() / (occurring.sum() * counts)
    return torch.where(occurring, weights, 0)


def read_labels(rows: Sequence[dict]) -> Tensor:
    """Read the targets of all rows: of a `datasets.Dataset` by its column, without decoding an image.

    Raises:
        ValueError: if the rows have no column `label` or `labels`.
    """
    columns = getattr(rows, "column_names", None)
    names = columns if columns is not None else (list(rows[0]) if len(rows) else [])
    name = next((name for name in ("labels", "label") if name in names), None)
    if name is None:
        raise ValueError(f"Rows must have a column `label`; got {', '.join(names) or 'no columns'}.")
    values = list(rows[name]) if columns is not None else [row[name] for row in rows]
    return torch.stack([torch.as_tensor(value) for value in values])
