"""Runs models on the data sets of a suite, task by task, and goes on where an earlier run stopped.

Every result is a file of its own, written whole or not at all, under a key of everything that it depends on: weights,
preprocessing, images and labels, prompts, settings. A result whose key is already there is read, not computed.
"""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from ..cards.redact import redact
from ..version import __version__
from .feature_cache import precision_of
from .fingerprint import fingerprint_values
from .suite_data import HubUnreachable, SuiteData, Unavailable, needs_network, open_row
from .suite_models import load_suite_model, name_models
from .suite_prompts import find_class_names, pick
from .suite_tasks import (
    SETTINGS,
    TASKS,
    TEST_ONLY,
    Bench,
    FeatureOptions,
    Measured,
    NotApplicable,
    probe_pooling,
    reassessed_labels,
)
from .suites import Suite, SuiteRow, unknown_name


DONE, SKIPPED, FAILED = "done", "skipped", "failed"
_FORMAT = 1  # to be raised when the same key means other numbers


@dataclass(frozen=True)
class SuiteOptions:
    """How a suite is run.

    Args:
        tasks: of `TASKS`.
        data: paths of local copies, by the name of the data set.
        classnames, templates: files of prompts by the name of the data set; "" is for all.
        features: how features are computed.
        dtype: of the models' weights.
        device: to compute on.
        overwrite: compute what is there already, too.
    """

    tasks: Sequence[str] = tuple(TASKS)
    data: Mapping[str, str] = field(default_factory=dict)
    classnames: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    features: FeatureOptions = field(default_factory=FeatureOptions)
    dtype: torch.dtype = torch.float32
    device: Any = "cpu"
    overwrite: bool = False


@dataclass(frozen=True)
class SuiteRun:
    """What a run of a suite found.

    Args:
        results: one per model, data set and task that was tried: done, skipped with a reason or failed with one.
        missing: data sets that were not to be had, with the reason.
        failures: models that could not be loaded and data sets that could not be opened, with the reason.
    """

    results: list[dict]
    missing: dict[str, str]
    failures: dict[str, str]

    @property
    def is_whole(self) -> bool:
        """Whether nothing failed; what was not given or does not apply is no failure."""
        return not self.failures and all(result["status"] != FAILED for result in self.results)


def run_suite(
    suite: Suite,
    rows: Sequence[SuiteRow],
    models: Sequence[str],
    directory: str | os.PathLike,
    options: SuiteOptions,
    report: Callable[[str], None] = lambda line: None,
) -> SuiteRun:
    """Evaluate models on data sets.

    A model that cannot be loaded, a data set that cannot be opened and a task that fails are recorded, and the run goes
    on with the next.

    Args:
        suite: the rows' suite.
        rows: of the suite, in its order.
        models: what `load_suite_model` loads.
        directory: for the files of results.
        options: how.
        report: takes lines about the progress.

    Raises:
        FileNotFoundError: if there is nothing at a path of `options.data`.
        ValueError: if a name in `options` is none of the suite's, or a task is unknown.
    """
    _check(suite, options)
    opened, missing, failures = _open_all(suite, rows, options)
    for name, reason in {**missing, **failures}.items():
        report(f"{name}: {reason}")
    for data in opened:
        for note in data.notes:
            report(f"{data.row.name}: {note}")
    results = []
    for source, name in zip(models if opened else (), name_models(models), strict=False):
        try:
            model = load_suite_model(source, name, options.dtype, options.device)
        except Exception as error:  # whatever is wrong with one model, the others are evaluated
            failures[name] = _one_line(error)
            report(f"{name}: {failures[name]}")
            continue
        classified = {}
        for data in opened:
            bench = Bench(model, data, options.features, classified=classified)
            results += _run_pair(suite, bench, Path(directory), options, report)
    return SuiteRun(results, missing, failures)


def _check(suite: Suite, options: SuiteOptions) -> None:
    for task in options.tasks:
        if task not in TASKS:
            raise ValueError(f"There is no task {unknown_name(task, TASKS)}")
    for files in (options.data, options.classnames, options.templates):
        for name, path in files.items():
            if name and name not in suite.names:
                raise ValueError(f"Suite {suite.name} has no data set {unknown_name(name, suite.names)}")
            if not Path(path).expanduser().exists():
                raise FileNotFoundError(f"{name}={path}: there is nothing at this path.")


