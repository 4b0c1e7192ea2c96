"""Writes what a comparison of models found: JSON, CSV, a Markdown table and the picture; and the table of a terminal."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cards.compare_figure import ComparedModel as DrawnModel
from ..cards.compare_figure import draw_comparison
from ..cards.markdown import as_table, as_text
from ..cards.redact import redact
from ..version import __version__
from .compare import BEST, METHOD, ComparedModel, Comparison, Score
from .compare_tasks import TASKS
from .suite_runner import write_json, write_text


NAMED = 10  # skipped images whose names are shown
_SCORE_FIELDS = ("accuracy", "low", "high", "difference", "difference_low", "difference_high", "standing")


def write_comparison(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write compare.json, compare.csv, compare.md and compare.png.

    Private paths are taken out of what is written.

    Args:
        comparison: what was found.
        directory: made if need be.

    Returns:
        The files.
    """
    files = [Path(directory) / f"compare.{suffix}" for suffix in ("json", "csv", "md", "png")]
    write_json(files[0], redact(comparison_json(comparison)))
    write_text(files[1], comparison_csv(comparison))
    write_text(files[2], comparison_markdown(comparison))
    draw(comparison, files[3])
    return files


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    data = comparison.data
    return {
        "version": __version__,
        "data": {
            "source": data.source,
            "split": data.split,
            "rows": {part: len(rows) for part, rows in data.parts.items()},
            "classes": list(data.names),
            "skipped": comparison.skipped,
            "classes_without_training_images": comparison.unlearnt,
            "test_images_repeated_in_training": comparison.repeated,
        },
        "method": METHOD,
        "prompts": {"names": list(comparison.prompts.names), "source": comparison.prompts.source},
        "by": comparison.by,
        "winner": comparison.winner.name,
        "not_distinguishable_from_winner": [model.name for model in comparison.rivals],
        "models": [asdict(model) for model in comparison.models],
        "failed": comparison.failures,
    }


def comparison_csv(comparison: Comparison) -> str:
    """A row for each model, those that failed last; shares in 0..1, memory in bytes."""
    tasks = list(dict.fromkeys(task for model in comparison.models for task in model.scores))
    costs = ("parameters", "flops", "images_per_second", "batch_size", "device", "peak_memory")
    header = ["model", *(f"{task}_{name}" for task in tasks for name in _SCORE_FIELDS), *costs, "image_size", "error"]
    output = io.StringIO()
    writer = csv.DictWriter(output, header, restval="", lineterminator="\n")
    writer.writeheader()
    for model in comparison.models:
        row: dict[str, Any] = {"model": model.name, "image_size": "x".join(map(str, model.image_size))}
        row |= {
            f"{task}_{name}": getattr(score, name) for task, score in model.scores.items() for name in _SCORE_FIELDS
        }
        row |= {name: getattr(model.cost, name) for name in costs}
        writer.writerow(row)
    for name, reason in redact(comparison.failures).items():
        writer.writerow({"model": name, "error": reason})
    return output.getvalue()


def comparison_markdown(comparison: Comparison) -> str:
    """The table with what has to be known to read it."""
    by = comparison.by
    header = (
        "model",
        f"{_title(comparison, by)}",
        "difference to the best",
        *(_title(comparison, task) for task in _other_tasks(comparison)),
        "images/s",
        "parameters",
        "GFLOPs",
        "peak memory",
    )
    rows = [
        (
            f"**{as_text(model.name)}**" if model is comparison.winner else as_text(model.name),
            _interval(model.scores.get(by)),
            _difference(model.scores.get(by)),
            *(_interval(model.scores.get(task)) for task in _other_tasks(comparison)),
            *_cost(model),
        )
        for model in comparison.models
    ]
    parts = [
        f"# {len(comparison.models)} models on {as_text(redact(comparison.data.source))}",
        as_table(header, rows),
        "\n".join(f"- {as_text(redact(line))}" for line in comparison_notes(comparison)),
    ]
    return "\n\n".join(parts) + "\n"


def comparison_table(comparison: Comparison) -> str:
    """The table for a terminal."""
    by, others = comparison.by, _other_tasks(comparison)
    header = ("model", _title(comparison, by), "to the best", *(_title(comparison, task) for task in others))
    header = (*header, "images/s", "params", "GFLOPs", "memory")
    rows = [
        (
            model.name,
            _interval(model.scores.get(by)),
            _difference(model.scores.get(by)),
            *(_interval(model.scores.get(task)) for task in others),
            *_cost(model),
        )
        for model in comparison.models
    ]
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in ([*zip(line, widths, strict=True)] for line in (header, *rows))
    )


