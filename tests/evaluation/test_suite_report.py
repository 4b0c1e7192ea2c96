"""What a run of a suite leaves behind."""

import csv
import json

import pytest

from hf_vitfm.evaluation.suite_report import deltas_to, write_report
from hf_vitfm.evaluation.suite_runner import SuiteRun
from hf_vitfm.evaluation.suites import load_suite


def done(dataset, model, task, score):
    return {
        "suite": "clip27",
        "dataset": dataset,
        "model": model,
        "task": task,
        "tested": True,
        "notes": [],
        "status": "done",
        "score": score,
        "metric": "accuracy",
    }


RESULTS = [
    done("pets", "clip", "zero_shot", 0.9),
    done("dtd", "clip", "zero_shot", 0.4),
    done("mnist", "clip", "zero_shot", 0.5),
    done("pets", "resnet", "linear_probe", 0.8),
    done("dtd", "resnet", "linear_probe", 0.7),
    {**done("mnist", "resnet", "linear_probe", None), "status": "failed", "reason": "out of memory"},
]


def test_differences_are_of_data_sets_that_have_both_scores():
    rows = load_suite("clip27").rows
    deltas = deltas_to("resnet", rows, RESULTS)
    assert deltas == {"clip": {"Describable Textures": pytest.approx(-0.3), "Oxford-IIIT Pets": pytest.approx(0.1)}}


def test_files_hold_the_results_without_private_paths(tmp_path):
    suite = load_suite("clip27")
    run = SuiteRun(RESULTS, {"food101": "not given"}, {"m": "nothing at /secret/place/model"})
    files = write_report(tmp_path, suite, suite.rows, run, ["some/clip", "resnet"], "resnet")
    assert [file.name for file in files] == [
        "results.json",
        "results.csv",
        "results.md",
        "zero_shot_deltas.png",
    ]
    assert all(file.is_file() for file in files)
    assert not any(b"secret" in file.read_bytes() for file in files[:3])
    content = json.loads(files[0].read_text())
    assert [result["score"] for result in content["results"]] == [0.9, 0.4, 0.5, 0.8, 0.7, None]
    assert content["not_given"] == {"food101": "not given"} and "nothing at model" in content["failed"]["m"]
    with open(files[1], newline="") as table:
        assert len(list(csv.DictReader(table))) == 6
    text = files[2].read_text()
    assert text.index("Describable Textures") < text.index("Oxford-IIIT Pets") < text.index("MNIST")
    assert "- resnet: failed, out of memory (mnist)" in text


def test_without_a_baseline_there_is_no_chart(tmp_path):
    suite = load_suite("clip27")
    assert len(write_report(tmp_path, suite, suite.rows, SuiteRun(RESULTS, {}, {}))) == 3
