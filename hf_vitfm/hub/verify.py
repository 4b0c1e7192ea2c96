"""Measure a published model again, and say whether its numbers hold."""

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..cards.model_card import KINDS
from ..conversion.files import check_source
from ..conversion.hide_tokens import hide_tokens
from ..data.samples import find_checkpoint
from ..training.record import fingerprint_splits, hash_weights, measure, measure_parts
from .card_numbers import compare_card
from .reopen import build_trainer, open_rows


MATCHES, DIFFERS, CANNOT = "matches", "differs", "cannot"
NEEDED = ("weights", "evaluation", "splits", "sources", "seeds")
_ROOT_FILES = ["*.json", "*.safetensors", "*.txt", "README.md"]
_RELATIVE, _LOW_PRECISION = 1e-3, 1e-2  # float32 on two machines agrees to about 1e-6, half precision to 1e-2
_MEAN_OF_CLASSES = 5e-3  # a small class makes one image weigh more
_SHARES = ("recall@", "top1", "top5", "_f1", "mean_average_precision", "mean_per_class", "calibration_error")
_UNEVEN = ("_f1", "mean_average_precision", "mean_per_class", "calibration_error")


@dataclass(frozen=True)
class MetricCheck:
    """One number: as recorded, as found now, and how far the two may lie apart."""

    name: str
    recorded: float
    found: float | None
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it was found, near enough."""
        if self.found is None or not math.isfinite(self.recorded):  # where a number is not defined
            return self.found is not None and repr(float(self.found)) == repr(float(self.recorded))
        return abs(self.recorded - self.found) <= self.tolerance


@dataclass
class Verification:
    """What came out.

    Args:
        source: what was looked at.
        confirmed: what is as recorded.
        differences: what is not.
        unchecked: what could not be checked, and why.
        notes: what is worth knowing and speaks neither for nor against.
        metrics: the numbers that were measured again.
    """

    source: str
    confirmed: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    metrics: list[MetricCheck] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`MATCHES`, `DIFFERS` or `CANNOT`; a difference outweighs what could not be checked."""
        return DIFFERS if self.differences else CANNOT if self.unchecked else MATCHES


def verify(
    source: str | Path, data: str | Path | None = None, revision: str | None = None, token: str | bool | None = None
) -> Verification:
    """Check a model against the run.json beside it: files, card, evaluation data, and all numbers by a new evaluation.

    No code of the repository is run. A share of images may differ by one image in a thousand, at least by one (rounding
    errors decide near ties), a mean over classes by half a point, a loss by a thousandth of itself; by five and ten times
    as much where the run evaluated in half precision. The hash of the predictions is compared too; one that differs where
    the numbers hold is only noted.

    Args:
        source: folder, Hub id, or the name of a checkpoint that ships.
        data: folder, file or Hub id of the evaluation data, where run.json names none that others can open, or to see
            whether other data is the same.
        revision: branch, tag or commit on the Hub.
        token: for the Hub.

    Returns:
        What holds, what does not, and what could not be checked and why.

    Raises:
        FileNotFoundError: if `source` is a path that does not exist.
        OSError: if the repository cannot be read.
    """
    directory = _fetch(str(source), revision, token)
    result = Verification(str(source))
    run = _read(directory / "run.json", result)
    if run is None:
        result.unchecked.append("everything: without a run.json nothing says how the model was evaluated")
        return result
    is_converted = _is_converted(directory, run)
    _check_card(directory, is_converted, result)
    lacking = [name for name in NEEDED if not isinstance(run.get(name), dict)]
    if lacking or not isinstance(run["evaluation"].get("metrics"), dict):
        names = ", ".join(f"`{name}`" for name in lacking) or "`evaluation.metrics`"
        result.unchecked.append(
            f"weights, data and numbers: run.json has no {names}; it is of an older version, or cut"
        )
        return result
    _check_results(directory, run, result)
    if is_converted:
        result.notes.append("weights: in another format than the run saved; the numbers say whether they are the same")
    else:
        _check_weights(directory, run, result)
    if not isinstance(run.get("task"), str) or run["task"] not in KINDS:
        result.unchecked.append(f"numbers: there is no evaluation for the task {run.get('task')!r}")
        return result
    try:
        _check_evaluation(directory, run, None if data is None else str(data), result)
    except Exception as error:  # files from anywhere fail in any way, and each is a reason
        message = f"run.json has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        result.unchecked.append(hide_tokens(f"evaluation: {message}", token))
    return result


