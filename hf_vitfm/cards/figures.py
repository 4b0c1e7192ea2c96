"""The three pictures of a finished image-classification run: learning curves, confusion matrix, examples.

`target_figures` has those of several labels and of numbers.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    fit_text,
    new_figure,
    plain_text,
    save_figure,
    text_width,
    whole_percent,
)


MAX_LABELLED_CLASSES = 25
MAX_CONFUSED_CLASSES = 20
TILE_PIXELS = 256
ROUND_STEPS = [1, 2, 5, 10]

# Metric: name and colour in the panel, per cent or not.
SCORES = {
    "top1": ("top-1", BLUE, True),
    "top5": ("top-5", GREEN, True),
    "mean_per_class": ("mean per class", ORANGE, True),
    "accuracy": ("accuracy", PINK, True),
    "knn_top1": ("k-NN top-1", GREEN, True),
    "image_to_text_recall@1": ("R@1, image to text", BLUE, True),
    "image_to_text_recall@10": ("R@10, image to text", ORANGE, True),
    "text_to_image_recall@1": ("R@1, text to image", GREEN, True),
    "zero_shot_top1": ("zero-shot top-1", PINK, True),
    "mean_average_precision": ("mean average precision", BLUE, True),
    "micro_f1": ("F1, micro", GREEN, True),
    "macro_f1": ("F1, macro", ORANGE, True),
    "r2": ("R²", BLUE, False),
    "pearson": ("Pearson correlation", GREEN, False),
}
LEGEND_LINE = 0.15  # inches
LINE_STYLES = ["-", "--", ":", "-."]


def has_curves(log_history: Sequence[dict]) -> bool:
    """Whether there is anything for `draw_curves` to draw: a run of fewer steps than `logging_steps` has logged nothing."""
    return bool(_series(log_history, "loss")[0].size or any(_evaluation_series(log_history)))


def draw_curves(log_history: Sequence[dict], path: str | Path, *, loss_unit: str | None = None) -> Path:
    """Draw loss, scores and learning rate over the steps of a run.

    Args:
        log_history: the `log_history` of a Trainer's state. Entries with `loss` are training steps; `eval_loss` and the
            metrics in `SCORES` (`eval_top1`, ...) are evaluations, which may carry the name of one of several
            evaluation sets, as in `eval_twitter_top1`. Panels without data are left out.
        path: the PNG file to write; its folder is made if need be.
        loss_unit: of the axis of the loss; by default told from the metrics.

    Returns:
        The path.

    Raises:
        ValueError: if no entry holds a loss or a score.
    """
    train_loss = _series(log_history, "loss")
    learning_rate = _series(log_history, "learning_rate")
    losses, scores = _evaluation_series(log_history)
    unit = loss_unit or _loss_unit(log_history)
    panels = []
    if train_loss[0].size or losses:
        panels.append(lambda axes: _draw_loss(axes, train_loss, losses, unit))
    if scores:
        panels.append(lambda axes: _draw_scores(axes, scores))
    if not panels:
        raise ValueError(
            f"`log_history` has {len(log_history)} entries, none with `loss`, `eval_loss` or a score such as "
            "`eval_top1`. Pass `trainer.state.log_history` of a run that logged at least one step."
        )
    if learning_rate[0].size:
        panels.append(lambda axes: _draw_learning_rate(axes, learning_rate))

    legend_lines = max(len(losses) + bool(train_loss[0].size), len(scores))
    figure = new_figure(4.4 * len(panels), 3.5 + LEGEND_LINE * legend_lines)
    last_step = max(entry.get("step", 0) for entry in log_history)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
        # Legends stand between title and axes, where no line can run through them.
        axes.set_title(axes.get_title("left"), loc="left", fontweight="bold", pad=8 + 72 * LEGEND_LINE * legend_lines)
        _finish_curve(axes, last_step, _steps_per_epoch(log_history))
    return save_figure(figure, path)


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> Path:
    """Draw a confusion matrix in percent of the images of each true class.

    Up to 25 classes are all shown. Of more, the 20 that are most often confused with each other are, and the title says
    so; a last column then holds what went to the classes left out.

    Args:
        confusion: (classes, classes) counts; the row is the true class.
        class_names: one per class.
        path: the PNG file to write.

    Returns:
        The path.

    Raises:
        ValueError: if the matrix is not square, has negative or no counts, or the names do not fit.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or len(class_names) != len(confusion):
        raise ValueError(
            f"`confusion` must be square with one name per class; got the shape {confusion.shape} and "
            f"{len(class_names)} names. Pass what `confusion_matrix` returns and the model's class names."
        )
    total = confusion.sum()
    if total <= 0 or confusion.min() < 0:
        raise ValueError(
            f"`confusion` must hold counts, at least one above 0; got a sum of {total} and a minimum of "
            f"{confusion.min() if confusion.size else 'nothing'}. Pass what `confusion_matrix` returns."
        )

    headline = f"{100 * confusion.trace() / total:.1f} % of {total:,} images right"
    names = list(class_names)
    if len(names) > MAX_LABELLED_CLASSES:
        shown = _most_confused(confusion, MAX_CONFUSED_CLASSES)
        columns = np.column_stack([confusion[:, shown], confusion.sum(1) - confusion[:, shown].sum(1)])[shown]
        title = f"The {len(shown)} of {len(names):,} classes most often confused"
        names = [names[index] for index in shown]
        _draw_cells(columns, confusion.sum(1)[shown], names, [*names, "(all others)"], (title, headline), path)
    else:
        title = "Confusion matrix"
        _draw_cells(confusion, confusion.sum(1), names, names, (title, headline), path)
    return Path(path)


