"""Mixup and CutMix of neighbouring images in a batch: pure functions of (seed, step) and of the images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.modeling_losses import IGNORE_INDEX, known_rows
from .order import mix_seed


@dataclass(frozen=True)
class Mixing:
    """Mix images 2k and 2k + 1 of a batch, and their targets in the same shares.

    Mixup (Zhang et al. 2018) blends the two images; CutMix (Yun et al. 2019) swaps a box. All pairs of a step are mixed
    alike, as in the fine-tuning of DeiT and MAE (mixup 0.8, CutMix 1.0); share and box depend on seed and step alone. So
    parts of a global batch, each with an even number of images, are mixed as the whole would be.

    Label smoothing is left to the loss: it is linear in the targets, so before or after mixing is the same.

    Args:
        mixup_alpha: of the Beta(alpha, alpha) that mixup's share follows; 0 = no mixup.
        cutmix_alpha: the same for CutMix.
        probability: that a step mixes at all, in [0, 1].
        switch_probability: of CutMix in place of mixup where both are on, in [0, 1].
        seed: seed of the run.

    Raises:
        ValueError: if a value is outside its range, or both alphas are 0.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        alphas = (self.mixup_alpha, self.cutmix_alpha)
        if not (all(alpha >= 0 for alpha in alphas) and any(alphas)):
            raise ValueError(
                "`mixup_alpha` and `cutmix_alpha` must be at least 0, and one of them above; got "
                f"{self.mixup_alpha!r} and {self.cutmix_alpha!r}."
            )
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` of mixing must be in [0, 1]; got {getattr(self, name)!r}.")

    def draw(self, step: int, height: int, width: int) -> tuple[float, tuple[int, int, int, int] | None]:
        """Draw how a step mixes.

        Args:
            step: number of the optimizer step.
            height: of the images, in pixels.
            width: of the images, in pixels.

        Returns:
            The share in [0, 1] that an image keeps of itself, and the box (top, bottom, left, right) that CutMix takes
            from the partner, or None for mixup. A share of 1 is no mixing.
        """
        generator = np.random.default_rng(mix_seed(self.seed, step))
        happens, switch, down, right = generator.random(4).tolist()
        if happens >= self.probability:
            return 1.0, None
        is_cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or switch < self.switch_probability)
        alpha = self.cutmix_alpha if is_cut else self.mixup_alpha
        share = float(generator.beta(alpha, alpha))
        if not is_cut:
            return share, None
        side = (1 - share) ** 0.5
        top, bottom = _edges(int(down * height), int(side * height), height)
        left, right = _edges(int(right * width), int(side * width), width)
        # The box may be cut off at the border, so the share is taken from what is left of it.
        return 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)

    def __call__(self, pixel_values: Tensor, labels: Tensor, num_classes: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            pixel_values: (batch, channels, height, width) floats; left as they are.
            labels: (batch,) class ids or (batch, classes) probabilities. A row without a target (id -100, or a NaN)
                stays out: it and its neighbour are not mixed.
            num_classes: classes of the model.
            step: number of the optimizer step; the same for all its processes and accumulated batches.

        Returns:
            The images, and their targets (batch, classes) in float32; NaN in a row without one.

        Raises:
            ValueError: for an odd number of images, or labels that do not fit.
        """
        if len(pixel_values) % 2:
            raise ValueError(
                f"Mixing pairs neighbours, so a batch needs an even number of images; got {len(pixel_values)}. Use an "
                "even `per_device_train_batch_size` and `dataloader_drop_last=True`."
            )
        targets = _as_targets(labels, len(pixel_values), num_classes)
        share, box = self.draw(step, *pixel_values.shape[-2:])
        if share == 1:
            return pixel_values, targets
        if box is None:
            mixed = pixel_values * share + _neighbours(pixel_values) * (1 - share)
        else:
            top, bottom, left, right = box
            mixed = pixel_values.clone()
            mixed[..., top:bottom, left:right] = _neighbours(pixel_values[..., top:bottom, left:right])
        known = known_rows(targets)
        paired = known & _neighbours(known)
        return (
            torch.where(paired.view(-1, 1, 1, 1), mixed, pixel_values),
            torch.where(paired.view(-1, 1), targets * share + _neighbours(targets) * (1 - share), targets),
        )


def _edges(centre: int, length: int, limit: int) -> tuple[int, int]:
    return max(centre - length // 2, 0), min(centre + (length + 1) // 2, limit)


def _neighbours(rows: Tensor) -> Tensor:
    """Rows 2k and 2k + 1 in each other's place."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _as_targets(labels: Tensor, batch: int, num_classes: int) -> Tensor:
    if labels.is_floating_point():
        if labels.shape != (batch, num_classes):
            raise ValueError(
                f"Soft `labels` must have shape {(batch, num_classes)}, one probability per class; got "
                f"{tuple(labels.shape)}."
            )
        return labels.float()
    if labels.shape != (batch,):
        raise ValueError(f"Class ids in `labels` must have shape {(batch,)}; got {tuple(labels.shape)}.")
    counted = known_rows(labels)
    fits = (labels >= 0) & (labels < num_classes)
    # A look at the values would make a GPU wait; there, one_hot itself stops on an unknown class.
    if labels.device.type == "cpu" and not (fits | ~counted).all():
        raise ValueError(
            f"Class ids must be 0 to {num_classes - 1} (or {IGNORE_INDEX} to ignore a row); got {labels.tolist()}."
        )
    targets = F.one_hot(torch.where(counted, labels, 0).long(), num_classes).float()
    return targets.masked_fill(~counted.unsqueeze(1), torch.nan)  # zeros would get a loss by label smoothing
