"""What a run measured: which numbers belong to its kind of task, whether they are possible, and how a card tells them."""

import math
from dataclasses import dataclass

from .markdown import as_code, as_percent, as_table, as_text


MAX_CLASS_ROWS = 30
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class Measure:
    """One number of all_results.json."""

    key: str
    identifier: str  # in the card's metadata
    name: str
    is_share: bool = True  # a fraction in 0..1, shown in percent
    has_interval: bool = False  # a share of the images; a mean over classes is none


MEASURES = {
    SINGLE: (
        Measure("eval_top1", "accuracy", "Top-1 accuracy", has_interval=True),
        Measure("eval_top5", "top_5_accuracy", "Top-5 accuracy", has_interval=True),
        Measure("eval_mean_per_class", "mean_per_class_accuracy", "Mean per-class (balanced) accuracy"),
        Measure("eval_calibration_error", "expected_calibration_error", "Calibration error of top-1 (15 bins)"),
    ),
    MULTI: (
        Measure("eval_mean_average_precision", "mean_average_precision", "Mean average precision"),
        Measure("eval_micro_f1", "f1_micro", "F1 of all decisions (micro)"),
        Measure("eval_macro_f1", "f1_macro", "F1, mean over classes (macro)"),
    ),
    REGRESSION: (
        Measure("eval_rmse", "rmse", "Root of the mean squared error", is_share=False),
        Measure("eval_mae", "mae", "Mean absolute error", is_share=False),
        Measure("eval_r2", "r_squared", "R²", is_share=False),
        Measure("eval_pearson", "pearsonr", "Pearson correlation", is_share=False),
    ),
}
REQUIRED = {
    SINGLE: ("eval_loss", "eval_top1", "eval_mean_per_class"),
    MULTI: ("eval_loss", "eval_mean_average_precision", "eval_micro_f1", "eval_macro_f1"),
    REGRESSION: ("eval_loss", "eval_rmse", "eval_mae"),
}
LOSSES = {
    SINGLE: "Loss (negative log-likelihood, nats)",
    MULTI: "Loss (binary cross entropy, nats)",
    REGRESSION: "Loss (mean squared error)",
}
OUTPUT_COLUMNS = {"rmse": "RMSE", "mae": "MAE", "r2": "R²", "pearson": "Pearson"}


def problem_type(run: dict) -> str:
    """The kind of task of a run.json; one class per image where it is not said."""
    return run.get("problem_type") or SINGLE


def details_field(run: dict) -> str:
    """The field of run.json that has the numbers by class or output."""
    return "per_output" if problem_type(run) == REGRESSION else "per_class"


def purpose(run: dict) -> str:
    """What the model does, after "This model"."""
    count = len(run[details_field(run)])
    if problem_type(run) == REGRESSION:
        return "predicts a number for an image" if count == 1 else f"predicts {count} numbers for an image"
    if problem_type(run) == MULTI:
        return f"tells which of {count} classes are in an image, any number of them"
    return f"sorts images into {count} classes"


def measured(results: dict, run: dict) -> list[Measure]:
    """The measures that all_results.json holds."""
    return [measure for measure in MEASURES[problem_type(run)] if measure.key in results]


def required_results(run: dict) -> list[str]:
    """The fields that all_results.json must have."""
    kind = problem_type(run)
    return [*REQUIRED[kind], *(["eval_top5"] if kind == SINGLE and len(run["per_class"]) > 5 else [])]


def check_shares(shares: dict[str, float]) -> None:
    """Refuse a share outside 0..1; the keys say what it is of."""
    for what, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{what} must be a fraction in 0..1; got {value!r}. Divide percent by 100.")


def check_numbers(results: dict, *keys: str) -> None:
    """Refuse losses, times and these numbers of all_results.json where they are not finite."""
    for key in ("eval_loss", "train_loss", "train_runtime", "epoch", *keys):
        value = results.get(key, 0)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"`{key}` in all_results.json must be a finite number; got {value!r}. A run that diverged gets no card."
            )


def check_results(config: dict, results: dict, run: dict) -> None:
    """Refuse numbers that cannot be: the caller has made sure that they are there.

    Raises:
        ValueError: naming the number.
    """
    field = details_field(run)
    shares = {f"`{m.key}` in all_results.json": results[m.key] for m in measured(results, run) if m.is_share}
    if field == "per_class":
        known = {name: value for name, value in run[field].items() if value is not None}
        shares |= {f"`per_class` in run.json, {name!r}": value for name, value in known.items()}
    check_shares(shares)
    check_numbers(results, *(m.key for m in measured(results, run) if not m.is_share))
    # transformers leaves id2label out of config.json when it is the default, two classes.
    num_labels = len(config.get("id2label", "01"))
    if len(run[field]) != num_labels:
        raise ValueError(
            f"`{field}` in run.json must name the {num_labels} classes of config.json; got {len(run[field])}. "
            "Check that both are of the same run; write null for a class that was not evaluated."
        )


