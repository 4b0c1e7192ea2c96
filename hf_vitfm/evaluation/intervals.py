"""Confidence intervals of accuracies by a bootstrap over test images and seeds, paired between models.

A resample draws as many test images as there are, with replacement, and seeds with replacement too; it is the same for
everything that is compared, so that a difference of two accuracies has an interval of its own, which is often far
narrower than theirs: both models meet the same easy and hard images.
"""

from collections.abc import Hashable, Mapping
from statistics import NormalDist

import numpy as np


RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 1 << 22  # counts of images held at a time
_SEEDS_STREAM = 1  # apart from the numbers that choose images


def bootstrap_accuracies(
    correct: Mapping[Hashable, np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> dict[Hashable, np.ndarray]:
    """Accuracies of everything that is compared, over the same resamples of test images and seeds.

    Images and seeds are drawn independently of each other (a two-way bootstrap). Of S seeds, S - 1 are drawn: so their
    share of the variance is the unbiased one, which S draws would make (S - 1) / S as large (Rao and Wu 1988). One seed
    stays as it is, and the interval is one over images alone.

    Args:
        correct: by name, (seeds, images) bool: which test images were classified right. The images are the same for all;
            entries with as many seeds have the same seeds.
        resamples: to draw.
        seed: of the draws.

    Returns:
        By the same names, (resamples,) accuracies in 0..1.

    Raises:
        ValueError: if there is nothing to compare, or the entries differ in their number of images.
    """
    stacks = {name: np.atleast_2d(np.asarray(rows, dtype=bool)) for name, rows in correct.items()}
    images = {rows.shape[1] for rows in stacks.values()}
    if len(images) != 1 or 0 in images:
        raise ValueError(
            f"`correct` must hold entries for the same test images, at least one; got {sorted(images)} images in "
            f"{len(stacks)} entries."
        )
    (num_images,) = images
    columns = np.concatenate(list(stacks.values())).T.astype(np.float32)  # (images, all seeds)
    generator, per_seed = np.random.default_rng(seed), []
    for start in range(0, resamples, max(1, _CHUNK // num_images)):
        size = min(max(1, _CHUNK // num_images), resamples - start)
        per_seed.append(_counts(generator, size, num_images).astype(np.float32) @ columns)
    per_seed = np.concatenate(per_seed).astype(np.float64) / num_images  # (resamples, all seeds)
    found, first, weights = {}, 0, {}
    for name, rows in stacks.items():
        seeds = len(rows)
        if seeds not in weights:
            weights[seeds] = _seed_weights(seeds, resamples, seed)
        found[name] = (per_seed[:, first : first + seeds] * weights[seeds]).sum(axis=1)
        first += seeds
    return found


def percentile_interval(resampled: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of resampled values: (low, high)."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy_interval(
    accuracy: float, resampled: np.ndarray, images: int, level: float = LEVEL
) -> tuple[float, float]:
    """The interval of one accuracy: by percentiles, or Wilson's where all images are right, or all wrong.

    A bootstrap cannot tell how seldom the errors are of which it has seen none.

    Args:
        accuracy: in 0..1.
        resampled: as `bootstrap_accuracies` gives it.
        images: number of test images.
        level: share of such intervals that hold the true accuracy, in (0, 1).
    """
    if 0 < accuracy < 1:
        return percentile_interval(resampled, level)
    return wilson_interval(accuracy, images, level)


def wilson_interval(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` independent cases (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z * z / (2 * count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _counts(generator: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """How often each of `size` things is among `size` draws with replacement: (resamples, size)."""
    drawn = generator.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)


def _seed_weights(seeds: int, resamples: int, seed: int) -> np.ndarray:
    """Weights (resamples, seeds) that add up to 1 in every resample."""
    if seeds == 1:
        return np.ones((resamples, 1))
    generator = np.random.default_rng((seed, _SEEDS_STREAM, seeds))
    return generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)
