"""Repositories that claim more than was measured, or hold anything at all: never "matches", and never a traceback."""

import json
import shutil

import pytest

from hf_vitfm import sample_checkpoint
from hf_vitfm.cards.model_card import create_model_card
from hf_vitfm.hub.verify import CANNOT, DIFFERS, MATCHES, MetricCheck, tolerance, verify
from tests.repo.tree import ROOT


@pytest.fixture
def run(tmp_path):
    """A classifier that ships, with its card."""
    shutil.copytree(sample_checkpoint("fashion-vit"), tmp_path / "run")
    shutil.copy(ROOT / "model_cards/fashion-vit/README.md", tmp_path / "run")
    return tmp_path / "run"


def change(path, function) -> None:
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


def write_card(run) -> None:
    (run / "README.md").unlink()
    create_model_card(run)


@pytest.mark.parametrize("lost", [["eval_top1"], None], ids=["one", "all"])
def test_number_that_run_json_does_not_record_is_not_confirmed(run, lost):
    def forget(content):
        metrics = content["evaluation"]["metrics"]
        for name in lost or list(metrics):
            del metrics[name]

    change(run / "run.json", forget)
    change(run / "all_results.json", lambda content: content.update(eval_top1=0.99))
    write_card(run)
    found = verify(run)
    assert found.verdict == CANNOT and [
        line for line in found.unchecked if line.startswith("eval_top1: run.json records")
    ]
    assert not [line for line in found.confirmed if line.startswith("numbers: 0")]


def test_number_of_rows_is_checked(run):
    change(run / "run.json", lambda content: content["splits"]["evaluation"].update(rows=50_000))
    change(run / "run.json", lambda content: content["dataset"].update(evaluation_rows=50_000))
    write_card(run)
    found = verify(run)
    assert (
        found.verdict == DIFFERS
        and len([line for line in found.differences if "50,000" in line or "50000" in line]) == 2
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("| Top-1 accuracy |", "| Top-1 accuracy on ImageNet |", "Top-1 accuracy on ImageNet"),
        ("| --- | --- | --- |\n", "| --- | --- | --- |\n| ImageNet | 99.9 % |  |\n", "ImageNet is 99.9 %"),
        ("type: accuracy", "type: precision", "precision is 0.909"),
    ],
    ids=["renamed", "added", "metadata"],
)
def test_result_that_the_files_do_not_give_is_not_confirmed(run, old, new, words):
    card = run / "README.md"
    assert old in card.read_text()
    card.write_text(card.read_text().replace(old, new, 1))
    found = verify(run)
    assert found.verdict == CANNOT and [line for line in found.unchecked if words in line], found.unchecked


@pytest.mark.parametrize(
    "card",
    ["---\n a: [b\n---\nx", "---\n- a\n---\nx", "---\nmodel-index: [[3]]\n---\n| a", b"\xff\xfe\0".decode("latin-1")],
)
def test_any_card_gives_a_verdict(run, card):
    (run / "README.md").write_text(card)
    assert verify(run).verdict in (CANNOT, MATCHES)


@pytest.mark.parametrize("name", ["run.json", "config.json", "all_results.json"])
@pytest.mark.parametrize("text", ['{"a":' * 100_000, "null"], ids=["deep", "null"])
def test_any_file_gives_a_verdict(run, name, text):
    (run / name).write_text(text)
    assert verify(run).verdict != MATCHES


@pytest.mark.parametrize(
    "field", "task evaluation seeds splits weights sources dataset loss_trace hyperparameters".split()
)
@pytest.mark.parametrize("value", [3, {"a": 1}], ids=str)
def test_any_field_of_run_json_gives_a_verdict(run, field, value):
    change(run / "run.json", lambda content: content.update({field: value}))
    found = verify(run)
    assert found.verdict != MATCHES or field == "hyperparameters"


def test_type_and_precision_that_do_not_exist_change_nothing(run):
    change(run / "run.json", lambda content: content["weights"].update({"model.safetensors": "0" * 64}))
    change(run / "run.json", lambda content: content.update(model_type=None))
    assert [line for line in verify(run).differences if line.startswith("weights: model.safetensors is not")]
    assert tolerance("eval_top1", 0.5, 1000, "anything") == tolerance("eval_top1", 0.5, 1000)
    assert tolerance("eval_top1", 0.5, 1000, "bf16") > tolerance("eval_top1", 0.5, 1000)
    assert not MetricCheck("eval_loss", float("inf"), 0.3, float("inf")).holds
