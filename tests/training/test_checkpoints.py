"""Checkpoints: what counts as whole, what is deleted, and how a run ends and goes on when something breaks."""

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch
import transformers
from transformers import TrainerCallback

from hf_vitfm import ImageClassificationTrainer
from hf_vitfm.training import checkpoints
from hf_vitfm.training.resumable import TrainingStopped
from tests.training.runs import TINY, fresh_processes, make_args, make_model, make_rows, read_checkpoint


EVERY_STEP = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "learning_rate": 1e-3}


def make_trainer(directory, model=None, rows=None, eval_rows=None, **options) -> ImageClassificationTrainer:
    return ImageClassificationTrainer(
        model=model or make_model(),
        args=make_args(directory, **{**EVERY_STEP, **options}),
        train_dataset=rows or make_rows(),
        eval_dataset=eval_rows,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with four checkpoints."""
    directory = tmp_path_factory.mktemp("finished")
    make_trainer(directory, ema_decay=0.9).train()
    return directory


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def truncate(path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: truncate(folder / "model.safetensors"),
        lambda folder: truncate(folder / "ema.safetensors", 0.99),
        lambda folder: truncate(folder / "optimizer.pt"),
        lambda folder: (folder / "optimizer.pt").unlink(),
        lambda folder: (folder / "rng_state.pth").write_bytes(b""),
        lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 4'),
        lambda folder: [path.unlink() for path in folder.iterdir()],
        lambda folder: (shutil.rmtree(folder), folder.write_text("not a folder")),
    ],
    ids=["weights", "average", "optimizer", "no optimizer", "random state", "state", "empty", "a file"],
)
def test_the_last_whole_checkpoint_is_found_beside_a_damaged_one(run, damage):
    damage(run / "checkpoint-4")
    (run / "checkpoint-best").mkdir()
    (run / ".writing-checkpoint-9").mkdir()
    shutil.copytree(run / "checkpoint-3", run / "old-checkpoint-8")
    assert checkpoints.last_checkpoint(run) == run / "checkpoint-3"
    assert "checkpoint-4" in {path.name for path in run.iterdir()}  # looking deletes nothing


def test_shards_named_by_an_index_have_to_be_there(run):
    folder = run / "checkpoint-4"
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoints.what_is_missing(folder) == "model-00002-of-00002.safetensors is missing"
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    assert checkpoints.what_is_missing(folder) is None


def test_nothing_to_go_on_from_is_said(tmp_path, run):
    with pytest.raises(ValueError, match="no checkpoint that is whole"):
        make_trainer(tmp_path / "empty").train(resume_from_checkpoint=True)
    truncate(run / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"optimizer.pt is broken.*checkpoint-3"):
        make_trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-4"))
    with pytest.raises(ValueError, match="no folder"):
        make_trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-7"))


@pytest.mark.parametrize(
    ("limit", "keep", "left"), [(1, [], [4]), (2, [1], [1, 4]), (1, [1, 4], [1, 4]), (None, [], 4)]
)
def test_rotation_keeps_the_newest_and_what_it_is_told(run, limit, keep, left):
    checkpoints.rotate(run, limit, [run / f"checkpoint-{step}" for step in keep])
    expected = [1, 2, 3, 4] if limit is None else left
    assert [int(path.name[11:]) for path in checkpoints.complete_checkpoints(run)] == expected


def test_a_run_keeps_the_best_checkpoint_and_the_last(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_rows=make_rows(9, seed=1),
        save_total_limit=2,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the loss falls, so the first is "best"
    )
    trainer.train()
    assert {path.name for path in checkpoints.complete_checkpoints(tmp_path)} == {"checkpoint-1", "checkpoint-4"}
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def assert_goes_on_as(finished, directory, **options) -> None:
    trainer = make_trainer(directory, make_model(initializer_range=0.5), **options)
    trainer.train(resume_from_checkpoint=True)
    expected = read_checkpoint(finished / "checkpoint-4")
    found = read_checkpoint(directory / "checkpoint-4")
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_sigterm_ends_the_run_with_a_checkpoint_and_it_goes_on(finished, tmp_path, strategy):
    trainer = make_trainer(tmp_path, ema_decay=0.9, save_strategy=strategy)
    handler = signal.getsignal(signal.SIGTERM)
    trainer.add_callback(At(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(TrainingStopped, match=r"SIGTERM at step 3.*checkpoint-3.*resume_from_checkpoint=True"):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert_goes_on_as(finished, tmp_path, ema_decay=0.9)


def test_a_loss_that_is_not_finite_names_the_checkpoint_from_which_the_run_goes_on(finished, tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.9)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: (
        compute_loss(*args, **kwargs) * (float("nan") if trainer.state.global_step == 3 else 1)
    )
    with pytest.raises(FloatingPointError, match=r"nan at step 4.*checkpoint-3; go on with"):
        trainer.train()
    assert_goes_on_as(finished, tmp_path, ema_decay=0.9)


def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint(finished, tmp_path, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = make_trainer(tmp_path, ema_decay=0.9)
    trainer.add_callback(At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))))
    try:
        with pytest.raises(OSError, match=r"step 3 could not be written.*checkpoint-2"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert "checkpoint-2; go on with" in caplog.text
    assert_goes_on_as(finished, tmp_path, ema_decay=0.9)


class DeadlyRows(list):
    """Rows of which one kills the loader's worker that reads it."""

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None and (self.directory / "checkpoint-2").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_dead_loader_worker_ends_the_run_with_the_last_good_checkpoint(finished, tmp_path, caplog):
    rows = DeadlyRows(make_rows())
    rows.directory = tmp_path
    options = {"ema_decay": 0.9, "dataloader_num_workers": 1, "dataloader_prefetch_factor": 1}
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="worker"):
        make_trainer(tmp_path, rows=rows, **options).train()
    assert "The last good checkpoint is" in caplog.text
    assert_goes_on_as(finished, tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_device_train_batch_size": 4}, "global_batch_size was 8 and is 4"),
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"rows": 30}, "train_rows was 27 and is 30"),
    ],
)
def test_a_run_does_not_go_on_with_other_samples(run, change, message):
    rows = make_rows(change.pop("rows", 27))
    with pytest.raises(ValueError, match=message):
        make_trainer(run, rows=rows, max_steps=6, **change).train(resume_from_checkpoint=True)


