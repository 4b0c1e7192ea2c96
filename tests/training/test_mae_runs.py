"""Runs of MAETrainer from end to end: what each evaluation shows, and the same bits after a kill."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from hf_vitfm.evaluation.features import extract_features
from tests.training.mae_runs import make_mae, make_trainer
from tests.training.runs import make_images, read_checkpoint, run_process


STEPS = 6
OPTIONS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,  # 3 steps per epoch of 26 images
    "dataloader_num_workers": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "weight_decay": 0.05,
    "adam_beta2": 0.95,
    "ema_decay": 0.8,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


class DieBeforeStep(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def pretrain_until(directory: str, step: int | None = None, resume: bool = False) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # loader workers that have everything imported too
    data = {"eval_dataset": make_images(5), "labelled_datasets": (make_images(12), make_images(7))}
    model = make_mae(drop_path_rate=0.3, hidden_dropout_prob=0.1)
    trainer = make_trainer(directory, model=model, trainer_options=data, **OPTIONS)
    if step is not None:
        trainer.add_callback(DieBeforeStep(step))
    trainer.train(resume_from_checkpoint=resume)


def evaluations(checkpoint: Path) -> list[dict]:
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    names = ("step", "eval_loss", "eval_knn_top1")
    return [{name: entry[name] for name in names} for entry in log if "eval_loss" in entry]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_process(pretrain_until, str(whole)) == 0
    assert run_process(pretrain_until, str(broken), step=4) == -signal.SIGKILL
    assert run_process(pretrain_until, str(broken), resume=True) == 0
    name = f"checkpoint-{STEPS}"
    expected, found = read_checkpoint(whole / name), read_checkpoint(broken / name)
    assert found.keys() == expected.keys() and any(key.startswith("ema") for key in found)
    assert not [key for key in expected if not torch.equal(found[key], expected[key])]
    assert evaluations(broken / name) == evaluations(whole / name)
    assert [entry["step"] for entry in evaluations(whole / name)] == [2, 4, 6]


def labelled(count: int, seed: int) -> list[dict]:
    """Images of three brightnesses with much noise, for neighbours that are sometimes right."""
    rows, generator = [], torch.Generator().manual_seed(seed)
    for i in range(count):
        pixels = torch.randint(0, 200, (8, 8, 3), generator=generator, dtype=torch.uint8) + 6 * (i % 3)
        rows.append({"image": Image.fromarray(pixels.byte().numpy()).resize((32, 32)), "label": i % 3})
    return rows


BANK, QUERIES = 60, 40


def train_and_evaluate(directory: str, **options) -> dict:
    """What the evaluations of a run report, what one after it reports, and the pictures."""
    process = os.environ.get("RANK", "0")
    output_dir = Path(directory) / process
    data = {"eval_dataset": make_images(7), "labelled_datasets": (labelled(BANK, 1), labelled(QUERIES, 2))}
    trainer = make_trainer(output_dir, trainer_options=data, eval_strategy="steps", eval_steps=1, **options)
    trainer.train()
    names = ("eval_loss", "eval_knn_top1")
    during = [[entry[name] for name in names] for entry in trainer.state.log_history if "eval_loss" in entry]
    pictures = {path.name: path.read_bytes() for path in (output_dir / "reconstructions").glob("*")}
    after = trainer.evaluate()
    again = output_dir / "reconstructions" / "step-3.png"
    views = [
        extract_features(trainer.model, rows, trainer.eval_transform, pooling="mean")
        for rows in data["labelled_datasets"]
    ]
    return {
        "during": during,
        "after": [after[name] for name in names],
        "pictures": pictures,
        "picture after": again.read_bytes() if again.exists() else None,
        "features": [(features.numpy(), labels.numpy()) for features, labels in views],
    }


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_every_evaluation_reports_neighbours_and_draws_pictures(two_processes, tmp_path, ema_decay):
    from sklearn.neighbors import KNeighborsClassifier  # not in the processes that import this file

    options = {"ema_decay": ema_decay, "learning_rate": 0.5, "lr_scheduler_type": "constant"}
    run = train_and_evaluate(str(tmp_path / "one"), **options)
    assert sorted(run["pictures"]) == ["step-1.png", "step-2.png", "step-3.png"]
    assert len(set(run["pictures"].values())) == 3
    # After the training the model holds the weights that evaluations use, averaged or not.
    assert run["after"] == run["during"][-1]
    assert run["picture after"] == run["pictures"]["step-3.png"]
    assert len({loss for loss, _ in run["during"]}) == 3
    (bank, bank_labels), (queries, labels) = run["features"]
    neighbours = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distances: torch.from_numpy((1 - distances) / 0.07).exp().numpy()
    )
    expected = neighbours.fit(bank, bank_labels).score(queries, labels)
    assert run["after"][1] == pytest.approx(expected, abs=1e-6) and 0.2 < expected < 1
    if ema_decay is not None:
        first, second = two_processes.run(
            train_and_evaluate, str(tmp_path / "two"), per_device_train_batch_size=4, **options
        )
        for found in (first, second):
            assert found["during"] == [pytest.approx(values, rel=1e-4) for values in run["during"]]
        assert first["during"] == second["during"]
        assert sorted(first["pictures"]) == sorted(run["pictures"]) and not second["pictures"]
