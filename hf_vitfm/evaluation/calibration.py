"""How far the probabilities of a classifier can be believed."""

import numpy as np


def calibration_error(confidences, right, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): the mean distance of confidence and accuracy.

    The rows are put into bins of equal width by their confidence, (0, 1/bins], (1/bins, 2/bins] and so on; the distance
    of a bin's mean confidence and its accuracy counts as often as it has rows. The number depends on `bins` and is
    biased upwards on few rows, where a bin's accuracy is mostly chance.

    Args:
        confidences: (rows,) probability of each row's predicted class, 0..1.
        right: (rows,) whether the predicted class was the true one.
        bins: number of bins, at least 1; 15 is what the paper's tables use.

    Returns:
        A fraction in 0..1; NaN if a confidence is NaN.

    Raises:
        ValueError: if the lengths differ or are 0, `bins` is below 1, or a confidence is outside 0..1.
    """
    confidences, right = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if confidences.ndim != 1 or confidences.shape != right.shape or len(right) == 0 or bins < 1:
        raise ValueError(
            "`confidences` and `right` must be of one length, at least 1, and `bins` at least 1; got the shapes "
            f"{confidences.shape} and {right.shape} and {bins} bins. Pass one value per row."
        )
    if np.isnan(confidences).any():
        return float("nan")
    if confidences.min() < 0 or confidences.max() > 1 + 1e-6:  # float32's softmax may round to just above 1
        raise ValueError(
            f"`confidences` must be probabilities in 0..1; got {confidences.min():g} to {confidences.max():g}. "
            "Apply the softmax first."
        )
    # Compared with the ends themselves: 25 * (7 / 25) is rounded to above 7, and would be put a bin too high.
    index = np.searchsorted(np.arange(1, bins) / bins, confidences, side="left")
    # |bin| / rows x |accuracy - mean confidence| is |sum of the differences| / rows.
    return float(np.abs(np.bincount(index, weights=right - confidences, minlength=bins)).sum() / len(right))
