"""The picture of a comparison of models: accuracy against speed, with intervals (as the ViT paper's Fig. 5 has cost)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .canvas import BLUE, DOTS_PER_INCH, GREY, ORANGE, fit_text, new_figure, plain_text, save_figure


WIDTH, HEIGHT = 7.2, 5.2  # inches
NAME_INCHES, LINE_INCHES, FONT_SIZE = 2.6, 0.17, 8.5
STYLES = {
    "best": ("best", ORANGE, "D"),
    "close": ("not distinguishable from it", BLUE, "o"),
    "below": ("below it", GREY, "s"),
}
# Where a name may stand, from its point: to the right, left, above, below, then round about in growing circles.
_NEAR = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_GAPS = (0.08, 0.14, 0.2, 0.28, 0.36, 0.5, 0.7, 1.0, 1.4, 2.0)  # inches
_NEAR_GAPS = _GAPS[:6]  # a name farther away than this is not seen to be the point's
_LINE_FROM = 0.14  # a thin line leads to names farther away than this


@dataclass(frozen=True)
class ComparedModel:
    """One model in the picture.

    Args:
        name: of the model.
        accuracy: in 0..1.
        low: lower end of its interval.
        high: upper end.
        images_per_second: above 0.
        standing: a name of `STYLES`.
    """

    name: str
    accuracy: float
    low: float
    high: float
    images_per_second: float
    standing: str


def draw_comparison(
    models: Sequence[ComparedModel],
    path: str | Path,
    *,
    title: str,
    speed_label: str = "images per second",
    note: str | None = None,
) -> Path:
    """Draw one point for each model: speed on a logarithmic axis, accuracy with its interval as a bar.

    Names stand where they cover neither points, bars nor each other; where there is no such place near every point, all
    points are numbered from the best, and the names are in a list.

    Args:
        models: at least one.
        path: the PNG file to write; its folder is made if need be.
        title: above the picture.
        speed_label: of the axis of speeds: says what was timed, and on what.
        note: a few lines below the picture, such as how the intervals were made.

    Returns:
        The path.

    Raises:
        ValueError: if there are no models, or a speed is not above 0.
    """
    if not models:
        raise ValueError("`models` must hold at least one model to draw; got none.")
    slow = next((model for model in models if not model.images_per_second > 0), None)
    if slow is not None:
        raise ValueError(
            f"The speed of {slow.name} must be above 0 images per second; got {slow.images_per_second!r}."
        )
    ranked = sorted(models, key=lambda model: (list(STYLES).index(model.standing), -model.accuracy))
    names = [fit_text(model.name, NAME_INCHES, FONT_SIZE) for model in ranked]
    figure, axes = _panel(ranked, title, speed_label, note, ())
    if not _write_beside_points(figure, axes, ranked, names, _NEAR_GAPS):  # a crowd: numbers, and a list of them
        names = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
        figure, axes = _panel(ranked, title, speed_label, note, names)
        _write_beside_points(figure, axes, ranked, [str(number + 1) for number in range(len(ranked))], _GAPS)
    return save_figure(figure, path)


def _panel(
    models: Sequence[ComparedModel], title: str, speed_label: str, note: str | None, listed: Sequence[str]
) -> tuple[Any, Any]:
    """The picture without the names beside the points; `listed` are written in a column of their own, if any."""
    height = max(HEIGHT, 1.4 + LINE_INCHES * len(listed))
    figure = new_figure(WIDTH + (NAME_INCHES + 0.3 if listed else 0), height)
    if not listed:
        axes = figure.subplots()
    else:
        axes, column = figure.subplots(1, 2, width_ratios=[WIDTH, NAME_INCHES + 0.3])
        column.set_axis_off()
        for place, (text, model) in enumerate(zip(listed, models, strict=True)):
            high = 1 - place * LINE_INCHES / (height - 1.2)
            column.text(0, high, text, fontsize=FONT_SIZE, color=STYLES[model.standing][1], va="top")
    for standing, (label, colour, marker) in STYLES.items():
        group = [model for model in models if model.standing == standing]
        if group:
            _draw_points(axes, group, label if standing == "best" else f"{label} ({len(group)})", colour, marker)
    _finish(axes, models, speed_label)
    figure.suptitle(plain_text(title), x=0.02, ha="left", fontsize=11, fontweight="bold")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=FONT_SIZE, borderaxespad=0.2)
    if note:
        lines = "\n".join(plain_text(line) for line in note.splitlines())
        figure.supxlabel(lines, x=0.02, ha="left", fontsize=7.5, color=GREY)
    return figure, axes


def _draw_points(axes: Any, models: Sequence[ComparedModel], label: str, colour: str, marker: str) -> None:
    scores = [100 * model.accuracy for model in models]
    bars = [
        [max(0.0, 100 * (model.accuracy - model.low)) for model in models],
        [max(0.0, 100 * (model.high - model.accuracy)) for model in models],
    ]
    speeds = [model.images_per_second for model in models]
    style = {"fmt": marker, "color": colour, "markersize": 6, "elinewidth": 1.4, "capsize": 3}
    axes.errorbar(speeds, scores, bars, label=label, zorder=3.5 if label == STYLES["best"][0] else 3, **style)


def _finish(axes: Any, models: Sequence[ComparedModel], speed_label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    speeds = [model.images_per_second for model in models]
    spread = max(max(speeds) / min(speeds), 2.0) ** 0.25  # room for the names of the outermost
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / max(spread, 1.6), max(speeds) * max(spread, 1.6))
    low, high = min(model.low for model in models), max(model.high for model in models)
    margin = max(0.12 * (high - low), 0.005)
    axes.set_ylim(100 * (low - margin), 100 * (high + margin))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel(plain_text(speed_label))
    axes.set_ylabel("accuracy, %")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _write_beside_points(
    figure: Any, axes: Any, models: Sequence[ComparedModel], texts: Sequence[str], gaps: Sequence[float]
) -> bool:
    """Write one text beside each point; False if a text has no free place within `gaps` inches.

    All places are in pixels of the finished layout.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    points = [axes.transData.transform((model.images_per_second, 100 * model.accuracy)) for model in models]
    taken, are_free = [], True
    for model, (x, y) in zip(models, points, strict=True):
        low, high = (axes.transData.transform((1, 100 * end))[1] for end in (model.low, model.high))
        taken += [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7), Bbox.from_extents(x - 5, low - 2, x + 5, high + 2)]
    for model, text, point in zip(models, texts, points, strict=True):
        colour = STYLES[model.standing][1]
        label = axes.text(0, 0, text, fontsize=FONT_SIZE, color=colour, va="bottom", zorder=4)
        label.set_in_layout(False)
        size = label.get_window_extent(renderer)
        gap, place, is_free = _find_place(point, (size.width, size.height), frame, taken, gaps)
        are_free = are_free and is_free
        label.set_position(axes.transData.inverted().transform(place))
        taken.append(Bbox.from_bounds(*place, size.width, size.height))
        if gap >= _LINE_FROM:
            _lead(axes, point, taken[-1], colour)
    return are_free