def _open_all(
    suite: Suite, rows: Sequence[SuiteRow], options: SuiteOptions
) -> tuple[list[SuiteData], dict[str, str], dict[str, str]]:
    opened, missing, failures, is_alone = [], {}, {}, False
    for row in rows:
        path = options.data.get(row.name)
        if is_alone and path is None and row.hub is not None:  # to ask again would take long
            missing[row.name] = needs_network(row)
            continue
        try:
            opened.append(open_row(row, path, suite.first_rows))
        except Unavailable as reason:
            is_alone |= isinstance(reason, HubUnreachable)
            missing[row.name] = str(reason)
        except Exception as error:  # whatever is wrong with one data set, the others are used
            failures[row.name] = _one_line(error)
    return opened, missing, failures


def _run_pair(
    suite: Suite,
    bench: Bench,
    directory: Path,
    options: SuiteOptions,
    report: Callable[[str], None],
) -> list[dict]:
    """All tasks of one model on one data set."""
    model, data, row, results = bench.model, bench.data, bench.data.row, []
    for task in options.tasks:
        record = {
            "suite": suite.name,
            "dataset": row.name,
            "title": row.title,
            "model": model.name,
            "task": task,
            "tested": row.tested,
            "notes": list(data.notes),
        }
        file = directory / "runs" / f"{_safe(model.name)}-{model.fingerprint[:8]}" / f"{_safe(row.name)}.{task}.json"
        try:
            found = _one_result(suite, bench, task, file, options)
        except NotApplicable as reason:
            found = {"status": SKIPPED, "reason": str(reason)}
        except Exception as error:  # as above
            found = {"status": FAILED, "reason": _one_line(error)}
        results.append({**record, **found})
        report(f"{model.name}, {row.name}, {task}: {_summary(found)}")
    return results


def _one_result(suite: Suite, bench: Bench, task: str, file: Path, options: SuiteOptions) -> dict:
    """The stored result of this key, or a new one."""
    row = bench.data.row
    if task == "zero_shot" and bench.model.has_texts and bench.prompts is None:
        bench.prompts = find_class_names(
            bench.data, pick(options.classnames, row.name), pick(options.templates, row.name)
        )
    request = _request(suite, bench, task)
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    stored = None if options.overwrite else _read(file, key)
    if stored is not None:
        return {**stored, "resumed": True}
    start = time.perf_counter()
    measured: Measured = TASKS[task](bench)
    found = {
        "status": DONE,
        "score": measured.score,
        "metric": measured.metric,
        "metrics": measured.metrics,
        "assumptions": list(measured.assumptions),
        "seconds": round(time.perf_counter() - start, 3),
        "key": key,
        "provenance": {
            **request,
            "rows": bench.data.sizes,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
    }
    if task == "zero_shot":
        found["prompts"] = {"source": redact(bench.prompts.source), "templates": len(bench.prompts.templates)}
    write_json(file, {"dataset": row.name, "model": bench.model.name, "task": task, **found})
    return {**found, "resumed": False}


def _request(suite: Suite, bench: Bench, task: str) -> dict:
    """Everything that a result depends on, as JSON writes it."""
    model, data, is_test_only = bench.model, bench.data, task in TEST_ONLY
    weight = next(model.model.parameters())
    request = {
        "format": _FORMAT,
        "hf_vitfm": __version__,
        "model": model.fingerprint,
        "preprocessing": model.preprocessing,
        "dtype": model.dtype,
        "precision": precision_of(weight.device, weight.dtype),
        "data": {"test": data.fingerprints["test"]} if is_test_only else data.fingerprints,
        "metric": data.row.metric,
        "settings": {**SETTINGS[task], **({} if is_test_only else {"pooling": probe_pooling(model.model)})},
        "suite": suite.name,
    }
    if task == "zero_shot" and bench.prompts is not None:
        texts = json.dumps([bench.prompts.names, bench.prompts.templates])
        request["prompts"] = hashlib.sha256(texts.encode()).hexdigest()
    if task == "classification" and model.has_head:
        request["classes"] = data.label_names
    if (
        is_test_only and data.row.reassessed
    ):  # neither these labels nor the names of files are in the data's fingerprint
        request["reassessed"] = fingerprint_values(reassessed_labels(data))
    return json.loads(json.dumps(request))  # tuples become lists, as in the file


def _read(file: Path, key: str) -> dict | None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and stored.get("key") == key else None


def write_json(file: Path, content: Any) -> None:
    """Write JSON so that the file is whole or absent, also after a crash."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write text so that the file is whole or absent, also after a crash."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}-{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as output:
            output.write(text)
            output.flush()
            os.fsync(output.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _summary(found: dict) -> str:
    if found["status"] != DONE:
        return f"{found['status']}, {found['reason']}"
    return f"{found['metric']} {100 * found['score']:.2f} %" + (" (stored)" if found["resumed"] else "")


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
