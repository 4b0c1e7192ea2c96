"""Writes what a run of a suite found: JSON, CSV, a Markdown table and the bar chart of CLIP's Figure 5."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..cards.redact import redact
from ..cards.suite_figure import draw_deltas
from ..cards.suite_table import TableRow, suite_csv, suite_markdown
from .suite_models import name_models
from .suite_runner import DONE, SuiteRun, write_json, write_text
from .suites import Suite, SuiteRow


def write_report(
    directory: str | os.PathLike,
    suite: Suite,
    rows: Sequence[SuiteRow],
    run: SuiteRun,
    models: Sequence[str] = (),
    baseline: str | None = None,
) -> list[Path]:
    """Write results.json, results.csv, results.md and, with a baseline, a chart for every model that has zero-shot scores.

    Private paths are taken out of what is written.

    Args:
        directory: made if need be.
        suite: the rows' suite.
        rows: that were run, in the suite's order.
        run: what was found.
        models: that were run, as they were given.
        baseline: the one of them whose linear probes zero-shot scores are compared with.

    Returns:
        The files.
    """
    directory, results = Path(directory), redact(run.results)
    absent = redact({**run.missing, **run.failures})
    table = [TableRow(row.name, row.title, row.group, row.few_shot) for row in rows]
    files = [directory / name for name in ("results.json", "results.csv", "results.md")]
    content = {
        "suite": suite.name,
        "source": suite.source,
        "results": results,
        "not_given": redact(run.missing),
        "failed": redact(run.failures),
    }
    write_json(files[0], content)
    write_text(files[1], suite_csv(results))
    write_text(files[2], suite_markdown(suite.title, table, results, absent, suite.score == "mean"))
    if baseline is not None:
        baseline = name_models(models)[list(models).index(baseline)]
        for number, (model, deltas) in enumerate(deltas_to(baseline, rows, results).items(), 1):
            chart = directory / ("zero_shot_deltas.png" if number == 1 else f"zero_shot_deltas_{number}.png")
            files.append(draw_deltas(deltas, chart, model, baseline))
    return files


def deltas_to(baseline: str, rows: Sequence[SuiteRow], results: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Zero-shot scores less the linear probe's on the features of a baseline, by model and title of the data set."""
    scores = {
        (result["model"], result["task"], result["dataset"]): result["score"]
        for result in results
        if result["status"] == DONE
    }
    deltas: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(result["model"] for result in results):
        for row in rows:
            zero_shot = scores.get((model, "zero_shot", row.name))
            probe = scores.get((baseline, "linear_probe", row.name))
            if zero_shot is not None and probe is not None:
                deltas.setdefault(model, {})[row.title] = zero_shot - probe
    return deltas