def _find_place(
    point: Any, size: tuple[float, float], frame: Any, taken: Sequence, gaps: Sequence[float]
) -> tuple[float, tuple[float, float], bool]:
    """Where a text covers least, the nearest first: its gap in inches, its lower left corner, whether it covers nothing."""
    from matplotlib.transforms import Bbox

    width, height = size
    tried = []
    for gap in gaps:
        for right, up in _NEAR:
            x = point[0] + right * gap * DOTS_PER_INCH + (right - 1) / 2 * width
            y = point[1] + up * gap * DOTS_PER_INCH + (up - 1) / 2 * height
            box = Bbox.from_bounds(x, y, width, height)
            covered = sum(_shared_area(box, other) for other in taken)
            outside = width * height - _shared_area(box, frame)
            if covered + outside < 1:
                return gap, (x, y), True
            tried.append((covered + 4 * outside, gap, (x, y)))
    _, gap, place = min(tried)
    return gap, place, False


def _shared_area(one: Any, other: Any) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


def _lead(axes: Any, point: Any, box: Any, colour: str) -> None:
    """A thin line from a point to the nearest edge of its name."""
    nearest = (min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1))
    ends = axes.transData.inverted().transform([point, nearest])
    axes.plot(*ends.T, color=colour, linewidth=0.6, alpha=0.7, zorder=2)
