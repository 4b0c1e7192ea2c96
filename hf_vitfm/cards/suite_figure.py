"""The picture of a suite: by how much zero-shot classification beats a probe on other features (CLIP, Fig. 5)."""

import math
from collections.abc import Mapping
from pathlib import Path

from .canvas import BLUE, GREY, ORANGE, drawable_text, fit_text, new_figure, save_figure


WIDTH, BAR, EDGE = 7.0, 0.27, 1.7  # inches: of the figure, of a bar with its gap, of title and axis


def draw_deltas(deltas: Mapping[str, float], path: str | Path, model: str, baseline: str) -> Path:
    """Draw a bar for every data set, the largest win on top.

    Args:
        deltas: zero-shot score of the model less the linear probe's on the baseline's features, in -1..1, by data set.
        path: the PNG file to write; its folder is made if need be.
        model: name of the model.
        baseline: name of the model whose features the probe was on.

    Returns:
        The path.

    Raises:
        ValueError: if there are no data sets, or a difference is not finite.
    """
    if not deltas or not all(map(math.isfinite, deltas.values())):
        raise ValueError(f"`deltas` must hold finite differences for one data set at least; got {dict(deltas)}.")
    ordered = sorted(deltas.items(), key=lambda item: item[1])  # the first bar is the lowest
    values = [100 * value for _, value in ordered]
    wins = sum(value > 0 for value in values)
    figure = new_figure(WIDTH, EDGE + BAR * len(values))
    axes = figure.subplots()
    axes.barh(range(len(values)), values, height=0.74, color=[BLUE if value > 0 else ORANGE for value in values])
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:+.1f}".replace("-", "\N{MINUS SIGN}"),
            (value, place),
            (3 if value >= 0 else -3, 0),
            textcoords="offset points",
            ha="left" if value >= 0 else "right",
            va="center",
            fontsize=8,
        )
    names = [fit_text(drawable_text(name), 1.9, 9) for name, _ in ordered]
    axes.set_yticks(range(len(values)), names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.margins(x=0.14)  # room for the numbers
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.set_xlabel("difference of scores, percentage points")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    lines = ("zero-shot ", model), ("less a linear probe on the features of ", baseline)
    lines = [fit_text(drawable_text(name), WIDTH - 2.2, 9, prefix=prefix) for prefix, name in lines]
    axes.set_title("\n".join(lines), fontsize=9)
    figure.suptitle(f"Zero-shot wins {wins} of {len(values)}", fontsize=11, fontweight="bold")
    return save_figure(figure, path)
