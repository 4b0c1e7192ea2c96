"""The picture of a retrieval: images, each with the captions that a model finds most alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .canvas import GREEN, GREY, drawable_text, fit_text, new_figure, plain_text, save_figure
from .figures import draw_tile


ROW_INCHES, TEXT_INCHES, FONT_SIZE = 1.35, 4.6, 9
MARK = "\N{CHECK MARK}"


@dataclass(frozen=True)
class FoundCaptions:
    """The best captions of one image.

    Args:
        captions: the best first.
        cosines: one per caption, in -1..1.
        are_right: one per caption: whether it is one of the image's own.
        rank: place of the image's own best caption among all, from 1.
        own: one of the image's own captions.
    """

    captions: Sequence[str]
    cosines: Sequence[float]
    are_right: Sequence[bool]
    rank: int
    own: str


def draw_retrieval(
    images: Sequence[Any], found: Sequence[FoundCaptions], path: str | Path, *, total: int, note: str | None = None
) -> Path:
    """Draw one row per image: the picture, and its best captions with their cosines, the right ones marked.

    Characters that matplotlib's own font lacks, as emoji and Chinese ones, become small squares.

    Args:
        images: PIL images, or uint8 arrays or tensors, as `draw_examples` takes them.
        found: one per image.
        path: the PNG file to write; its folder is made if need be.
        total: number of captions that were compared.
        note: a line below the pictures.

    Returns:
        The path.

    Raises:
        ValueError: if there are no images, or not one entry of `found` for each.
    """
    if not len(images) or len(images) != len(found):
        raise ValueError(f"`images` and `found` must be as many, at least one; got {len(images)} and {len(found)}.")
    columns = min(2, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(columns * (ROW_INCHES + TEXT_INCHES), rows * ROW_INCHES + 0.5)
    figure.suptitle(
        f"Best of {total:,} captions, with cosines; {MARK} = the image's own", x=0.02, ha="left", fontsize=11
    )
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[ROW_INCHES, TEXT_INCHES] * columns)
    for axes in grid.flat:
        axes.set_axis_off()
    places = [(row, 2 * column) for row in range(rows) for column in range(columns)]
    for number, (image, entry) in enumerate(zip(images, found, strict=True)):
        row, column = places[number]
        draw_tile(grid[row, column], image, number)
        _draw_captions(grid[row, column + 1], entry)
    if note:
        figure.supxlabel(plain_text(drawable_text(note)), x=0.02, ha="left", fontsize=8, color=GREY)
    return save_figure(figure, path)


def _draw_captions(axes: Any, entry: FoundCaptions) -> None:
    lines = [
        (f"{cosine:+.2f}  {MARK if is_right else '   '} ", caption, GREEN if is_right else "black", is_right)
        for caption, cosine, is_right in zip(entry.captions, entry.cosines, entry.are_right, strict=True)
    ]
    if not any(entry.are_right):
        lines.append((f"its own, place {entry.rank:,}: ", entry.own, GREY, False))
    step = 1 / max(6, len(lines))
    for place, (prefix, caption, colour, is_bold) in enumerate(lines):
        text = fit_text(drawable_text(caption), TEXT_INCHES - 0.3, FONT_SIZE, prefix=prefix)
        weight = "bold" if is_bold else "normal"
        axes.text(0, 1 - (place + 0.5) * step, text, fontsize=FONT_SIZE, color=colour, va="center", weight=weight)
