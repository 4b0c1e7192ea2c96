"""Cards of several labels and of numbers: what was measured, and nothing else."""

import ast
import json
import re

import pytest
from huggingface_hub import ModelCard

from hf_vitfm.cards.model_card import create_model_card
from tests.cards.test_model_card import CONFIG, PROCESSOR, RESULTS, RUN


NAMES = ["tree", "sky", "a|b"]
CHANGES = {
    "several": {
        "config": {"id2label": dict(enumerate(NAMES)), "problem_type": "multi_label_classification"},
        "results": {"eval_mean_average_precision": 0.712, "eval_micro_f1": 0.6, "eval_macro_f1": 0.5},
        "run": {"problem_type": "multi_label_classification", "per_class": {"tree": 0.9, "sky": 0.4, "a|b": None}},
    },
    "numbers": {
        "config": {"id2label": {"0": "age"}, "problem_type": "regression"},
        "results": {"eval_rmse": 12.5, "eval_mae": 8.25, "eval_r2": -0.5},
        "run": {
            "task": "image-regression",
            "problem_type": "regression",
            "per_output": {"age": {"rmse": 12.5, "mae": 8.25, "r2": -0.5, "pearson": None}},
        },
    },
}


@pytest.fixture
def write_run(tmp_path):
    def write(kind: str, **changes):
        results = {key: value for key, value in RESULTS.items() if not key.startswith("eval_")} | {"eval_loss": 0.4}
        run = {key: value for key, value in RUN.items() if key != "per_class"}
        contents = {"config": CONFIG, "preprocessor_config": PROCESSOR, "all_results": results, "run": run}
        for name, content in contents.items():
            key = {"all_results": "results"}.get(name, name)
            content = {**content, **CHANGES[kind].get(key, {}), **changes.get(key, {})}
            content = {field: value for field, value in content.items() if value is not ...}
            (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


def test_card_of_several_labels(write_run):
    path = create_model_card(write_run("several"))
    data, text = ModelCard.load(path).data, path.read_text()
    assert {(r.task_type, r.metric_type, r.metric_value) for r in data.eval_results} == {
        ("image-classification", "mean_average_precision", 0.712),
        ("image-classification", "f1_micro", 0.6),
        ("image-classification", "f1_macro", 0.5),
    }
    assert data.pipeline_tag == "image-classification" and data.metrics == ["mean_average_precision"]
    for fact in (
        "tells which of 3 classes are in an image",
        "| Mean average precision | 71.2 % |",
        "binary cross entropy",
        r"| a\|b | not evaluated |",
        "the weakest, sky, has an average precision of 40.0 %",
        "Classes without an image in the evaluation: 1.",
        ".sigmoid()",
        "no better threshold was looked for",
        "nor whether its probabilities are calibrated",
    ):
        assert fact in text, fact
    assert "Top-1" not in text and "softmax" not in text and "95 % interval" not in text


def test_card_of_numbers(write_run):
    path = create_model_card(write_run("numbers"))
    data, text = ModelCard.load(path).data, path.read_text()
    assert {(r.task_type, r.metric_type, r.metric_value) for r in data.eval_results} == {
        ("image-regression", "rmse", 12.5),
        ("image-regression", "mae", 8.25),
        ("image-regression", "r_squared", -0.5),
    }
    assert data.pipeline_tag is None and "image-regression" in data.tags
    for fact in (
        "predicts a number for an image",
        "| Root of the mean squared error | 12.5 |",
        "| R² | -0.5 |",
        "| age | 12.5 | 8.25 | -0.5 | undefined |",
        "Loss (mean squared error)",
        "the best one on these evaluation images was kept",
    ):
        assert fact in text, fact
    for word in ("softmax", "sigmoid", " classes,", "calibrated", "| Pearson correlation |", "nats"):
        assert word not in text, word


@pytest.mark.parametrize("kind", CHANGES)
def test_tables_and_code_are_sound(write_run, kind):
    text = create_model_card(write_run(kind)).read_text()
    for table in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("several", {"run": {"per_class": ...}}, "run.json has no field `per_class`"),
        ("numbers", {"run": {"per_output": ...}}, "run.json has no field `per_output`"),
        ("several", {"results": {"eval_macro_f1": ...}}, "all_results.json has no field `eval_macro_f1`"),
        ("several", {"results": {"eval_macro_f1": 50.0}}, "`eval_macro_f1` in all_results.json must be a fraction"),
        ("numbers", {"results": {"eval_rmse": float("inf")}}, "`eval_rmse` in all_results.json must be a finite"),
        ("numbers", {"run": {"problem_type": "ordinal"}}, "`problem_type` in run.json must be one of .*'ordinal'"),
        ("numbers", {"config": {"id2label": ...}}, "`per_output` in run.json must name the 2 classes"),
    ],
)
def test_bad_field_is_named(write_run, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        create_model_card(write_run(kind, **changes))


def test_calibration_is_told_where_it_was_measured(write_run, tmp_path):
    single = {"problem_type": ..., "per_class": RUN["per_class"]}
    directory = write_run("several", run=single, config=CONFIG, results={**RESULTS, "eval_calibration_error": 0.034})
    path = create_model_card(directory)
    assert "| Calibration error of top-1 (15 bins) | 3.4 % |  |" in path.read_text()
    assert "nor whether its probabilities are calibrated" not in path.read_text()
    reported = {r.metric_type: r.metric_value for r in ModelCard.load(path).data.eval_results}
    assert reported["expected_calibration_error"] == 0.034
