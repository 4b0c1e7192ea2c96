"""Runs of each kind, pushed by their Trainer and from the command line, as others get them: models, cards and numbers."""

import json
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image

import hf_vitfm
from hf_vitfm.cli.main import main
from hf_vitfm.hub.verify import MATCHES, verify
from recipes.clip import train
from recipes.mae import pretrain
from recipes.vit import finetune
from tests.hub.client import Client, client_environment
from tests.hub.server import token_of
from tests.hub.test_remote_code import CLASSES, OUTPUTS, TASKS


ADA = token_of("ada")
RUNS = {
    "vit": (finetune, "recipes/vit/configs/fashion_scratch.yaml", "--seed", "3"),
    "mae": (pretrain, "recipes/mae/configs/pretrain_fashion.yaml", "--half_weights"),
    "clip": (train, "recipes/clip/configs/emoji.yaml", "--half_weights", "--holdout", "0.25"),
}
SPLITS = {
    "vit": {"train", "evaluation"},
    "mae": {"train", "evaluation", "labelled_bank", "labelled_queries"},
    "clip": {"train", "evaluation", "zero_shot"},
}
WAYS = ("trainer", "command")


def train_and_push(kind: str, folder: Path) -> None:
    """To two repositories: the Trainer does, and then the command line, of the same folder."""
    script, *argv = RUNS[kind]
    argv += ["--smoke", "--use_cpu", "--output_dir", str(folder), "--push_to_hub", "true", "--hub_token", ADA]
    script.main([*argv, "--hub_model_id", f"ada/{kind}-trainer"])
    with mock.patch.dict(os.environ, {"HF_TOKEN": ADA}):
        assert main(["push", str(folder), f"ada/{kind}-command"]) == 0


@pytest.fixture(scope="module")
def runs(running_hub, tmp_path_factory):
    """Folders of finished runs by kind; what they published came from a process of its own."""
    top = tmp_path_factory.mktemp("runs")
    with Client(client_environment(running_hub.endpoint, top / "home"), top / "log") as writer:
        for kind in RUNS:
            writer.run(train_and_push, kind, top / kind)
    assert ADA not in (top / "log").read_text()
    return {kind: top / kind for kind in RUNS}


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    Image.effect_mandelbrot((48, 40), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(folder / "picture.jpg")
    return folder


@torch.no_grad()
def used(kind: str, source: str, picture: str, **where) -> dict:
    """What comes out of a model's preprocessing, of our class and every Auto class, and of pipelines."""
    torch.set_num_threads(1)
    processor = transformers.AutoImageProcessor.from_pretrained(source, **where)
    inputs = dict(processor(Image.open(picture), return_tensors="pt"))
    if kind == "clip":
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
        inputs |= tokenizer(["red fruit", "a car"], padding=True, return_tensors="pt")
    found = {"inputs": inputs}
    autos = [getattr(transformers, name) for name in OUTPUTS[kind]]
    for loader in (getattr(hf_vitfm, CLASSES[kind].__name__), *autos):
        model = loader.from_pretrained(source, **where).eval()
        torch.manual_seed(0)  # masks
        output = model(**inputs)
        found[loader.__name__] = {name: output[name] for name in output if isinstance(output[name], torch.Tensor)}
    for task, call in TASKS[kind].items():
        found[task] = transformers.pipeline(task, model=source, **where)(picture, **call)
    return found


def assert_identical(found, expected) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_identical(found[name], expected[name])
    else:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", RUNS)
def test_what_was_pushed_answers_as_it_did_here(hub, client, runs, album, kind, way):
    expected = used(kind, str(runs[kind]), str(album / "picture.jpg"))
    found = client.run(used, kind, f"ada/{kind}-{way}", str(album / "picture.jpg"), token=ADA)
    assert_identical(found, expected)


@pytest.mark.parametrize("kind", RUNS)
def test_trainer_and_command_line_push_the_same(hub, runs, kind):
    trainer, command = (hub.repository(f"ada/{kind}-{way}").files for way in WAYS)
    assert {"config.json", "model.safetensors", "all_results.json", "run.json", "curves.png"} <= trainer.keys()
    assert command.pop("README.md").replace(b"-command", b"-trainer") == trainer.pop("README.md")
    assert command == trainer
    assert not [path for path in trainer if path.endswith((".py", ".bin", ".pt"))]


def test_token_of_the_run_is_in_nothing_that_was_published(hub, runs):
    commits = [commit for kind in RUNS for commit in hub.repository(f"ada/{kind}-trainer").commits.values()]
    assert not [file for commit in commits for file in commit.files.values() if ADA.encode() in file.content]


def run_card(repo_id: str, folder: str) -> int:
    """Let the Hub check a card, and run its code in a folder with picture.jpg; returns how many pieces there were."""
    card = ModelCard.load(repo_id, token=ADA)
    card.validate()
    blocks = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    os.chdir(folder)
    with mock.patch.dict(os.environ, {"HF_TOKEN": ADA}):
        for block in blocks:
            exec(block, {})
    return len(blocks)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", RUNS)
def test_pushed_card_is_valid_runs_and_has_the_numbers_of_the_results(hub, client, runs, album, kind, way):
    repo_id = f"ada/{kind}-{way}"
    assert client.run(run_card, repo_id, str(album)) >= 2
    files = hub.repository(repo_id).files
    card, results = ModelCard(files["README.md"].decode()), json.loads(files["all_results.json"])
    told = [result.metric_value for result in card.data.eval_results]
    assert told and all(value in results.values() for value in told)
    assert f"hf-vitfm verify {repo_id}" in card.text


def measured_again(repo_id: str):
    return verify(repo_id, token=ADA)


@pytest.mark.parametrize("kind", RUNS)
def test_numbers_of_a_pushed_run_are_confirmed(hub, client, runs, kind):
    record = json.loads((runs[kind] / "run.json").read_text())
    assert record["splits"].keys() == SPLITS[kind]
    assert record["world_size"] == 1 and len(record["loss_trace"]) == 2
    assert set(record["seeds"].values()) == {record["hyperparameters"]["seed"]}
    results = json.loads((runs[kind] / "all_results.json").read_text())
    assert record["evaluation"]["metrics"].items() <= results.items()
    result = client.run(measured_again, f"ada/{kind}-trainer")
    assert result.verdict == MATCHES, result
    assert all(check.found == pytest.approx(check.recorded, rel=1e-5) for check in result.metrics)
    assert not result.notes