def _fetch(source: str, revision: str | None, token: str | bool | None) -> Path:
    source = find_checkpoint(source)
    if Path(source).is_dir():
        return Path(source)
    check_source(source)
    try:
        return Path(
            snapshot_download(
                source, revision=revision, token=token, allow_patterns=_ROOT_FILES, ignore_patterns=["*/*"]
            )
        )
    except Exception as error:  # the connection's errors have classes of the library below the client
        raise OSError(hide_tokens(f"{source!r} cannot be read from the Hub: {error}", token)) from None


def _read(path: Path, result: Verification) -> dict | None:
    if not path.is_file():
        result.unchecked.append(f"{path.name}: there is none")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        result.unchecked.append(f"{path.name}: it is not valid JSON ({error})")
        return None
    if not isinstance(content, dict):
        result.unchecked.append(f"{path.name}: it holds no JSON object")
        return None
    return content


def _is_converted(directory: Path, run: dict) -> bool:
    """Whether the root holds the model in another library's format than its run saved it in: one of them is ours."""
    config = _read(directory / "config.json", Verification("")) or {}
    found, recorded = (str(each.get("model_type")).startswith("vitfm_") for each in (config, run))
    return isinstance(run.get("model_type"), str) and found != recorded


def _check_card(directory: Path, is_converted: bool, result: Verification) -> None:
    if not (directory / "README.md").is_file():
        result.notes.append("there is no README.md here, so no card was compared")
        return
    try:
        differences, unknown, remarks = compare_card(directory)
    except Exception as error:  # files from anywhere fail in any way
        message = hide_tokens(f"README.md: its numbers were not compared: {error}")
        (result.notes if is_converted else result.unchecked).append(message)
        return
    result.differences += differences
    result.unchecked += unknown
    result.notes += remarks
    if not differences and not unknown:
        result.confirmed.append("README.md: the numbers in its tables and metadata are those of the results files")


def _check_results(directory: Path, run: dict, result: Verification) -> None:
    """all_results.json and run.json hold the same numbers twice, so that a change of one shows."""
    results = _read(directory / "all_results.json", result)
    if results is None:
        return
    metrics = run["evaluation"]["metrics"]
    changed = [name for name, value in metrics.items() if repr(results.get(name)) != repr(value)]  # NaN too
    result.differences += [
        f"all_results.json: {name} is {results.get(name)!r}; run.json says {metrics[name]!r}" for name in changed
    ]
    if metrics and not changed:
        result.confirmed.append("all_results.json: the numbers of run.json")


def _check_weights(directory: Path, run: dict, result: Verification) -> None:
    found, recorded = hash_weights(directory), run["weights"]
    changed = [name for name in recorded if name in found and found[name] != recorded[name]]
    result.differences += [f"weights: {name} is not the file that was recorded" for name in changed]
    result.differences += [f"weights: {name} was recorded and is not here" for name in sorted(recorded.keys() - found)]
    result.differences += [f"weights: {name} is here and was not recorded" for name in sorted(found.keys() - recorded)]
    if found == recorded and found:
        result.confirmed.append(f"weights: {', '.join(found)} as recorded (SHA-256)")


def _check_evaluation(directory: Path, run: dict, data: str | None, result: Verification) -> None:
    rows, arguments = open_rows(run, data)
    _check_rows(fingerprint_splits(rows), run["splits"], result)
    claimed, count = run["dataset"]["evaluation_rows"], max(map(len, rows.values()))
    if claimed > count:
        result.differences.append(f"data: run.json says {claimed:,} rows were evaluated, there are {count:,}")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(directory, run, arguments, Path(folder))
        output, found = measure(trainer)
    recorded = run["evaluation"]
    count = len(next(iter(rows.values())))
    result.metrics = [
        MetricCheck(name, value, found["metrics"].get(name), tolerance(name, value, count, recorded.get("precision")))
        for name, value in recorded["metrics"].items()
        if isinstance(value, int | float)
    ]
    wrong = [check for check in result.metrics if not check.holds]
    result.differences += [_difference(check) for check in wrong]
    if result.metrics and not wrong:
        result.confirmed.append(f"numbers: {len(result.metrics)} measured again")
    checked = {check.name for check in result.metrics}
    result.unchecked += [
        f"{name}: run.json records no number of this name, {value:.6g} found"
        for name, value in found["metrics"].items()
        if name not in checked
    ]
    for name, parts in measure_parts(trainer, output).items():
        _compare_parts(name, run.get(name), parts, count, result)
    _compare_predictions(recorded.get("predictions"), found["predictions"], result)


