"""Metrics of models that predict numbers. Rows whose targets hold a NaN are not labelled and left out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .metrics import keep_labelled, unique_names


MEASURES = ("rmse", "mae", "r2", "pearson")


def regression_metrics(predictions: Tensor, targets: Tensor, output_names: Sequence[str]) -> dict:
    """Compute the reported numbers from the predictions for a whole evaluation set.

    Args:
        predictions: (rows, outputs), or (rows,) for one output.
        targets: the same number of elements; a row with a NaN is left out.
        output_names: one name per output. Of names that occur twice, all carry their index in the result.

    Returns:
        `loss` (mean squared error over rows and outputs); `rmse` and `mae` (root of the mean squared error, mean absolute
        error, in the targets' unit), `r2` (1 minus squared error over the targets' variance, at most 1; 0 is what the
        mean of these targets would score) and `pearson` (linear correlation, -1..1), each the mean over the outputs that
        have it; and `per_output`: name -> the same four. `r2` and `pearson` are None where a constant leaves them
        undefined.

    Raises:
        ValueError: if the shapes do not fit or no row has a target.
    """
    names = unique_names(output_names)
    predictions, targets = _check(torch.as_tensor(predictions), torch.as_tensor(targets), len(names))
    per_output = {name: _measure(predictions[:, k], targets[:, k]) for k, name in enumerate(names)}
    means = {}
    for measure in MEASURES:
        known = [values[measure] for values in per_output.values() if values[measure] is not None]
        means[measure] = float(np.mean(known)) if known else None
    return {"loss": float(np.square(predictions - targets).mean()), **means, "per_output": per_output}


def _measure(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float | None]:
    error = predictions - targets
    spread, own_spread = targets - targets.mean(), predictions - predictions.mean()
    norms = np.linalg.norm(spread), np.linalg.norm(own_spread)
    # Subtracting its mean from a constant leaves rounding errors, which are no variance.
    varies = [np.ptp(values) > 0 for values in (targets, predictions)]
    return {
        "rmse": float(np.sqrt(np.square(error).mean())),
        "mae": float(np.abs(error).mean()),
        "r2": float(1 - np.square(error).sum() / norms[0] ** 2) if varies[0] else None,
        "pearson": float(np.clip(spread @ own_spread / (norms[0] * norms[1]), -1, 1)) if all(varies) else None,
    }


def _check(predictions: Tensor, targets: Tensor, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with a target as (rows, outputs) float64, or say what is wrong."""
    given = tuple(predictions.shape), tuple(targets.shape)
    predictions, targets = (values.unsqueeze(1) if values.ndim == 1 else values for values in (predictions, targets))
    if predictions.ndim != 2 or predictions.shape[1] != num_outputs or targets.shape != predictions.shape:
        raise ValueError(
            f"`predictions` and `targets` must have the shape (rows, {num_outputs}), one column per output; got "
            f"{given[0]} and {given[1]}."
        )
    predictions, targets = keep_labelled(predictions, targets)
    return predictions.numpy(), targets.numpy()