def draw_examples(
    images: Sequence,
    labels: Sequence[int],
    predictions: Sequence[int],
    probabilities: Sequence[float],
    class_names: Sequence[str],
    path: str | Path,
    count: int = 8,
) -> Path:
    """Draw right predictions, of as many classes as possible, and the most confident wrong ones.

    Pass the whole evaluation set: the examples are chosen here, and the headings count its right and wrong rows.

    Args:
        images: PIL images, or uint8 arrays or tensors, grey or colour, channels first or last, of any size; or rows
            (dictionaries) with such an `image`. Only the ones that are drawn are read.
        labels: true class indices.
        predictions: predicted class indices.
        probabilities: of the predicted classes, 0..1.
        class_names: one per class.
        path: the PNG file to write.
        count: pictures in each of the two groups.

    Returns:
        The path.

    Raises:
        ValueError: if the lengths differ, are 0, or `count` is below 1.
        TypeError: if an image is none of the kinds named above.
    """
    labels, predictions, probabilities = (
        np.asarray(list(map(kind, values)))
        for kind, values in ((int, labels), (int, predictions), (float, probabilities))
    )
    lengths = (len(images), len(labels), len(predictions), len(probabilities))
    if len(set(lengths)) != 1 or lengths[0] == 0 or count < 1:
        raise ValueError(
            "`images`, `labels`, `predictions` and `probabilities` must be of one length, at least 1, and `count` at "
            f"least 1; got the lengths {lengths} and `count` {count}. Pass one value per image."
        )
    right, wrong = _choose_examples(labels, predictions, probabilities, count)
    total, num_wrong = len(labels), int((labels != predictions).sum())
    groups = [
        (right, f"Right predictions ({total - num_wrong:,} of {total:,})", BLUE),
        (wrong, f"Most confident mistakes ({num_wrong:,} of {total:,})", ORANGE),
    ]

    columns = min(4, max(2, len(right), len(wrong)))
    heights = [2.65 * math.ceil(len(chosen) / columns) + 0.5 if chosen else 0.8 for chosen, _, _ in groups]
    figure = new_figure(2.3 * columns, sum(heights))
    for part, group in zip(figure.subfigures(2, 1, height_ratios=heights), groups, strict=True):
        captions = {
            index: fit_text(class_names[predictions[index]], 2.1, 9, f" ({whole_percent(probabilities[index])} %)")
            + "\n"
            + fit_text(class_names[labels[index]], 2.1, 9, prefix="true: ")
            for index in group[0]
        }
        _draw_tiles(part, images, captions, columns, *group[1:])
    return save_figure(figure, path)


