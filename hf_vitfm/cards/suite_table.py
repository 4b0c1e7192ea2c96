"""The results of a suite as tables: Markdown in the order of the paper, and CSV with one line per result."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .markdown import as_table, as_text


TASK_TITLES = {
    "zero_shot": "Zero-shot",
    "classification": "The model's own classifier",
    "linear_probe": "Linear probe",
    "few_shot": "Few-shot",
    "knn": "k nearest neighbours",
}
_METRICS = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "map11": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1 and top-5",
}
_HEAD_COLUMNS = {
    "top1": "Top-1",
    "top5": "Top-5",
    "mean_per_class": "Mean per class",
    "real_top1": "ReaL",
    "calibration_error": "Calibration error",
}
_CSV_COLUMNS = (
    "suite",
    "dataset",
    "model",
    "task",
    "status",
    "metric",
    "score",
    "prompts",
    "tested",
    "notes",
    "reason",
)


@dataclass(frozen=True)
class TableRow:
    """A data set as a table shows it.

    Args:
        name: as in the results.
        title: as shown.
        group: part of the suite over which a mean is given; None: of no part.
        few_shot: counts in a further mean of the few-shot scores.
    """

    name: str
    title: str
    group: str | None = None
    few_shot: bool = False


def suite_markdown(
    title: str,
    rows: Sequence[TableRow],
    results: Sequence[Mapping],
    missing: Mapping[str, str],
    mean_is_score: bool = False,
) -> str:
    """Tables of a suite's results, one per task.

    Args:
        title: of the suite.
        rows: its data sets in the order of the paper.
        results: with `dataset`, `model`, `task`, `status` and, where done, `score` (0..1) and `metric`.
        missing: names of data sets or models without results, with the reason.
        mean_is_score: the mean over all data sets is the suite's score, so that one over some of them is not called so.

    Returns:
        Markdown.
    """
    parts = [f"# {as_text(title)}"]
    for task in TASK_TITLES:
        own = {(result["dataset"], result["model"]): result for result in results if result["task"] == task}
        models = list(dict.fromkeys(model for (_, model), result in own.items() if result["status"] == "done"))
        parts += [f"## {TASK_TITLES[task]}"] if own else []
        if task == "few_shot" and any(row.few_shot for row in rows):
            means = [("mean of those with 16 images a class", [row for row in rows if row.few_shot])]
        else:
            means = [
                (f"mean of {group}", [row for row in rows if row.group == group])
                for group in dict.fromkeys(row.group for row in rows if row.group)
            ]
        means.append(("score" if mean_is_score else "mean", list(rows)))
        parts += [_task_table(rows, models, own, means)] if models else []
        parts += [_head_table(rows, models, own)] if models and task == "classification" else []
        parts += ["\n".join(_reasons(own.values()))] if any(map(_reason_of, own.values())) else []
    notes = _notes(rows, results)
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    if missing:
        table = [(as_text(name), as_text(reason)) for name, reason in missing.items()]
        parts += ["## Not evaluated", as_table(("Name", "Reason"), table)]
    return "\n\n".join(parts) + "\n"


def suite_csv(results: Sequence[Mapping]) -> str:
    """CSV with a line for every result, in their order; scores are fractions in 0..1."""
    output = io.StringIO(newline="")
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for result in results:
        values = {
            **result,
            "prompts": result.get("prompts", {}).get("source", ""),
            "notes": "; ".join([*result.get("notes", ()), *result.get("assumptions", ())]),
        }
        writer.writerow([values.get(name, "") for name in _CSV_COLUMNS])
    return output.getvalue()


def _task_table(rows: Sequence[TableRow], models: list[str], own: Mapping, means: list[tuple[str, list]]) -> str:
    table, scores = [], {model: {} for model in models}
    for row in rows:
        found = {model: own[row.name, model] for model in models if (row.name, model) in own}
        if not found:
            continue
        metric = next((result["metric"] for result in found.values() if result["status"] == "done"), "")
        untested = "" if all(result.get("tested", True) for result in found.values()) else " (untested)"
        for model, result in found.items():
            if result["status"] == "done":
                scores[model][row.name] = result["score"]
        cells = [_percent(scores[model].get(row.name)) for model in models]
        table.append((as_text(row.title) + untested, _METRICS.get(metric, metric), *cells))
    table += [line for name, members in means for line in _mean(name, members, models, scores)]
    return as_table(("Data set", "Metric", *map(as_text, models)), table)


def _head_table(rows: Sequence[TableRow], models: list[str], own: Mapping) -> str:
    """What else is known of classifiers."""
    table = []
    for row in rows:
        for model in models:
            result = own.get((row.name, model), {})
            if result.get("status") == "done":
                found = result["metrics"]
                shares = [_percent(found.get(name)) for name in _HEAD_COLUMNS]
                table.append(
                    (as_text(row.title), as_text(model), *shares, f"{found['rows']:,}", f"{found['classes']:,}")
                )
    return as_table(("Data set", "Model", *_HEAD_COLUMNS.values(), "Images", "Classes"), table)


def _mean(name: str, members: list[TableRow], models: list[str], scores: Mapping) -> list[tuple]:
    """A line with the means over the data sets that every model has a score of; none over fewer than two."""
    shared = [row for row in members if all(row.name in scores[model] for model in models)]
    if len(shared) < 2:
        return []
    name = "mean" if name == "score" and len(shared) < len(members) else name
    means = [_percent(sum(scores[model][row.name] for row in shared) / len(shared)) for model in models]
    return [(f"**{name}, {len(shared)} of {len(members)}**", "", *means)]


def _reasons(results: Iterable[Mapping]) -> list[str]:
    """Why there is no score: one line for each model and reason, with the data sets."""
    places: dict[tuple, list[str]] = {}
    for result in filter(_reason_of, results):
        places.setdefault((result["model"], _reason_of(result)), []).append(result["dataset"])
    return [
        f"- {as_text(model)}: {as_text(reason)} ({as_text(', '.join(names))})"
        for (model, reason), names in places.items()
    ]


def _reason_of(result: Mapping) -> str | None:
    return None if result["status"] == "done" else f"{result['status']}, {result['reason']}"


def _notes(rows: Sequence[TableRow], results: Sequence[Mapping]) -> list[str]:
    lines = []
    for row in rows:
        own = [result for result in results if result["dataset"] == row.name]
        notes = list(dict.fromkeys(note for result in own for note in result.get("notes", ())))
        prompts = dict.fromkeys(
            f"prompts: {result['prompts']['source']}; templates: {result['prompts']['templates']}"
            for result in own
            if "prompts" in result
        )
        assumed: dict[str, list[str]] = {}
        for result in own:
            for assumption in result.get("assumptions", ()):
                assumed.setdefault(assumption, []).append(result["model"])
        assumptions = [f"{text} ({', '.join(dict.fromkeys(models))})" for text, models in assumed.items()]
        if notes or prompts or assumptions:
            lines.append(f"- {as_text(row.title)}: {as_text('; '.join([*notes, *prompts, *assumptions]))}")
    return lines


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"
