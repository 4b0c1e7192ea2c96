"""The picture of an embedding in the plane: a dot per image, and some of the images where they lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .canvas import GREY, new_figure, plain_text, save_figure


if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

WIDTH, HEIGHT = 8.0, 7.4  # inches
THUMBNAIL = 0.26  # inches, the longer side
DISTANCE = 0.055  # between the middles of thumbnails, in lengths of the longer side of what is drawn
FRAME = 0.04  # empty, at every side, in the same unit


def draw_embedding(
    points: "Tensor",
    labels: "Tensor",
    class_names: Sequence[str],
    images: Sequence["Image"],
    path: str | Path,
    *,
    scale: tuple[str, float] | None = None,
) -> Path:
    """Draw points in the colours of their classes, and on some of them their images.

    An image is drawn where none has been drawn close by, in the order of the rows; so the first rows are more likely
    to be seen than the last.

    Args:
        points: (rows, 2) finite numbers.
        labels: (rows,) class ids.
        class_names: by class id.
        images: of any size and mode, one per row.
        path: the PNG file to write; its folder is made if need be.
        scale: name and length of a bar that shows a length in the plane, such as ("margin", 1.0).

    Returns:
        The path.

    Raises:
        ValueError: if there are no points, they are not finite, or numbers of rows differ.
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    _check(points, labels, images)
    from matplotlib import colormaps
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    colours = colormaps["tab10" if len(class_names) <= 10 else "tab20"]
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    for label, name in enumerate(class_names):
        own = points[labels == label]
        axes.scatter(*own.T, s=7, color=colours(label % colours.N), linewidths=0, label=plain_text(name))
    for row in spread(points, DISTANCE * np.ptp(points, axis=0).max()):
        pixels = np.asarray(images[row].convert("RGB"))
        picture = OffsetImage(pixels, zoom=72 * THUMBNAIL / max(pixels.shape[:2]), interpolation="nearest")
        frame = {"edgecolor": colours(labels[row] % colours.N), "linewidth": 1.5}
        axes.add_artist(AnnotationBbox(picture, points[row], pad=0, bboxprops=frame))
    _frame(axes, points, scale)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, markerscale=3, fontsize=9, handletextpad=0.2)
    return save_figure(figure, path)


def spread(points: np.ndarray, distance: float) -> list[int]:
    """Rows of points (rows, 2) that lie at least so far from each other: each, in their order, that is not too close."""
    chosen = []
    for row, point in enumerate(points):
        if all(np.hypot(*(point - points[other])) >= distance for other in chosen):
            chosen.append(row)
    return chosen


def _frame(axes, points: np.ndarray, scale: tuple[str, float] | None) -> None:
    """Equal units on both axes, which mean nothing by themselves, and a bar for a length."""
    low, high = points.min(axis=0), points.max(axis=0)
    border = FRAME * (high - low).max() or 1.0
    axes.set(xlim=(low[0] - border, high[0] + border), ylim=(low[1] - border, high[1] + border), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#dddddd")
    if scale is not None:
        name, length = scale
        left, bottom = low - border / 2
        axes.plot([left, left + length], [bottom, bottom], color=GREY, linewidth=2)
        axes.annotate(name, (left + length / 2, bottom), (0, 3), textcoords="offset points", ha="center", color=GREY)


def _check(points: np.ndarray, labels: np.ndarray, images: Sequence) -> None:
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"`points` must be (rows, 2), at least one row; got {points.shape}.")
    if not np.isfinite(points).all():
        raise ValueError("`points` hold NaN or infinity. Look at the loss of the model that made them.")
    if labels.shape != points.shape[:1] or len(images) != len(points):
        raise ValueError(
            f"There must be one label and one image for each of the {len(points)} points; got labels of shape "
            f"{labels.shape} and {len(images)} images."
        )