def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(run):
    (run / ".writing-checkpoint-9").mkdir()
    shutil.copytree(run / "checkpoint-1", run / ".deleting-checkpoint-1")
    make_trainer(run, ema_decay=0.9, max_steps=5).train(resume_from_checkpoint=True)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_transformers_own_model_goes_on_with_its_weights(tmp_path):
    """Trainer alone leaves the encoder at random here, with no more than a warning."""

    def trainer(**fields):
        torch.manual_seed(0)
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**{**TINY, **fields}))
        return make_trainer(tmp_path, model)

    whole = trainer()
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer(initializer_range=0.5)
    again.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight, rtol=0, atol=0, msg=name)


def poison(trainer, step: int) -> None:
    """Make one gradient of a step infinite; its loss is finite."""
    training_step = trainer.training_step

    def poisoned(model, *args):
        loss = training_step(model, *args)
        if trainer.state.global_step == step - 1:
            next(model.parameters()).grad.fill_(torch.inf)
        return loss

    trainer.training_step = poisoned


def test_weights_that_are_not_finite_are_never_saved(finished, tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.9, save_total_limit=1)
    poison(trainer, 3)
    with pytest.raises(FloatingPointError, match=r"not finite after step 3.*checkpoint-2; go on with"):
        trainer.train()
    assert_goes_on_as(finished, tmp_path, ema_decay=0.9)


def test_a_last_step_that_is_not_finite_is_said_without_a_checkpoint_too(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="no")
    poison(trainer, 4)
    with pytest.raises(FloatingPointError, match="not finite after step 4"):
        trainer.train()


def test_a_finished_run_is_not_trained_further(run):
    before = read_checkpoint(run / "checkpoint-4")
    trainer = make_trainer(run, make_model(initializer_range=0.5), ema_decay=0.9, lr_scheduler_type="constant")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, before[f"ema.safetensors: {name}"]), name
    assert not (run / "checkpoint-5").exists()


