"""What a Trainer publishes while it trains and when it is done, by its strategy, and that no Hub ends a training."""

import shutil
from pathlib import Path

import pytest
import transformers
from huggingface_hub import snapshot_download

import hf_vitfm
from hf_vitfm import ViTForImageClassification, push_to_hub
from hf_vitfm.training.report import report_classification
from tests.hub.client import at_once
from tests.hub.faults import Fault
from tests.hub.server import token_of
from tests.hub.test_push import contents
from tests.tiny import tiny_config
from tests.training.runs import make_args, make_images


ADA = token_of("ada")
SENT = {  # what of a run with checkpoints after steps 2 and 4 is published beside the model
    "end": set(),
    "every_save": set(),
    "checkpoint": {"last-checkpoint"},
    "all_checkpoints": {"checkpoint-2", "checkpoint-4"},
}


def make_trainer(output_dir: Path, strategy: str):
    images = make_images()
    model = ViTForImageClassification(tiny_config(id2label=dict(enumerate("abc")), label2id=None, num_labels=3))
    return hf_vitfm.ImageClassificationTrainer(
        model=model,
        args=make_args(
            output_dir,
            push_to_hub=True,
            hub_model_id=f"ada/{strategy}",
            hub_token=ADA,
            hub_strategy=strategy,
            hub_always_push=True,
            save_strategy="steps",
            save_steps=2,
            max_steps=4,
            learning_rate=0.01,
        ),
        train_dataset=images,
        eval_dataset=images,
        processing_class=transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    )


def train_and_push(output_dir: Path, strategy: str) -> dict:
    trainer = make_trainer(output_dir, strategy)
    trainer.train()
    dataset = {"name": "Noise", "id": None, "license": None, "evaluation_split": "test"}
    command = f"python recipes/vit/finetune.py --hub_token {ADA} --dataset /srv/ada/images"
    run = {"recipe": "recipes/vit/finetune.py", "config": "noise.yaml", "command": command, "base_model": None}
    report_classification(trainer, dataset, run)
    again = push_to_hub(output_dir, f"ada/{strategy}", token=ADA)
    loaded = ViTForImageClassification.from_pretrained(output_dir).push_to_hub(f"ada/{strategy}", token=ADA)
    return {"again": again.oid, "loaded": loaded.oid}


@pytest.mark.parametrize("strategy", SENT)
def test_trainer_publishes_what_push_to_hub_does(hub, client, tmp_path, strategy):
    commits = client.run(train_and_push, tmp_path / "run", strategy)
    repository = hub.repository(f"ada/{strategy}")
    last = repository.branches["main"]
    assert repository.private and last.title == "End of training" and set(commits.values()) == {last.sha}
    published = contents(repository)
    assert {"model.safetensors", "all_results.json", "run.json", "confusion.png", "README.md"} <= set(published)
    titles = [commit.title for commit in repository.commits.values()]
    assert titles.count("End of training") == 1
    assert ("Training in progress, step 2" in titles) == (strategy != "end")
    assert not {"training_args.bin", "optimizer.pt", "trainer_state.json"} & set(published)
    folders = {path.partition("/")[0] for path in published if "/" in path}
    assert folders == SENT[strategy]
    for folder in folders:
        assert f"{folder}/optimizer.pt" in published and f"{folder}/training_args.bin" not in published
    assert "Top-1" in published["README.md"].decode() and "/srv/ada" not in published["README.md"].decode()
    assert not list((tmp_path / "run").glob(".push-*"))


def train_on(output_dir: Path) -> None:
    files = snapshot_download("ada/all_checkpoints", allow_patterns="checkpoint-2/*", token=ADA)
    shutil.copytree(f"{files}/checkpoint-2", output_dir / "checkpoint-2")
    make_trainer(output_dir, "all_checkpoints").train(resume_from_checkpoint=True)


def test_training_goes_on_from_a_published_checkpoint_as_if_it_had_never_stopped(hub, client, tmp_path):
    expected = contents(hub.repository("ada/all_checkpoints"))["checkpoint-4/model.safetensors"]
    client.run(train_on, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-4" / "model.safetensors").read_bytes() == expected


def train(output_dir: Path, strategy: str) -> int:
    trainer = make_trainer(output_dir, strategy)
    trainer.train()
    return trainer.state.global_step


def test_training_goes_on_while_the_hub_fails(hub, client, tmp_path):
    hub.contents.create("ada/checkpoint")
    before = hub.repository("ada/checkpoint").branches["main"]
    hub.faults.append(Fault("POST .*/(preupload|commit)/", 500, times=1000))
    assert client.run(at_once, train, tmp_path / "run", "checkpoint") == 4
    assert hub.repository("ada/checkpoint").branches["main"] is before
    log = Path(client.log).read_text()
    assert "checkpoint-2 was not published: Nothing was published in ada/checkpoint." in log
    assert (tmp_path / "run" / "checkpoint-4").is_dir() and not list((tmp_path / "run").glob(".push-*"))


def test_token_is_in_nothing_that_was_printed_or_published(hub, client):
    """After all that the tests of this module did."""
    assert ADA not in Path(client.log).read_text()
    commits = [commit for repository in hub.contents.repositories.values() for commit in repository.commits.values()]
    assert not [file for commit in commits for file in commit.files.values() if ADA.encode() in file.content]
