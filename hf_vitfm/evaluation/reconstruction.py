"""What a masked autoencoder makes of images whose patches it has not seen (MAE, Fig. 2 to 4).

Pixels that are masked come from the model, visible ones from the image, as in the paper's pictures.
Shapes: B images, P patches, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cards.reconstruction_figure import draw_reconstructions
from ..conversion.files import check_source
from ..data.order import mix_seed
from ..models.modeling_mae import MAEForPreTraining
from ..models.modeling_masking import draw_noise, num_visible
from .modes import evaluating, masked_at


PICTURED_RATIOS = (0.75, 0.85, 0.95)
MASK_GREY = 0.5  # of masked patches, as a share of white
NORMALIZED_NOTE = "Mean and contrast of each masked patch are the original's: the model predicts normalised pixels."


@dataclass(frozen=True)
class Reconstruction:
    """Two pictures of each image, (B, C, height, width) float32 in 0..1 on the CPU.

    Args:
        masked: what the model saw: masked patches are grey.
        reconstruction: what it makes of that: masked patches are predicted, visible ones are the original's.
    """

    masked: Tensor
    reconstruction: Tensor


def load_autoencoder(source: str | Path, **options: Any) -> MAEForPreTraining:
    """Load a masked autoencoder with its decoder, in evaluation mode.

    Args:
        source: Hub id or folder, saved by this library or in transformers' ViTMAE format.
        **options: of `from_pretrained`: `image_size`, `norm_pix_loss`, `revision`, ...

    Raises:
        FileNotFoundError: if the source is a path that does not exist.
        ValueError: if the source is no masked autoencoder, or lacks weights, as one of the encoder alone does: its
            pictures would be noise.
    """
    check_source(source)
    model, info = MAEForPreTraining.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{str(source)!r} lacks {len(missing)} weights of a masked autoencoder: {', '.join(missing[:5])}. A file of "
            "the encoder alone lacks the decoder's, and an untrained decoder draws noise. Name a checkpoint that has it."
        )
    return model.eval()


def pixel_statistics(image_processor: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, per channel in 0..1, that an image processor normalises by; (0,), (1,) if it does not."""
    if not getattr(image_processor, "do_normalize", False):
        return (0.0,), (1.0,)
    return image_processor.image_mean, image_processor.image_std


def to_pixels(pixel_values: Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> Tensor:
    """Undo the image processor's normalisation: (B, C, height, width) to float32 in 0..1."""
    mean, std = (
        torch.tensor(values, device=pixel_values.device).view(1, -1, 1, 1) for values in (image_mean, image_std)
    )
    return (pixel_values.float() * std + mean).clamp(0, 1)


def draw_mask_noise(count: int, num_patches: int, seed: int = 0) -> Tensor:
    """Noise (count, P) for random masks; the row of an image is a function of the seed and its number alone.

    The patches with the smallest noise are visible, so what is visible at a high ratio is visible at every lower one.
    """
    generators = (torch.Generator().manual_seed(mix_seed(seed, number)) for number in range(count))
    # The grid and the ratio play no part in random masking.
    return torch.stack([draw_noise("random", (1, num_patches), 0.0, generator) for generator in generators])


@torch.no_grad()
def reconstruct(
    model: MAEForPreTraining,
    pixel_values: Tensor,
    mask_ratio: float,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    noise: Tensor | None = None,
) -> Reconstruction:
    """Mask images, reconstruct them, and return both as pictures; the model is left as it was.

    A model trained with `norm_pix_loss` predicts patches of mean 0 and variance 1. They are given the mean and the
    standard deviation of the patch that is to be predicted, so the picture owes its shading to the original, as do the
    paper's.

    Args:
        model: on any device.
        pixel_values: (B, C, height, width), as the image processor normalises them; any size that its patches divide.
        mask_ratio: share of patches to mask, in [0, 1).
        image_mean: per channel, of the image processor.
        image_std: the same.
        noise: (B, P); the patches with the smallest values are visible. By default `draw_mask_noise` with seed 0.

    Raises:
        ValueError: if the ratio is outside its range or leaves no patch visible, or the images do not fit the patches.
    """
    pixel_values = pixel_values.to(model.device)
    grid = model.vit.embeddings.patch_embeddings.grid(pixel_values)
    if noise is None:
        noise = draw_mask_noise(len(pixel_values), grid[0] * grid[1])
    with evaluating(model), masked_at(model, mask_ratio):
        outputs = model(pixel_values, noise.to(model.device), interpolate_pos_encoding=True, return_logits=True)
    target, predicted = model.patchify(pixel_values.float()), outputs.logits.float()
    if model.config.norm_pix_loss:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    is_masked = outputs.mask.unsqueeze(-1).bool()
    composed = model.unpatchify(torch.where(is_masked, predicted, target), grid)
    hidden = model.unpatchify(is_masked.expand_as(target), grid)
    original = to_pixels(pixel_values, image_mean, image_std)
    return Reconstruction(
        masked=original.masked_fill(hidden, MASK_GREY).cpu(),
        # Visible pixels are taken as they came, not through patches and back.
        reconstruction=torch.where(hidden, to_pixels(composed, image_mean, image_std), original).cpu(),
    )


def picture_reconstructions(
    model: MAEForPreTraining,
    pixel_values: Tensor,
    image_processor: Any,
    path: str | Path | None,
    mask_ratios: Sequence[float] | None = None,
    seed: int = 0,
) -> Path | None:
    """Draw images, masked images and reconstructions at several ratios as one grid; the masks of an image nest.

    Args:
        model: as `reconstruct` takes it.
        pixel_values: (B, C, height, width), a row of the grid each.
        image_processor: the one that normalised them.
        path: the PNG file to write; its folder is made if need be. None computes and draws nothing: of the processes
            that share a model, all have to compute and one writes.
        mask_ratios: shares of patches to mask, in [0, 1). By default 0.75, 0.85 and 0.95, where these leave a patch
            visible, or else the model's own.
        seed: of the masks.

    Returns:
        The path.

    Raises:
        ValueError: if a ratio is outside its range or leaves no patch visible, or the images do not fit the patches.
    """
    statistics = pixel_statistics(image_processor)
    rows, columns = model.vit.embeddings.patch_embeddings.grid(pixel_values)
    noise = draw_mask_noise(len(pixel_values), rows * columns, seed)
    if mask_ratios is None:
        mask_ratios = [ratio for ratio in PICTURED_RATIOS if num_visible(rows * columns, ratio)]
        mask_ratios = mask_ratios or [model.config.mask_ratio]
    pairs = {}
    for ratio in mask_ratios:
        result = reconstruct(model, pixel_values, ratio, *statistics, noise=noise)
        pairs[ratio] = (result.masked, result.reconstruction)
    if path is None:
        return None
    note = NORMALIZED_NOTE if model.config.norm_pix_loss else None
    return draw_reconstructions(to_pixels(pixel_values, *statistics), pairs, path, note=note)
