"""CLIP's training, interrupted or killed with gradient caching and dropout on, goes on to the same bits."""

import os
import shutil
import signal

import pytest
import torch
from transformers import TrainerCallback

from hf_vitfm.training import checkpoints
from tests.training.clip_runs import RANDOM, make_model, make_pairs, make_trainer
from tests.training.runs import fresh_processes, read_checkpoint


STEPS = 7  # of epochs of 3
OPTIONS = {
    "max_steps": STEPS,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "ema_decay": 0.8,
    "per_device_train_batch_size": 8,
    "grad_cache_chunk_size": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}


class DieIn(TrainerCallback):
    """Kills the process between two chunks of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def run(directory: str, last_step: int | None = None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = make_pairs(dtype=torch.float32)
    trainer = make_trainer(directory, make_model(torch.float32, **RANDOM), rows, **OPTIONS)
    if last_step is not None:
        trainer.add_callback(DieIn(last_step))
    trainer.train(resume_from_checkpoint=checkpoints.last_checkpoint(directory) is not None)


def assert_same_end(found, expected):
    found, expected = (read_checkpoint(directory / f"checkpoint-{STEPS}") for directory in (found, expected))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory, threads = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    run(str(directory))
    torch.set_num_threads(threads)
    return directory


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, whole, step):
    shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    torch.rand(3)  # another state than that which the run began with
    threads = torch.get_num_threads()
    run(str(tmp_path))
    torch.set_num_threads(threads)
    assert_same_end(tmp_path, whole)


def test_a_run_killed_between_two_chunks_goes_on_to_the_same_bits(tmp_path, whole):
    codes = []
    for step in (5, None):
        process = fresh_processes().Process(target=run, args=(str(tmp_path), step))
        process.start()
        process.join(120)
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL, 0]
    assert_same_end(tmp_path, whole)
