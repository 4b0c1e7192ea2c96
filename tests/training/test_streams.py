"""Training on a stream: through Trainer's own loop, on two processes, and on after a stop."""

import pytest
import torch
from transformers import ViTImageProcessor

from hf_vitfm import ImageClassificationTrainer
from hf_vitfm.data.sources.stream import open_stream
from hf_vitfm.training.recipe import DataArguments
from tests.data.streaming import write_shards
from tests.training.runs import make_args, make_model


def make_trainer(folder, output_dir, **options) -> ImageClassificationTrainer:
    options = {"max_steps": 8, "per_device_train_batch_size": 4, "dataloader_num_workers": 2, **options}
    return ImageClassificationTrainer(
        model=make_model(num_labels=32),
        args=make_args(output_dir, gradient_accumulation_steps=2, **options),
        train_dataset=open_stream(folder, window=8),
        eval_dataset=open_stream(folder, "test", window=8),
        processing_class=ViTImageProcessor(size={"height": 8, "width": 8}),
    )


def train(folder, output_dir, resume=None, **options) -> dict:
    """Train; the labels of every micro-batch and the weights."""
    trainer = make_trainer(folder, output_dir, **options)
    seen = []
    training_step = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: (
        seen.append(inputs["labels"].tolist()) or training_step(model, inputs, *rest)
    )
    trainer.train(resume_from_checkpoint=resume)
    weights = {name: value.clone().numpy() for name, value in trainer.model.state_dict().items()}
    return {"seen": seen, "weights": weights}


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "data", [12, 20], "parquet")
    write_shards(tmp_path / "data", [9], "parquet", split="test")
    return str(tmp_path / "data")


def test_an_epoch_takes_every_row_once_and_the_next_another_order(folder, tmp_path):
    run = train(folder, tmp_path / "run")
    first, second = sum(run["seen"][:8], []), sum(run["seen"][8:], [])
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second


def test_a_run_goes_on_where_it_stopped_to_the_same_weights(folder, tmp_path):
    whole = train(folder, tmp_path / "run", save_strategy="steps", save_steps=3)
    rest = train(folder, tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-3"))
    assert rest["seen"] == whole["seen"][6:]
    assert all((rest["weights"][name] == value).all() for name, value in whole["weights"].items())


def test_processes_share_an_epoch(two_processes, folder, tmp_path):
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "dataloader_num_workers": 0}
    runs = two_processes.run(train, folder, str(tmp_path / "run"), **options)
    assert sorted(sum(runs[0]["seen"] + runs[1]["seen"], [])) == list(range(32))
    assert all((runs[0]["weights"][name] == value).all() for name, value in runs[1]["weights"].items())


@pytest.mark.parametrize("options", [{"dataloader_drop_last": False}, {"repeated_augmentation": 2}])
def test_what_a_stream_cannot_do_is_refused(folder, tmp_path, options):
    with pytest.raises(ValueError, match="Set `dataloader_drop_last=True` and `repeated_augmentation=1`"):
        make_trainer(folder, tmp_path, **options).get_train_dataloader()


def test_a_run_goes_on_with_as_many_readers_only(folder, tmp_path):
    train(folder, tmp_path / "run", max_steps=1, save_strategy="steps", save_steps=1, dataloader_num_workers=0)
    with pytest.raises(ValueError, match=r"readers \(processes x workers\) was 1 x 1 and is 1 x 2"):
        train(folder, tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-1"))


def test_a_recipe_streams_on_request(folder):
    train_rows, eval_rows, split = DataArguments(folder, streaming=True).load(seed=0)
    assert (len(train_rows), len(eval_rows), split) == (32, 9, "test")
    with pytest.raises(ValueError, match="no shards to evaluate on"):
        DataArguments(folder, streaming=True, eval_split="validation").load(seed=0)
    with pytest.raises(ValueError, match="`holdout`"):
        DataArguments(folder, streaming=True, holdout=0.1).load(seed=0)


def test_throughput_is_logged_with_the_loss(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, max_steps=3)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    assert all(entry["images_per_second"] > 0 and 0 <= entry["loader_wait"] <= 1 for entry in logs)
    assert trainer.evaluate()["eval_top1"] >= 0
    assert not any("images_per_second" in entry for entry in trainer.state.log_history if "loss" not in entry)
    assert torch.isfinite(torch.tensor([entry["loss"] for entry in logs])).all()