# Curves


def _series(log_history: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["step"], float(entry[key])) for entry in log_history if key in entry and "step" in entry]
    return (
        tuple(np.array(values, dtype=float) for values in zip(*points, strict=True)) if points else (np.array([]),) * 2
    )


def _evaluation_series(log_history: Sequence[dict]) -> tuple[dict, dict]:
    """Series per evaluation set: losses by set name, scores by (metric, set name); "" is the only set."""
    losses, scores = {}, {}
    for key in dict.fromkeys(key for entry in log_history for key in entry):
        match = re.fullmatch(rf"eval_(?:(.+?)_)??(loss|{'|'.join(SCORES)})", key)
        if match is None:
            continue
        # The shortest name of a set is taken: knn_top1 is a metric, and not top1 of a set "knn".
        name, metric = match[1] or "", match[2]
        if metric == "loss":
            losses[name] = _series(log_history, key)
        else:
            scores[metric, name] = _series(log_history, key)
    return losses, scores


def _loss_unit(log_history: Sequence[dict]) -> str:
    keys = {key for entry in log_history for key in entry if key.startswith("eval_")}
    if any(key.endswith("_rmse") for key in keys):
        return "mean squared error"
    is_multi_label = any(key.endswith("_mean_average_precision") for key in keys)
    return "nats per image and class" if is_multi_label else "nats per image"


def _steps_per_epoch(log_history: Sequence[dict]) -> float | None:
    epochs = [(entry["epoch"], entry["step"]) for entry in log_history if entry.get("epoch") and entry.get("step")]
    if not epochs:
        return None
    epoch, step = max(epochs)
    return step / epoch


def _draw_loss(axes, train_loss, losses, unit: str):
    steps, values = train_loss
    if len(steps) > 60:
        window = max(5, len(steps) // 40)
        kernel = np.ones(window) / window
        axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
        middle = slice((window - 1) // 2, (window - 1) // 2 + len(steps) - window + 1)
        axes.plot(steps[middle], np.convolve(values, kernel, "valid"), color=BLUE, label="training, running mean")
    elif len(steps):
        axes.plot(steps, values, color=BLUE, label="training", **_markers(steps))
    for (name, (steps, values)), style in zip(losses.items(), LINE_STYLES * len(losses), strict=False):
        label = f"evaluation{_set_name(name)}"
        axes.plot(steps, values, color=ORANGE, linestyle=style, label=label, **_markers(steps))
    if not any(np.isfinite(values).any() for _, values in (train_loss, *losses.values())):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_title("Loss", loc="left")
    axes.set_ylabel(unit)
    _add_legend(axes)


def _draw_scores(axes, scores):
    sets = list(dict.fromkeys(name for _, name in scores))
    is_percent = all(SCORES[metric][2] for metric, _ in scores)
    for (metric, name), (steps, values) in scores.items():
        pretty, colour, _ = SCORES[metric]
        factor, digits, unit = (100, 1, " %") if is_percent else (1, 3, "")
        label = f"{pretty}{_set_name(name)}: {factor * values[-1]:.{digits}f}{unit}"
        if values.max() > values[-1]:
            label += f" (best {factor * values.max():.{digits}f}{unit})"
        style = LINE_STYLES[sets.index(name) % len(LINE_STYLES)]
        axes.plot(steps, factor * values, color=colour, linestyle=style, label=label, **_markers(steps))
    shown = {metric for metric, _ in scores}
    title = "Accuracy on the evaluation set" if {"top1", "accuracy"} & shown else "On the evaluation set"
    if shown == {"knn_top1"}:
        title = "Accuracy of nearest neighbours"  # among labelled images, which need not be the evaluation set
    axes.set_title(title, loc="left")
    axes.set_ylabel("%" if is_percent else "")
    _add_legend(axes)


def _add_legend(axes):
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3, "borderpad": 0, "labelspacing": 0.3}
    axes.legend(frameon=False, fontsize=8, **place)


def _draw_learning_rate(axes, learning_rate):
    axes.plot(*learning_rate, color=GREEN, **_markers(learning_rate[0]))
    axes.set_title("Learning rate", loc="left")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:.3g}")


