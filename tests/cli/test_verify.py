"""`hf-vitfm verify`: what it prints, and its exit codes."""

import json
import shutil

import pytest

from hf_vitfm import sample_checkpoint
from hf_vitfm.cli.main import main


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(sample_checkpoint("fashion-vit"), tmp_path / "model")


def verify(capsys, *argv) -> tuple[int, list[str]]:
    code = main(["verify", *map(str, argv)])
    return code, capsys.readouterr().out.splitlines()


def test_a_checkpoint_that_ships_matches(capsys):
    code, lines = verify(capsys, "fashion-vit")
    assert code == 0 and lines[-1] == "fashion-vit: matches"
    assert any(line.split() == "eval_top1 recorded 0.909, found 0.909, within 0.001".split() for line in lines)


def test_a_difference_is_named_with_its_size(folder, capsys):
    run = json.loads((folder / "run.json").read_text())
    run["evaluation"]["metrics"]["eval_top1"] = 0.95
    (folder / "run.json").write_text(json.dumps(run))
    code, lines = verify(capsys, folder)
    assert code == 1 and lines[-1] == f"{folder}: differs"
    assert "differs  eval_top1: 0.95 recorded, 0.909 found: differs by 0.041, 0.001 allowed" in lines


def test_what_cannot_be_checked_is_said_and_shows_no_control_characters(folder, capsys):
    run = json.loads((folder / "run.json").read_text())
    run["sources"]["evaluation"]["dataset"] = "my\x1b[31mdata"
    (folder / "run.json").write_text(json.dumps(run))
    code, lines = verify(capsys, folder)
    assert code == 2 and lines[-1] == f"{folder}: cannot"
    (line,) = [line for line in lines if line.startswith("cannot")]
    assert "--data PATH" in line and "\x1b" not in line


def test_a_name_that_is_nothing_here_is_an_error(capsys):
    assert main(["verify", "fashion-vitt"]) == 2
    assert "Did you mean 'fashion-vit'" in capsys.readouterr().err
