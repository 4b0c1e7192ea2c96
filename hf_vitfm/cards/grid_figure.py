"""The picture of a search for a learning rate, or another positive number: scores on held-out images against it."""

from collections.abc import Mapping
from pathlib import Path

from .canvas import BLUE, GREY, ORANGE, new_figure, save_figure


MAX_TICKS = 8  # numbers that can stand side by side


def draw_grid(
    scores: Mapping[float, float | None],
    chosen: float,
    path: str | Path,
    labels: tuple[str, str] = ("learning rate", "top-1 accuracy"),
) -> Path:
    """Draw the accuracy of every learning rate on a logarithmic axis, and mark the chosen one.

    Args:
        scores: top-1 accuracy (0..1) by learning rate; None for a run that diverged.
        chosen: the learning rate that is marked, one with a score.
        path: the PNG file to write; its folder is made if need be.
        labels: what was searched for, and by which score, if it was something else.

    Returns:
        The path.

    Raises:
        ValueError: if the chosen learning rate has no score.
    """
    if scores.get(chosen) is None:
        raise ValueError(f"`chosen` must be a learning rate with a score; got {chosen!r} of {dict(scores)!r}.")
    figure = new_figure(5.2, 3.7)
    axes = figure.subplots()
    points = sorted((rate, 100 * score) for rate, score in scores.items() if score is not None)
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o")
    label = f"chosen: {chosen:.4g} ({100 * scores[chosen]:.2f} %)"
    axes.plot([chosen], [100 * scores[chosen]], color=ORANGE, marker="o", markersize=9, linestyle="", label=label)
    for rate in (rate for rate, score in scores.items() if score is None):
        axes.axvline(rate, color=GREY, linestyle=":", label=f"diverged: {rate:g}")
    axes.set_xscale("log")
    if len(scores) <= MAX_TICKS:
        axes.set_xticks(sorted(scores), [f"{rate:g}" for rate in sorted(scores)])
    axes.minorticks_off()
    axes.set_xlabel(labels[0])
    axes.set_ylabel(f"{labels[1]}, %")
    axes.set_title("Search on held-out training images", loc="left", fontweight="bold", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