def _check_rows(found: dict, recorded: dict, result: Verification) -> None:
    for name, split in found.items():
        known = recorded.get(name)
        if not isinstance(known, dict) or split["sha256"] is None or known.get("sha256") is None:
            reason = split.get("reason") or (known or {}).get("reason") or "nothing was recorded of it"
            result.notes.append(f"data: whether the {name} rows are the same is unknown ({reason})")
        elif split["sha256"] == known["sha256"] and split["rows"] != known.get("rows"):
            result.differences.append(f"data: {name} has {split['rows']:,} rows; run.json says {known.get('rows')}")
        elif split["sha256"] == known["sha256"]:
            result.confirmed.append(f"data: {name}, {split['rows']:,} rows as recorded (SHA-256)")
        else:
            result.differences.append(
                f"data: the {name} rows are not those that were recorded ({split['rows']:,} rows here, {known.get('rows')} "
                "then): the set was changed, or is stored in another form"
            )


def _compare_parts(name: str, recorded: Any, found: dict, rows: int, result: Verification) -> None:
    """The numbers of each class, where one image of a class may tip, or of each output."""
    if not isinstance(recorded, dict):
        result.unchecked.append(f"{name}: run.json has none")
        return
    tip = max(_MEAN_OF_CLASSES, len(found) / rows) + 1e-9
    checks = []
    for part in recorded.keys() | found.keys():
        pair = recorded.get(part), found.get(part)
        old, new = (each if isinstance(each, dict) else {"": each} for each in pair)
        for key in old.keys() | new.keys():
            title = " ".join(filter(None, (name, part, key)))
            before, now = old.get(key), new.get(key)
            if before is None or now is None:  # not evaluated, or undefined
                result.differences += [] if before is now else [f"{title}: {before} recorded, {now} found"]
            else:
                checks.append(MetricCheck(title, before, now, tip if key == "" else tolerance(key, before, rows)))
    wrong = [check for check in checks if not check.holds]
    result.differences += [_difference(check) for check in sorted(wrong, key=lambda check: check.name)]
    if not wrong:
        result.confirmed.append(f"numbers: {len(checks)} of {name} measured again")


def _compare_predictions(recorded: Any, found: dict | None, result: Verification) -> None:
    if not isinstance(recorded, dict) or found is None:
        result.notes.append("predictions: no hash of them, since numbers have no form that rounding leaves alone")
    elif recorded.get("sha256") == found["sha256"]:
        result.confirmed.append(f"predictions: the same for every row ({found['of']})")
    else:
        result.notes.append(
            f"predictions: not the same for every row ({found['of']}); rounding can tip a few where machines differ"
        )


def tolerance(name: str, recorded: float, rows: int, precision: str | None = None) -> float:
    """How far a number may lie from the recorded one, measured on another machine; see `verify`."""
    is_low = precision in ("bf16", "fp16")
    if any(part in name for part in _SHARES):
        allowed = _MEAN_OF_CLASSES if any(part in name for part in _UNEVEN) else max(1, 0.001 * rows) / rows
        return (5 * allowed if is_low else allowed) + 1e-9
    if name.endswith("_rank"):
        return max(1.0, 0.01 * abs(recorded))
    return (_LOW_PRECISION if is_low else _RELATIVE) * max(abs(recorded), 1e-3)


def _difference(check: MetricCheck) -> str:
    if check.found is None:
        return f"{check.name}: {check.recorded:.6g} recorded, and not measured here"
    return (
        f"{check.name}: {check.recorded:.6g} recorded, {check.found:.6g} found: differs by "
        f"{abs(check.found - check.recorded):.3g}, {check.tolerance:.3g} allowed"
    )