def results_section(results: dict, run: dict) -> str:
    """The section that tells the numbers, and on what they were measured."""
    dataset = run["dataset"]
    rows = [(m.name, *_shown(m, results[m.key], dataset["evaluation_rows"])) for m in measured(results, run)]
    rows.append((LOSSES[problem_type(run)], f"{results['eval_loss']:.4g}", ""))
    text = (
        f"Measured on the {dataset['evaluation_rows']:,} images of the split {as_code(dataset['evaluation_split'])} "
        f"of {as_text(dataset['name'])}."
    )
    header = ("Measure", "Value", "95 % interval")
    if problem_type(run) == SINGLE:
        text += " The interval says how far chance alone, in the choice of these images, can move the number."
    else:
        header, rows = header[:2], [row[:2] for row in rows]
    if run["hyperparameters"].get("load_best_model_at_end") in (True, "true", "True"):
        text += (
            " Of the checkpoints of the run, the best one on these evaluation images was kept: its numbers are a little "
            "too good."
        )
    table = _output_table(run["per_output"]) if problem_type(run) == REGRESSION else _class_table(run)
    return "\n\n".join(["## Results", text, as_table(header, rows), table])


def measured_limits(results: dict, run: dict) -> list[str]:
    """Sentences on what the numbers say against the model."""
    if problem_type(run) == REGRESSION:
        return ["It answers with a number for every picture, also for one unlike all that it was trained on."]
    per_class, kind = run["per_class"], problem_type(run)
    known = {name: value for name, value in per_class.items() if value is not None}
    if kind == SINGLE:
        points = [
            f"It knows {len(per_class)} classes and always answers with one of them, also for a picture of something else."
        ]
        name, mean = "an accuracy", results["eval_top1"]
    else:
        points = [
            f"It knows {len(per_class)} classes, and says nothing of anything else that a picture shows. F1 counts a class "
            "as found when its probability is above 0.5; no better threshold was looked for."
        ]
        name, mean = "an average precision", results["eval_mean_average_precision"]
    if known and min(known.values()) < mean:
        worst = min(known, key=known.get)
        points.append(f"Classes differ: the weakest, {as_text(worst)}, has {name} of {as_percent(known[worst])}.")
    if len(known) < len(per_class):
        points.append(f"Classes without an image in the evaluation: {len(per_class) - len(known):,}.")
    return points


def _shown(measure: Measure, value: float, rows: int) -> tuple[str, str]:
    if not measure.is_share:
        return f"{value:.4g}", ""
    return as_percent(value), interval(value, rows) if measure.has_interval else ""


def _class_table(run: dict) -> str:
    title = "Accuracy" if problem_type(run) == SINGLE else "Average precision"
    header, per_class = ("Class", title), run["per_class"]
    rows = [
        (as_text(name), "not evaluated" if value is None else as_percent(value)) for name, value in per_class.items()
    ]
    if len(rows) <= MAX_CLASS_ROWS:
        return f"{title} by class:\n\n" + as_table(header, rows)
    ranked = sorted(((value, name) for name, value in per_class.items() if value is not None), reverse=True)
    chosen = ranked if len(ranked) <= 10 else ranked[:5] + ranked[-5:]
    rows = [(as_text(name), as_percent(value)) for value, name in chosen]
    return f"{title} of the best and the worst of the {len(ranked):,} classes evaluated:\n\n" + as_table(header, rows)


def _output_table(per_output: dict) -> str:
    rows = [
        (
            as_text(name),
            *("undefined" if values[key] is None else f"{values[key]:.4g}" for key in OUTPUT_COLUMNS),
        )
        for name, values in list(per_output.items())[:MAX_CLASS_ROWS]
    ]
    shown = f", the first {MAX_CLASS_ROWS} of {len(per_output)}" if len(per_output) > MAX_CLASS_ROWS else ""
    return f"By output{shown}:\n\n" + as_table(("Output", *OUTPUT_COLUMNS.values()), rows)


def interval(share: float, rows: int) -> str:
    """Wilson's interval of a share, which stays within 0..100 % and has a width at both ends."""
    z = 1.959964
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return f"{100 * max(0.0, centre - half):.1f} to {100 * min(1.0, centre + half):.1f} %"
