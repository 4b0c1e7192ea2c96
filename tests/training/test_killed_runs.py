"""Runs killed at any moment go on to the same bits: weights, their average and the optimizer's state."""

import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback, ViTImageProcessor

from hf_vitfm import ImageClassificationTrainer
from hf_vitfm.data.sources.stream import open_stream
from hf_vitfm.training import checkpoints
from tests.data.streaming import write_shards
from tests.training.runs import make_args, make_images, make_model, read_checkpoint, run_process


STEPS = 14
OPTIONS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,  # 3 steps per epoch of 26 images
    "dataloader_num_workers": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "layer_decay": 0.8,
    "ema_decay": 0.8,
    "max_grad_norm": 1.0,
    "label_smoothing_factor": 0.1,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "crop_scale": [0.3, 1.0],
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}
# Where each of the ten processes dies, one after the other: (step, place).
DEATHS = [
    (1, "after the step"),  # before there is a checkpoint
    (3, "after the step"),
    (4, "before the first file"),
    (4, "weights half written"),
    (6, "before the optimizer is written"),
    (6, "before the name is given"),
    (8, "before the old one is deleted"),
    (10, "old one half deleted"),
    (11, "after the step"),
    (13, "before the step"),
]


def die(*args, **kwargs) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int, trainer, function, before=die, after=None):
    """`function`, which dies before or after its work at a step."""

    def wrapped(*args, **kwargs):
        if trainer.state.global_step != step:
            return function(*args, **kwargs)
        if after is None:
            return before(*args, **kwargs)
        function(*args, **kwargs)
        return after(*args, **kwargs)

    return wrapped


def cut_in_half_and_die(directory, *args, **kwargs) -> None:
    weights = Path(directory) / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    die()


def delete_half_and_die(path, *args, **kwargs) -> None:
    for file in sorted(Path(path).iterdir())[::2]:
        file.unlink()
    die()


class DieAt(TrainerCallback):
    def __init__(self, step: int, place: str):
        self.step, self.place = step, place

    def on_step_begin(self, args, state, control, **kwargs):
        if self.place == "before the step" and state.global_step == self.step - 1:
            die()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.place == "after the step" and state.global_step == self.step - 1:
            die()


def arrange_death(trainer, step: int, place: str) -> None:
    here = partial(at_step, step, trainer)
    if place == "before the first file":
        trainer.save_model = here(trainer.save_model)
    elif place == "weights half written":
        trainer.save_model = here(trainer.save_model, after=cut_in_half_and_die)
    elif place == "before the optimizer is written":
        trainer._save_optimizer_and_scheduler = here(trainer._save_optimizer_and_scheduler)
    elif place == "before the name is given":
        checkpoints.delete = here(checkpoints.delete)
    elif place == "before the old one is deleted":
        checkpoints.rotate = here(checkpoints.rotate)
    elif place == "old one half deleted":
        checkpoints.shutil.rmtree = rmtree_of(trainer, step, checkpoints.shutil.rmtree)
    else:
        trainer.add_callback(DieAt(step, place))


def rmtree_of(trainer, step: int, function):
    def rmtree(path, *args, **kwargs):
        if (
            trainer.state.global_step == step
            and Path(path).name == f".deleting-checkpoint-{step - 2}"
            and Path(path).exists()
        ):
            delete_half_and_die(path)
        function(path, *args, **kwargs)

    return rmtree


def train_until(directory: str, rows, step: int | None = None, place: str = "", **options) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # loader workers that have everything imported too
    trainer = ImageClassificationTrainer(
        model=make_model(drop_path_rate=0.3, hidden_dropout_prob=0.1, num_labels=32),
        args=make_args(directory, **{**OPTIONS, **options}),
        train_dataset=open_stream(rows, window=8) if isinstance(rows, str) else rows,
        processing_class=ViTImageProcessor(size={"height": 8, "width": 8}),
    )
    if step is not None:
        arrange_death(trainer, step, place)
    trainer.train(resume_from_checkpoint=checkpoints.last_checkpoint(directory) is not None)


run = partial(run_process, train_until)


@pytest.mark.parametrize("is_stream", [False, True], ids=["rows", "stream"])
def test_a_run_killed_ten_times_equals_one_that_was_not(tmp_path, is_stream):
    rows = make_images()
    if is_stream:
        rows = str(tmp_path / "shards")
        write_shards(tmp_path / "shards", [12, 16], "parquet")
    assert run(str(tmp_path / "whole"), rows) == 0
    broken = tmp_path / "broken"
    for step, place in DEATHS:
        assert run(str(broken), rows, step, place) == -signal.SIGKILL, (step, place)
    assert run(str(broken), rows) == 0
    expected = read_checkpoint(tmp_path / "whole" / f"checkpoint-{STEPS}")
    found = read_checkpoint(broken / f"checkpoint-{STEPS}")
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing
    assert [path.name for path in broken.iterdir()] == [f"checkpoint-{STEPS}"]
