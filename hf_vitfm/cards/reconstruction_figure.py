"""The picture grid of a masked autoencoder: images, what it sees of them, and what it makes of that (MAE, Fig. 2, 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .canvas import DOTS_PER_INCH, GREY, new_figure, save_figure, whole_percent


if TYPE_CHECKING:
    from torch import Tensor

TILE_PIXELS = 256  # about this long is the longer side of a drawn image
GAP, GROUP_GAP = 8, 24  # pixels between the tiles of a group, and between groups


def draw_reconstructions(
    images: "Tensor",
    pairs: Mapping[float, tuple["Tensor", "Tensor"]],
    path: str | Path,
    *,
    note: str | None = None,
) -> Path:
    """Draw one row per image: the original, then masked and reconstructed for every masking ratio.

    Small images are enlarged by a whole number, pixel by pixel; ones of 512 pixels and more are made smaller.

    Args:
        images: (rows, 1 or 3 channels, height, width) in 0..1; what is outside is clipped.
        pairs: by share of masked patches in 0..1, the masked images and their reconstructions, both as `images`.
        path: the PNG file to write; its folder is made if need be.
        note: a line below the pictures.

    Returns:
        The path.

    Raises:
        ValueError: if there are no images or no pairs, or shapes differ.
    """
    _check_shapes(images, pairs)
    groups, titles = [[_tiles(images)]], [["original"]]
    for ratio, (masked, reconstruction) in pairs.items():
        groups.append([_tiles(masked), _tiles(reconstruction)])
        titles.append([f"{whole_percent(ratio)} % masked", "reconstruction"])
    side = groups[0][0].shape[1]
    lefts = _lefts([len(group) for group in groups], side)
    num_rows = len(images)
    mosaic = np.full((num_rows * (side + GAP) - GAP, lefts[-1] + side, 3), 255, dtype=np.uint8)
    columns = [tiles for group in groups for tiles in group]
    for left, tiles in zip(lefts, columns, strict=True):
        for row, tile in enumerate(tiles):
            mosaic[row * (side + GAP) :][:side, left : left + side] = tile

    height, width = (length / DOTS_PER_INCH for length in mosaic.shape[:2])
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))  # a pixel of the file for a pixel of the mosaic
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for left, title in zip(lefts, [title for group in titles for title in group], strict=True):
        axes.text(left + side / 2, -10, title, ha="center", va="bottom", fontsize=10)
    if note:
        axes.text(0, mosaic.shape[0] + 10, note, ha="left", va="top", fontsize=8, color=GREY, wrap=True)
    return save_figure(figure, path)


def _check_shapes(images: "Tensor", pairs: Mapping) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"`images` must be (rows, 1 or 3 channels, height, width), at least one row; got {shape}.")
    if not pairs:
        raise ValueError("`pairs` must hold the pictures of at least one masking ratio; got none.")
    for ratio, pictures in pairs.items():
        shapes = [tuple(picture.shape) for picture in pictures]
        if shapes != [shape, shape]:
            raise ValueError(
                f"`pairs` must hold (masked, reconstruction) of the shape {shape} of the images; got {shapes} for the "
                f"ratio {ratio}."
            )


def _lefts(group_sizes: list[int], side: int) -> list[int]:
    """The left edge of every column, in pixels."""
    lefts, left = [], 0
    for size in group_sizes:
        for _ in range(size):
            lefts.append(left)
            left += side + GAP
        left += GROUP_GAP - GAP
    return lefts


def _tiles(images: "Tensor") -> np.ndarray:
    """(rows, channels, height, width) in 0..1 -> (rows, side, side, 3) uint8; white beside what is not square."""
    from PIL import Image

    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy().transpose(0, 2, 3, 1)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    longest = max(pixels.shape[1:3])
    scale = round(TILE_PIXELS / longest)
    if scale >= 1:
        pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    else:
        size = tuple(max(1, round(length * TILE_PIXELS / longest)) for length in pixels.shape[2:0:-1])
        pixels = np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pixels])
    height, width = pixels.shape[1:3]
    side = max(height, width)
    tiles = np.full((len(pixels), side, side, 3), 255, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    tiles[:, top : top + height, left : left + width] = pixels
    return tiles