def _finish_curve(axes, last_step, steps_per_epoch):
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    margin = 0.02 * max(last_step, 1)
    axes.set_xlim(-margin, max(last_step, 1) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6 if last_step < 10_000 else 4, integer=True, steps=ROUND_STEPS))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if steps_per_epoch:
        scale = (lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch)
        epochs = axes.secondary_xaxis(-0.22, functions=scale)
        epochs.set_xlabel("epoch", color=GREY)
        epochs.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
        epochs.xaxis.set_major_formatter("{x:.3g}")
        epochs.tick_params(colors=GREY, length=0)
        epochs.spines[:].set_visible(False)


def _markers(steps) -> dict:
    return {"marker": "o", "markersize": 3.5} if len(steps) <= 30 else {}


def _set_name(name: str) -> str:
    return f" {plain_text(name)}" if name else ""


# Confusion


def _most_confused(confusion: np.ndarray, count: int) -> list[int]:
    """Classes of the pairs with most mistakes between them, both ways added; then the largest; in index order."""
    mistakes = np.triu(confusion + confusion.T, 1)
    # More than `count` classes are never needed, and each pair but the repeated ones brings at least one.
    order = np.argsort(-mistakes, axis=None, kind="stable")[: count**2]
    chosen = {}
    for first, second in zip(*np.unravel_index(order, confusion.shape), strict=True):
        if mistakes[first, second] == 0 or len(chosen) >= count:
            break
        chosen.update(dict.fromkeys((int(first), int(second))))
    for index in np.argsort(-confusion.sum(1), kind="stable"):
        chosen.setdefault(int(index))
    return sorted(list(chosen)[:count])


def _draw_cells(counts, row_totals, row_names, column_names, titles, path):
    """Write the picture of (rows, columns) counts, whose diagonal is what was predicted right."""
    rows, columns = counts.shape
    cell = 0.95 if rows <= 4 else 0.56 if rows <= 12 else 0.42
    font_size = 11 if rows <= 4 else 9 if rows <= 12 else 7
    label_size = 10 if rows <= 12 else 8
    row_labels = [fit_text(name, 2.0, label_size) for name in row_names]
    column_labels = [fit_text(name, 2.0, label_size) for name in column_names]
    row_space, column_space = (
        max(text_width(label, label_size) for label in labels) for labels in (row_labels, column_labels)
    )
    figure = new_figure(max(4.6, cell * columns + row_space + 0.8), cell * rows + column_space + 1.3)

    axes = figure.subplots()
    with np.errstate(invalid="ignore"):
        percent = np.where(row_totals[:, None] > 0, 100 * counts / row_totals[:, None], np.nan)
    right = np.eye(rows, columns, dtype=bool)
    worst = np.nanmax(percent[~right], initial=10)
    axes.imshow(np.ma.array(percent, mask=~right | (counts == 0)), cmap="Blues", vmin=0, vmax=120)
    axes.imshow(np.ma.array(percent, mask=right | (counts == 0)), cmap="Oranges", vmin=0, vmax=1.3 * worst)
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = percent[row, column] > (70 if row == column else 0.85 * worst)
        colour = "white" if dark else "black"
        text = whole_percent(percent[row, column] / 100)
        axes.text(column, row, text, ha="center", va="center", fontsize=font_size, color=colour)
    for row in np.flatnonzero(row_totals == 0):
        axes.text(-0.4, row, "no images of this class", va="center", fontsize=label_size, color=GREY)

    rotation = 90 if column_space > 0.9 * cell else 0
    axes.set_xticks(range(columns), column_labels, rotation=rotation, fontsize=label_size)
    axes.set_yticks(range(rows), row_labels, fontsize=label_size)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#eeeeee", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.suptitle("\n".join((*titles, "cells: % of the images of the true class")), fontsize=10)
    return save_figure(figure, path)


