"""Pictures of how well single classes, and numbers, are predicted."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .canvas import BLUE, GREY, ORANGE, fit_text, new_figure, plain_text, save_figure


MAX_BARS = 30
MAX_PANELS = 6


def draw_average_precision(per_class: dict[str, float | None], shares: Sequence[float], path: str | Path) -> Path:
    """Draw the average precision of every class as a bar, best first, beside what guessing would score.

    Up to 30 classes are all shown; of more, the 15 best and the 15 worst.

    Args:
        per_class: name -> average precision in 0..1, None for a class without a positive image.
        shares: share of the images that have each class, in the same order; this is the average precision of a guess.
        path: the PNG file to write; its folder is made if need be.

    Returns:
        The path.

    Raises:
        ValueError: if the lengths differ, or no class has a value.
    """
    bars = [
        (name, value, share)
        for (name, value), share in zip(per_class.items(), shares, strict=True)
        if value is not None
    ]
    if not bars:
        raise ValueError("`per_class` must hold at least one average precision; got none. Check the evaluation set.")
    return _draw_bars(bars, len(per_class), ("average precision", "guessing (share of the images)"), path)


def draw_class_accuracy(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> Path:
    """Draw the share of every class's images that is classified right as a bar, best first.

    A mark beside it is the share of the images taken for the class that are of it. Up to 30 classes are all shown; of
    more, the 15 best and the 15 worst.

    Args:
        confusion: (classes, classes) counts; the row is the true class.
        class_names: one per class.
        path: the PNG file to write; its folder is made if need be.

    Returns:
        The path.

    Raises:
        ValueError: if the names do not fit the matrix, or it holds no images.
    """
    confusion = np.asarray(confusion)
    if confusion.shape != (len(class_names), len(class_names)) or not confusion.sum():
        raise ValueError(
            f"`confusion` must be square with one name per class and at least one image; got the shape {confusion.shape}, "
            f"{len(class_names)} names and {confusion.sum()} images."
        )
    right, images, answers = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    bars = [
        (name, right[i] / images[i], right[i] / answers[i] if answers[i] else math.nan)
        for i, name in enumerate(class_names)
        if images[i]
    ]
    return _draw_bars(bars, len(class_names), ("accuracy", "right among those taken for the class"), path)


def _draw_bars(
    known: list[tuple[str, float, float]], num_classes: int, meanings: tuple[str, str], path: str | Path
) -> Path:
    """Bars of (name, value, mark), both 0..1; `meanings` are what values and marks are."""
    known = sorted(known, key=lambda bar: -bar[1])
    shown = known if len(known) <= MAX_BARS else known[: MAX_BARS // 2] + known[-MAX_BARS // 2 :]
    names = [fit_text(name, 2.2, 9) for name, *_ in shown]
    values, marks = (100 * np.array([bar[column] for bar in shown]) for column in (1, 2))

    figure = new_figure(7.5, 0.26 * len(shown) + 1.5)
    axes = figure.subplots()
    rows = np.arange(len(shown))
    axes.barh(rows, values, color=BLUE, height=0.7)
    axes.vlines(marks, rows - 0.42, rows + 0.42, color=ORANGE, linewidth=2, label=meanings[1])
    for row, value, mark in zip(rows, values, marks, strict=True):
        place = max(value, mark) if mark < value + 7 else value  # behind the bar, and behind a mark that is near
        axes.text(place + 1, row, f"{value:.1f}", va="center", fontsize=8, color=GREY)
    axes.set_yticks(rows, names, fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 107)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"{meanings[0]}, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    mean = 100 * float(np.mean([value for _, value, _ in known]))
    title = f"{meanings[0].capitalize()} by class, {mean:.1f} % in the mean"
    if len(known) < num_classes:
        title += f" of the {len(known)} of {num_classes} classes that occur"
    if len(shown) < len(known):
        axes.axhline(MAX_BARS // 2 - 0.5, color=GREY, linestyle=":", linewidth=1)
        title += f"\nThe {MAX_BARS // 2} best and the {MAX_BARS // 2} worst of {len(known)} classes"
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def draw_scatter(predictions, targets, per_output: dict[str, dict], path: str | Path) -> Path:
    """Draw predicted against true numbers, one panel for each of the first 6 outputs.

    Args:
        predictions: (rows, outputs) numbers.
        targets: (rows, outputs) numbers.
        per_output: name -> `rmse` and `r2` (None where it is undefined), in the order of the outputs.
        path: the PNG file to write; its folder is made if need be.

    Returns:
        The path.

    Raises:
        ValueError: if the shapes do not fit, or there are no rows.
    """
    predictions, targets = np.asarray(predictions, dtype=float), np.asarray(targets, dtype=float)
    if predictions.shape != targets.shape or predictions.shape[1:] != (len(per_output),) or not len(targets):
        raise ValueError(
            f"`predictions` and `targets` must be (rows, {len(per_output)}), at least one row; got {predictions.shape} "
            f"and {targets.shape}."
        )
    shown = list(per_output.items())[:MAX_PANELS]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(max(4.6, 3.4 * columns), 3.5 * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for k, (axes, (name, measures)) in enumerate(zip(panels, shown, strict=False)):
        _draw_panel(axes, predictions[:, k], targets[:, k])
        r2 = "" if measures["r2"] is None else f", R² {measures['r2']:.3f}"
        title = f"{fit_text(name, 3.0, 10)}\n" + plain_text(f"RMSE {measures['rmse']:.4g}{r2}")
        axes.set_title(title, loc="left", fontsize=10)
    title = f"Predicted and true values of {len(targets):,} images"
    if len(shown) < len(per_output):
        title += f", the first {len(shown)} of {len(per_output)} outputs"
    title += "\non the line they are equal"
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def _draw_panel(axes, predictions: np.ndarray, targets: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    finite = np.concatenate([predictions[np.isfinite(predictions)], targets[np.isfinite(targets)]])
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=ORANGE, linewidth=1)
    size, opacity = (16, 0.6) if len(targets) <= 500 else (5, 0.25)
    axes.scatter(targets, predictions, s=size, color=BLUE, alpha=opacity, linewidths=0)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
