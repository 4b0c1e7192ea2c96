"""The tables and the picture of a comparison, as other programs read them."""

import csv
import io
import json

import pytest

from hf_vitfm.evaluation.compare_data import open_comparison
from hf_vitfm.evaluation.compare_report import comparison_table, write_comparison
from tests.evaluation.compared import a_comparison, a_model, a_score, save_folder


PRIVATE = "/".join(["", "home", "ada"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_comparison(save_folder(tmp_path_factory.mktemp("private") / "pictures", train=4, test=3))


@pytest.fixture
def comparison(data):
    few = {"shots": 10, "method": "ridge", "seeds": [0, 1]}
    models = [
        a_model("my|model", {"linear_probe": a_score(0.9), "few_shot": a_score(0.8, **few), "knn": a_score(0.7)}),
        a_model(
            "a/clip",
            {
                "linear_probe": a_score(0.895, "close", -0.005),
                "few_shot": a_score(0.7, "below", -0.1, **few),
                "knn": a_score(0.5, "below", -0.2),
                "zero_shot": a_score(0.4),
            },
            images_per_second=100.0,
        ),
        a_model("slow", {"linear_probe": a_score(0.5, "below", -0.4)}, images_per_second=0.25, peak_memory=None),
    ]
    return a_comparison(
        data,
        models,
        failures={"gone": f"no such file: {PRIVATE}/gone"},
        skipped={"train": [f"row 3 ({PRIVATE}/x.png)"]},
    )


def test_every_file_holds_the_scores(comparison, tmp_path):
    files = write_comparison(comparison, tmp_path / "new")
    assert [file.name for file in files] == ["compare.json", "compare.csv", "compare.md", "compare.png"]
    found = json.loads(files[0].read_text())
    assert found["winner"] == "my|model" and found["not_distinguishable_from_winner"] == ["a/clip"]
    assert found["models"][1]["scores"]["zero_shot"]["accuracy"] == 0.4
    assert found["data"]["rows"] == {"train": 12, "test": 9}
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [row["model"] for row in rows] == ["my|model", "a/clip", "slow", "gone"]
    assert float(rows[1]["linear_probe_difference"]) == -0.005 and rows[1]["linear_probe_standing"] == "close"
    assert (rows[0]["zero_shot_accuracy"], rows[2]["peak_memory"], rows[3]["flops"]) == ("", "", "")
    assert files[3].stat().st_size > 8_000


def test_the_table_shows_what_is_not_distinguishable(comparison, tmp_path):
    table = write_comparison(comparison, tmp_path)[2].read_text()
    lines = table.splitlines()
    assert lines[0] == "# 3 models on pictures"
    assert "few-shot, 10 a class" in lines[2] and "linear probe" in lines[2]
    first, second, third = (line.replace(r"\|", "/").split(" | ") for line in lines[4:7])
    assert first[0] == "| **my/model**" and first[1] == "90.0 [85.0, 94.0]" and first[2] == "best"
    assert second[2] == "-0.5 [-2.5, +1.0] not distinguishable"
    assert third[2] == "-40.0 [-42.0, -39.0]" and third[-1].startswith("not measured")
    assert third[3:6] == ["-", "-", "-"]
    assert "Not distinguishable from it on these images: a/clip (2.5 x its speed)" in table
    assert "bootstrap" in table and "'a photo of a {}.'" in table and "gone failed: no such file" in table


def test_private_paths_stay_private(comparison, tmp_path):
    for file in write_comparison(comparison, tmp_path)[:3]:
        text = file.read_text()
        assert "/ada/" not in text and "/private" not in text, file.name


def test_the_terminal_has_a_line_for_each_model(comparison):
    header, *lines = comparison_table(comparison).splitlines()
    assert len(lines) == 3 and len({len(line) for line in (header, *lines)}) == 1
    assert lines[0].startswith("my|model") and lines[1].split()[1:3] == ["89.5", "[84.5,"]
    assert "0.25" in lines[2]


def test_models_without_the_deciding_score_are_not_drawn(data, tmp_path):
    with_text = a_model("a/clip", {"zero_shot": a_score(0.4), "linear_probe": a_score(0.5)})
    without = a_model("vit", {"linear_probe": a_score(0.9)})
    files = write_comparison(a_comparison(data, [with_text, without], by="zero_shot"), tmp_path)
    lines = files[2].read_text().splitlines()
    assert lines[5].startswith("| vit | - | - | 90.0")