# Examples


def _choose_examples(labels, predictions, probabilities, count: int) -> tuple[list[int], list[int]]:
    """Indices of right rows, one class after the other and again, and of wrong rows by falling probability."""
    by_class = {}
    for index in np.flatnonzero(labels == predictions):
        by_class.setdefault(int(labels[index]), []).append(int(index))
    turns = [(turn, label, index) for label, found in by_class.items() for turn, index in enumerate(found[:count])]
    right = [index for _, _, index in sorted(turns)][:count]
    wrong = np.flatnonzero(labels != predictions)
    order = np.argsort(-probabilities[wrong], kind="stable")
    return right, wrong[order][:count].tolist()


def _draw_tiles(part, images, captions: dict[int, str], columns: int, heading: str, colour: str):
    """Fill a subfigure with the images that have a caption."""
    part.suptitle(heading, x=0.02, ha="left", fontsize=12, fontweight="bold", color=colour)
    if not captions:
        part.text(0.5, 0.25, "none", ha="center", color=GREY)
        return
    tiles = part.subplots(math.ceil(len(captions) / columns), columns, squeeze=False).ravel()
    for axes in tiles:
        axes.set_axis_off()
    for axes, (index, caption) in zip(tiles, captions.items(), strict=False):
        draw_tile(axes, images[index], index)
        axes.set_title(caption, fontsize=9)


def draw_tile(axes, image, index: int) -> None:
    """Draw a picture as `draw_examples` takes them; `index` is its number in messages."""
    tile = _tile(image, index)
    axes.imshow(tile, interpolation="nearest", cmap="gray", vmin=0, vmax=255)
    _make_square(axes, *tile.shape[:2])


def _tile(image, index: int) -> np.ndarray:
    """(height, width) or (height, width, 3) uint8 of at most 256 pixels a side, transparent pixels made white."""
    from PIL import Image

    image = image["image"] if isinstance(image, dict) else image
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_pixels(image, index))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode.startswith("I"):  # 16 bits, which `convert` would cut off at 255
        pixels = np.asarray(image).astype(np.float64)
        image = Image.fromarray((pixels / (257 if pixels.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    image.thumbnail((TILE_PIXELS, TILE_PIXELS))
    return np.asarray(image)


def _make_square(axes, height: int, width: int):
    """Give every tile the same frame, with the picture in its middle."""
    side = max(height, width)
    axes.set_xlim((width - side) / 2 - 0.5, (width + side) / 2 - 0.5)
    axes.set_ylim((height + side) / 2 - 0.5, (height - side) / 2 - 0.5)


def _pixels(image, index: int) -> np.ndarray:
    """Array or tensor to (height, width) or (height, width, channels)."""
    is_tensor = hasattr(image, "detach")
    pixels = image.detach().cpu().numpy() if is_tensor else np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise TypeError(
            f"Image {index} must be a PIL image or a uint8 array or tensor of 2 or 3 dimensions; got "
            f"{type(image).__name__} of {pixels.dtype} with the shape {pixels.shape}. Pass the picture itself, before "
            "it is normalised."
        )
    if pixels.ndim == 2:
        return pixels
    first, last = pixels.shape[0] in (1, 3, 4), pixels.shape[2] in (1, 3, 4)
    if first and (is_tensor or not last):
        pixels = pixels.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    elif not last:
        raise TypeError(
            f"Image {index} must have 1, 3 or 4 channels, first or last; got the shape {pixels.shape}. "
            "Pass (channels, height, width) or (height, width, channels)."
        )
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
