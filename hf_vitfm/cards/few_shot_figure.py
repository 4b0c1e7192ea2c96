"""The picture of few-shot probes next to zero-shot classification (CLIP, Fig. 6): accuracy by images per class."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from .canvas import BLUE, GREEN, GREY, ORANGE, PINK, new_figure, plain_text, save_figure


_COLOURS = (BLUE, ORANGE, GREEN, GREY)
_ZERO_SHOT_PLACE = 1  # powers of two to the left of the fewest shots
_LABEL_WIDTH = 0.4  # powers of two that a number at the foot of a line takes


def draw_few_shot(
    accuracies: Mapping[str, Mapping[int, Sequence[float]]],
    path: str | Path,
    *,
    zero_shot: float | None = None,
    equivalent: Mapping[str, float] | None = None,
    title: str = "Few-shot probes",
) -> Path:
    """Draw accuracy over the labelled images per class, on a logarithmic axis.

    Each method has a line of its means and a band from the lowest to the highest of its draws. Zero-shot accuracy is a
    star at 0 images with a dashed line.

    Args:
        accuracies: by the name of the method, by shots, the accuracy (0..1) of every draw; at most four methods.
        path: the PNG file to write; its folder is made if need be.
        zero_shot: accuracy (0..1) without labelled images.
        equivalent: by the name of a method, the number of shots at which it meets zero-shot, to be marked.
        title: above the picture.

    Returns:
        The path.

    Raises:
        ValueError: if there are no methods, more than four, a method without accuracies, or a mark without its method or
            without `zero_shot`.
    """
    equivalent = equivalent or {}
    if not 1 <= len(accuracies) <= len(_COLOURS) or not all(
        curve and all(curve.values()) for curve in accuracies.values()
    ):
        raise ValueError(
            f"`accuracies` must hold 1 to {len(_COLOURS)} methods with at least one accuracy for each number of shots; "
            f"got {dict(accuracies)!r}."
        )
    if equivalent and (zero_shot is None or not set(equivalent) <= set(accuracies)):
        raise ValueError(
            f"`equivalent` needs `zero_shot` and names of methods, {', '.join(accuracies)}; got {dict(equivalent)!r}."
        )
    figure = new_figure(5.8, 4.2)
    axes = figure.subplots()
    for colour, (name, curve) in zip(_COLOURS, accuracies.items(), strict=False):
        _draw_curve(axes, name, curve, colour)
    colours, row, last = dict(zip(accuracies, _COLOURS, strict=False)), 0, -math.inf
    for name, number in sorted(equivalent.items(), key=lambda item: item[1]):
        row = row + 1 if math.log2(number) - last < _LABEL_WIDTH else 0
        last = math.log2(number)
        _mark(axes, number, 100 * zero_shot, colours[name], row)
    shots = sorted({count for curve in accuracies.values() for count in curve})
    ticks = {math.log2(count): str(count) for count in shots}
    if zero_shot is not None:
        first = math.log2(shots[0]) - _ZERO_SHOT_PLACE
        ticks[first] = "0"
        label = f"zero-shot: {100 * zero_shot:.1f}"
        axes.axhline(100 * zero_shot, color=PINK, linestyle="--", linewidth=1, zorder=1)
        axes.plot(first, 100 * zero_shot, "*", color=PINK, markersize=13, linestyle="none", label=label, zorder=4)
    _set_range(axes, accuracies, zero_shot)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("labelled images per class")
    axes.set_ylabel("accuracy, %")
    # The legend stands between title and axes, where no line can run through it.
    lines = -(-(len(accuracies) + (zero_shot is not None)) // 2)
    axes.set_title(plain_text(title), loc="left", fontweight="bold", fontsize=10, pad=10 + 13 * lines)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _draw_curve(axes, name: str, curve: Mapping[int, Sequence[float]], colour: str) -> None:
    shots = sorted(curve)
    places = [math.log2(count) for count in shots]
    percent = [[100 * value for value in curve[count]] for count in shots]
    axes.plot(places, [statistics.fmean(values) for values in percent], "o-", color=colour, label=plain_text(name))
    lowest, highest = [min(values) for values in percent], [max(values) for values in percent]
    axes.fill_between(places, lowest, highest, color=colour, alpha=0.15, linewidth=0)


def _mark(axes, shots: float, level: float, colour: str, row: int) -> None:
    """A ring where a curve meets zero-shot, and the number of shots at the line below it, in a row from its foot."""
    place = math.log2(shots)
    axes.plot([place, place], [0, level], color=colour, linestyle=":", linewidth=1)
    axes.plot(place, level, "o", color=colour, markerfacecolor="white", markersize=8, zorder=4)
    foot = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 9}
    axes.annotate(f"{shots:.1f}", (place, 0), (3, 4 + 12 * row), color=colour, **foot)


def _set_range(axes, accuracies: Mapping[str, Mapping[int, Sequence[float]]], zero_shot: float | None) -> None:
    """Show what was measured; lines down to the axis end at its edge."""
    measured = [100 * value for curve in accuracies.values() for values in curve.values() for value in values]
    measured += [] if zero_shot is None else [100 * zero_shot]
    low, high = min(measured), max(measured)
    space = max(0.08 * (high - low), 0.5)
    axes.set_ylim(max(0, low - space), high + space)
