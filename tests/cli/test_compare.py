"""`hf-vitfm compare`: what it prints and writes, and its exit codes."""

import json

import pytest
import yaml

from hf_vitfm.cli.main import main
from hf_vitfm.evaluation import features
from tests.evaluation.compared import save_folder, save_vit


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("hf_vitfm.evaluation.encoder_cost._SECONDS", 0.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("images"), alone=8)


def run(*argv) -> int:
    return main(["compare", *map(str, argv), "--device", "cpu", "--seeds", "2"])


def test_files_and_table(images, tmp_path, capsys, monkeypatch):
    model = save_vit(tmp_path / "tiny_vit")
    assert run("emoji-clip", model, "--data", images, "--output", tmp_path / "out", "--by", "knn") == 0
    output = capsys.readouterr().out
    assert "tiny_vit" in output and "95 % intervals" in output and str(tmp_path / "out" / "compare.png") in output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["by"] == "knn" and {row["name"] for row in found["models"]} == {"emoji-clip", "tiny_vit"}
    config = yaml.safe_load((tmp_path / "out" / "finetune.yaml").read_text())
    assert config["checkpoint"] == model and config["dataset"] == str(images)
    for name in ("compare.csv", "compare.md", "compare.png"):
        assert (tmp_path / "out" / name).exists()
    # A second run, by another score, computes no features.
    monkeypatch.setattr(features, "pool_images", lambda *args, **kwargs: pytest.fail("features are computed again"))
    assert run("emoji-clip", model, "--data", images, "--output", tmp_path / "out", "--by", "zero_shot") == 0
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["winner"] == "emoji-clip"


def test_a_model_that_fails_makes_the_exit_code_1(images, tmp_path, capsys):
    model = save_vit(tmp_path / "tiny_vit")
    assert run(model, "nobody/nothing", "--data", images, "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "nobody/nothing failed: " in captured.out and "nobody/nothing: failed: " in captured.err
    assert "nobody/nothing" in json.loads((tmp_path / "out" / "compare.json").read_text())["failed"]


def test_nothing_to_compare_is_exit_code_2(images, tmp_path, capsys):
    assert run("nobody/nothing", "--data", images, "--output", tmp_path / "out") == 2
    assert "No model could be compared" in capsys.readouterr().err
    assert run("emoji-clip", "--data", tmp_path / "none") == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "out" / "compare.json").exists()
