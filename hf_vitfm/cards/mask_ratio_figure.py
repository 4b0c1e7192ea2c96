"""The picture of a search for a masking ratio: accuracy after pre-training at each (MAE, Fig. 5)."""

from collections.abc import Mapping
from pathlib import Path

from .canvas import BLUE, GREY, ORANGE, new_figure, save_figure


_STYLES = ("--", ":", "-.")


def draw_mask_ratios(
    fine_tuned: Mapping[float, float],
    probed: Mapping[float, float],
    scratch: Mapping[str, float],
    path: str | Path,
) -> Path:
    """Draw two panels over the masking ratio: fine-tuned, with models from scratch as lines, and linear probes.

    Args:
        fine_tuned: top-1 accuracy (0..1) after fine-tuning, by masking ratio (0..1).
        probed: the same of linear probes.
        scratch: accuracies without pre-training, by the name of their recipe.
        path: the PNG file to write; its folder is made if need be.

    Returns:
        The path.

    Raises:
        ValueError: if a panel has no accuracies.
    """
    if not fine_tuned or not probed:
        raise ValueError("Both panels need accuracies; got none of `fine_tuned` or of `probed`.")
    figure = new_figure(5.6, 6.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, scores, colour, title in (
        (upper, fine_tuned, BLUE, "Fine-tuned"),
        (lower, probed, ORANGE, "Linear probe"),
    ):
        points = sorted((100 * ratio, 100 * score) for ratio, score in scores.items())
        axes.plot(*zip(*points, strict=True), color=colour, marker="o")
        for ratio, score in points:
            axes.annotate(f"{score:.1f}", (ratio, score), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
        axes.set_ylabel("top-1 accuracy, %")
        axes.margins(y=0.18)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for style, (name, score) in zip(_STYLES, scratch.items(), strict=False):
        upper.axhline(100 * score, color=GREY, linestyle=style, label=f"from scratch, {name}: {100 * score:.1f}")
    if scratch:
        upper.legend(frameon=False, fontsize=8)
    lower.set_xlabel("masked patches in pre-training, %")
    lower.set_xticks([100 * ratio for ratio in sorted(probed)], [f"{100 * ratio:g}" for ratio in sorted(probed)])
    return save_figure(figure, path)