def comparison_notes(comparison: Comparison) -> list[str]:
    """What has to be known beside the numbers, in sentences."""
    data, winner = comparison.data, comparison.winner
    sizes = ", ".join(f"{len(rows):,} {part}" for part, rows in data.parts.items())
    notes = [f"Best by {TASKS[comparison.by]}: {winner.name}. {_rivals(comparison)}"]
    notes.append(f"Images of {data.source}: {sizes}; {len(data.names)} classes; {data.split}.")
    notes.append(f"{METHOD}. Differences are paired: both models meet the same images.")
    notes.append(
        f"Images per second: the image encoder's forward pass alone, {_measured_on(comparison.models)}; parameters and "
        "operations (a multiply-add is two) are the image encoder's; peak memory is what loading the model and one such "
        "pass added, with what libraries take once for the first model."
    )
    if any("zero_shot" in model.scores for model in comparison.models):
        templates = ", ".join(map(repr, comparison.prompts.templates[:3]))
        more = f" and {len(comparison.prompts.templates) - 3} more" if len(comparison.prompts.templates) > 3 else ""
        notes.append(f"Zero-shot prompts: {templates}{more}; {comparison.prompts.source}.")
    for part, names in comparison.skipped.items():
        more = ", ..." if len(names) > NAMED else ""
        notes.append(f"Unreadable images left out of {part}, {len(names)}: {', '.join(names[:NAMED])}{more}")
    if comparison.repeated:
        notes.append(
            f"{comparison.repeated:,} of {len(data.test):,} test images are among those to learn from too, so the accuracies "
            "flatter: take the repeated ones out."
        )
    if comparison.unlearnt:
        notes.append(f"No image to learn from, so always wrong but by zero-shot: {', '.join(comparison.unlearnt)}")
    notes += [f"{name} failed: {reason}" for name, reason in comparison.failures.items()]
    return notes


def draw(comparison: Comparison, path: str | Path) -> Path:
    """Draw accuracy against images per second; models without the score that decides are left out."""
    by = comparison.by
    models = [
        DrawnModel(model.name, score.accuracy, score.low, score.high, model.cost.images_per_second, score.standing)
        for model in comparison.models
        if (score := model.scores.get(by)) is not None
    ]
    title = f"{_title(comparison, by)} on {redact(comparison.data.source)}, {len(comparison.data.test):,} test images"
    label = f"images per second of the image encoder ({_measured_on(comparison.models)})"
    half = METHOD.index("of few-shot")
    note = f"{METHOD[:half].rstrip()}\n{METHOD[half:]}"
    return draw_comparison(models, path, title=title[:1].upper() + title[1:], speed_label=label, note=note)


def _other_tasks(comparison: Comparison) -> list[str]:
    return [
        task for task in TASKS if task != comparison.by and any(task in model.scores for model in comparison.models)
    ]


def _title(comparison: Comparison, task: str) -> str:
    """A task's name, with the number of shots of the few-shot score that stands for it."""
    score = next(model.scores[task] for model in comparison.models if task in model.scores)
    return f"{TASKS[task]}, {score.settings['shots']} a class" if task == "few_shot" else TASKS[task]


def _interval(score: Score | None) -> str:
    if score is None:
        return "-"
    return f"{100 * score.accuracy:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _difference(score: Score | None) -> str:
    if score is None:
        return "-"
    if score.standing == BEST:
        return "best"
    ends = f"[{100 * score.difference_low:+.1f}, {100 * score.difference_high:+.1f}]"
    return f"{100 * score.difference:+.1f} {ends}" + (" not distinguishable" if score.standing == "close" else "")


def _cost(model: ComparedModel) -> tuple[str, str, str, str]:
    cost = model.cost
    memory = "not measured" if cost.peak_memory is None else f"{cost.peak_memory / 2**20:,.0f} MiB"
    return (
        f"{cost.images_per_second:,.3g}" if cost.images_per_second < 1000 else f"{cost.images_per_second:,.0f}",
        f"{cost.parameters / 1e6:.3g} M",
        f"{cost.flops / 1e9:.3g}",
        memory,
    )


def _measured_on(models: Sequence[ComparedModel]) -> str:
    ways = dict.fromkeys(f"{model.cost.device}, batch of {model.cost.batch_size}" for model in models)
    return "; ".join(ways)


def _rivals(comparison: Comparison) -> str:
    if not comparison.rivals:
        return (
            "All others are below it: the intervals of their differences leave out 0."
            if len(comparison.models) > 1
            else ""
        )
    speed = comparison.winner.cost.images_per_second
    names = ", ".join(
        f"{model.name} ({model.cost.images_per_second / speed:.2g} x its speed)" for model in comparison.rivals
    )
    return f"Not distinguishable from it on these images: {names}."