def test_a_fresh_run_does_not_mix_with_an_earlier_one(run):
    with pytest.raises(FileExistsError, match=r"checkpoint-1, checkpoint-2.*resume_from_checkpoint=True"):
        make_trainer(run).train()


@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "epoch"},
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "dataloader_num_workers": 1,
            "dataloader_persistent_workers": True,
        },
    ],
    ids=["evaluation after a checkpoint", "persistent workers"],
)
def test_loaders_leave_no_trace_in_random_numbers(tmp_path, options):
    """Three steps make an epoch; checkpoint-3 lies at its end, before the evaluation."""

    def trainer(directory):
        model = make_model(hidden_dropout_prob=0.2, drop_path_rate=0.2)
        return make_trainer(directory, model, eval_rows=make_rows(9, seed=1), **{"max_steps": 6, **options})

    trainer(tmp_path / "whole").train()
    expected = read_checkpoint(tmp_path / "whole" / "checkpoint-6")
    for step in (2, 3):
        shutil.copytree(tmp_path / "whole", tmp_path / f"from {step}")
        for later in range(step + 1, 7):
            shutil.rmtree(tmp_path / f"from {step}" / f"checkpoint-{later}")
        trainer(tmp_path / f"from {step}").train(resume_from_checkpoint=True)
        found = read_checkpoint(tmp_path / f"from {step}" / "checkpoint-6")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_stop_keeps_its_checkpoint_beside_the_best(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_rows=make_rows(9, seed=1),
        max_steps=6,
        save_total_limit=1,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the loss falls, so the first is "best"
    )
    trainer.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(TrainingStopped, match="checkpoint-4"):
        trainer.train()
    assert {path.name for path in checkpoints.complete_checkpoints(tmp_path)} == {"checkpoint-1", "checkpoint-4"}
    assert trainer.args.save_total_limit == 1 and trainer.args.load_best_model_at_end


def stop_with_workers(directory: str) -> str:
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    trainer = make_trainer(directory, rows=make_rows(300), max_steps=12, dataloader_num_workers=2, save_steps=100)
    kill = ["kill", "-TERM", "--", f"-{os.getpgrp()}"]  # from outside the group, as a cluster does it
    trainer.add_callback(At(2, lambda: (subprocess.run(kill, start_new_session=True), time.sleep(1))))
    with pytest.raises(TrainingStopped, match="checkpoint-3"):
        trainer.train()


def test_a_signal_to_the_whole_group_leaves_the_workers_to_finish_the_step(tmp_path):
    process = fresh_processes().Process(target=stop_with_workers, args=(str(tmp_path),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert checkpoints.last_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_signal_in_the_last_step_takes_its_usual_course(tmp_path):
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        trainer = make_trainer(tmp_path, save_strategy="no")
        trainer.add_callback(At(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        trainer.train()
        assert heard == [True]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_checkpoints_of_weights_alone_are_rotated_too(tmp_path):
    make_trainer(tmp_path, save_only_model=True, save_total_limit=2).train()
    assert [path.name for path in checkpoints.numbered_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]


def test_rotation_deletes_a_broken_checkpoint_before_a_good_one(run):
    truncate(run / "checkpoint-4" / "optimizer.pt")
    checkpoints.rotate(run, 2, [run / "checkpoint-3"])
    assert [path.name for path in checkpoints.numbered_checkpoints(run)] == ["checkpoint-2", "checkpoint-3"]


def test_every_file_and_folder_is_synced_before_the_name_is_given(tmp_path, monkeypatch):
    synced, sync = [], checkpoints._sync
    monkeypatch.setattr(checkpoints, "_sync", lambda path: (synced.append(path), sync(path)))
    checkpoint = tmp_path / "checkpoint-1"
    staging = checkpoints.staging_path(checkpoint)
    (staging / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (staging / name).write_text("x")
    checkpoints.commit(checkpoint)
    assert {staging / "a", staging / "inner" / "b", staging, staging / "inner"} == set(synced[:-1])
    assert synced[-1] == tmp_path and (checkpoint / "inner" / "b").exists()
