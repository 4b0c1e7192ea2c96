"""`hf-vitfm push`: what a dry run says, and what is refused; tests/hub pushes to a Hub."""

import shutil

import pytest

from hf_vitfm import sample_checkpoint
from hf_vitfm.cli.main import build_parser, main
from tests.repo.tree import ROOT


@pytest.fixture
def run(tmp_path):
    shutil.copytree(sample_checkpoint("fashion-mae"), tmp_path / "run")
    shutil.copytree(ROOT / "model_cards" / "fashion-mae", tmp_path / "run", dirs_exist_ok=True)
    (tmp_path / "run" / "checkpoint-7").mkdir()
    (tmp_path / "run" / "training_args.bin").write_bytes(b"x")
    return tmp_path / "run"


def push(*argv) -> int:
    return main(["push", *map(str, argv)])


def test_dry_run_lists_files_sizes_and_the_card_without_a_network(run, capsys):
    before = sorted(run.rglob("*"))
    assert push(run, "ada/mae", "--dry-run", "--format", "hf_vitfm,transformers", "--public") == 0
    out = capsys.readouterr().out
    assert "ada/mae (if it is new: public) would get" in out
    size = (run / "model.safetensors").stat().st_size
    assert f"  model.safetensors ({size:,} bytes)\n" in out and "  transformers/model.safetensors (" in out
    assert "  checkpoint-7/ (states of a training run)\n" in out and "  training_args.bin (arguments of" in out
    assert 'model = "ada/mae"' in out and 'subfolder="transformers"' in out
    assert sorted(run.rglob("*")) == before


def test_refusal_is_said_and_nothing_is_sent(run, capsys):
    record = (run / "run.json").read_text().replace('"recipes/', '"/srv/ada/recipes/', 1)
    (run / "run.json").write_text(record)
    assert push(run, "ada/mae") == 2  # offline: it would fail otherwise too, with other words
    assert "run.json, line 12, holds an absolute path, /srv/ada" in capsys.readouterr().err
    assert push(run, "ada/mae", "--max-file-size", "0.001") == 2
    assert push(run, "ada/mae", "--format", "hf_vitfm,timn") == 2
    assert "`formats` must be different ones of" in capsys.readouterr().err


def test_repository_is_private_unless_told_otherwise():
    parse = build_parser().parse_args
    assert parse(["push", "a", "b/c"]).private and parse(["push", "a", "b/c", "--private"]).private
    assert not parse(["push", "a", "b/c", "--public"]).private
