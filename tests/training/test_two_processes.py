"""N processes compute what one computes: loss, gradients (as weights after SGD) and metrics."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessor

from hf_vitfm import ImageClassificationTrainer
from hf_vitfm.data.collators import collate_labelled
from hf_vitfm.training.resumable import TrainingStopped
from tests.training.runs import make_args, make_images, make_model, make_rows, read_checkpoint, train


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(ours - reference) / max(np.linalg.norm(reference), 1e-30))


def assert_equal_runs(runs, reference, tolerance: float, skip_key_bias: bool = False) -> None:
    losses = np.mean([run["losses"] for run in runs], axis=0)
    assert relative_error(losses, reference["losses"]) < tolerance
    for run in runs:
        for name, expected in reference["weights"].items():
            actual = run["weights"][name]
            if skip_key_bias and name.endswith("qkv.bias"):  # its true gradient is zero: Adam amplifies rounding
                keep = np.r_[0 : len(actual) // 3, 2 * len(actual) // 3 : len(actual)]
                actual, expected = actual[keep], expected[keep]
            assert relative_error(actual, expected) < tolerance, name


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one_in_float64(two_processes, tmp_path, soft, accumulation):
    reference = train(tmp_path, soft=soft)
    split = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    runs = two_processes.run(train, str(tmp_path), soft=soft, **split)
    assert reference["steps"] == 3
    assert_equal_runs(runs, reference, 1e-10)


@pytest.mark.parametrize("options", [{"label_smoothing_factor": 0.1, "max_grad_norm": 0.01}, {"layer_decay": 0.7}])
def test_accumulation_equals_one_batch_in_float64(tmp_path, options):
    reference = train(tmp_path, **options)
    run = train(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert_equal_runs([run], reference, 1e-10)


def test_two_processes_equal_one_in_float32(two_processes, tmp_path):
    reference = train(tmp_path, double=False)
    assert_equal_runs(
        two_processes.run(train, str(tmp_path), double=False, per_device_train_batch_size=4), reference, 1e-5
    )


def test_two_processes_equal_one_with_adamw_and_smoothing(two_processes, tmp_path):
    options = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1, "label_smoothing_factor": 0.1}
    reference = train(tmp_path, **options)
    runs = two_processes.run(train, str(tmp_path), per_device_train_batch_size=4, **options)
    assert_equal_runs(runs, reference, 1e-10, skip_key_bias=True)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_two_processes_equal_one_with_class_weights(two_processes, tmp_path, soft):
    options = {"class_weights": "balanced", "imbalanced": True, "soft": soft}
    reference = train(tmp_path, **options)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    runs = two_processes.run(train, str(tmp_path), **options, **split)
    assert_equal_runs(runs, reference, 1e-10)


def test_evaluation_shards_rows_exactly(two_processes, tmp_path):
    reference = train(tmp_path, eval_rows=13, per_device_eval_batch_size=4)["metrics"]
    for run in two_processes.run(train, str(tmp_path), eval_rows=13, per_device_eval_batch_size=4):
        metrics = run["metrics"]
        np.testing.assert_allclose(metrics.pop("predictions"), reference["predictions"], rtol=1e-10, atol=1e-12)
        assert metrics == pytest.approx({key: reference[key] for key in metrics}, rel=1e-6)


def evaluate_several_labels(output_dir) -> dict:
    from hf_vitfm import ImageClassificationTrainer
    from tests.training.runs import make_args, make_model, make_rows

    rows = [{**row, "label": [i % 2, float(i % 3 == 0), 1.0]} for i, row in enumerate(make_rows(13))]
    rows[4]["label"][1] = float("nan")
    args = make_args(output_dir, per_device_eval_batch_size=4)
    model = make_model(problem_type="multi_label_classification")
    metrics = ImageClassificationTrainer(model=model, args=args, eval_dataset=rows).evaluate()
    return {name: metrics[f"eval_{name}"] for name in ("loss", "mean_average_precision", "micro_f1", "macro_f1")}


def test_several_labels_are_measured_over_both_processes(two_processes, tmp_path):
    reference = evaluate_several_labels(tmp_path)
    for metrics in two_processes.run(evaluate_several_labels, str(tmp_path)):
        assert metrics == pytest.approx(reference, rel=1e-6)


def keep_incomplete_batches(output_dir) -> str:
    try:
        train(output_dir, dataloader_drop_last=False)
    except ValueError as error:
        return str(error)
    return "finished"


def test_an_incomplete_global_batch_is_refused_on_two_processes(two_processes, tmp_path):
    for message in two_processes.run(keep_incomplete_batches, str(tmp_path)):
        assert "dataloader_drop_last=True" in message


def ending_of(trainer) -> str:
    """What the error says that ends a training."""
    try:
        trainer.train()
    except (FloatingPointError, OSError, TrainingStopped) as error:
        return str(error)
    return "finished"


def diverge(output_dir, rank_of_nan: int) -> str:
    rows = make_rows(8)
    if torch.distributed.get_rank() == rank_of_nan:
        rows = [{**row, "pixel_values": row["pixel_values"] * float("nan")} for row in rows]
    args = make_args(output_dir, per_device_train_batch_size=4)
    trainer = ImageClassificationTrainer(model=make_model(), args=args, train_dataset=rows)
    return ending_of(trainer)


def test_a_loss_that_is_not_finite_on_one_process_stops_both(two_processes, tmp_path):
    healthy, broken = two_processes.run(diverge, str(tmp_path), 1)
    assert "The loss is not finite on another process at step 1" in healthy
    assert "The loss is nan at step 1" in broken


def train_with_checkpoints(directory: str, resume: bool, **options) -> dict:
    args = make_args(
        directory,
        max_steps=8,
        optim="adamw_torch",
        learning_rate=1e-3,
        ema_decay=0.9,
        save_strategy="steps",
        save_steps=4,
        **options,
    )
    model, rows = make_model(torch.float64), make_rows(dtype=torch.float64)
    trainer = ImageClassificationTrainer(model=model, args=args, train_dataset=rows)
    order = record_order(trainer)
    trainer.train(resume_from_checkpoint=resume)
    state = read_checkpoint(f"{directory}/checkpoint-8")
    return {"samples": order, "state": state, "random": torch.rand(4).tolist()}


def record_order(trainer) -> list[list[int]]:
    """The first pixel of every image that the model sees, by step."""
    seen, compute_loss = [], trainer.compute_loss

    def record(model, inputs, *args, **kwargs):
        seen.append(inputs["pixel_values"][:, 0, 0, 0].tolist())
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = record
    return seen


def test_a_run_of_one_process_goes_on_with_two(two_processes, tmp_path):
    """The same samples in the same global batches, and the same weights, average and optimizer."""
    whole = train_with_checkpoints(str(tmp_path / "whole"), resume=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "split")
    shutil.rmtree(tmp_path / "split" / "checkpoint-8")
    halves = two_processes.run(
        train_with_checkpoints, str(tmp_path / "split"), resume=True, per_device_train_batch_size=4
    )
    assert halves[0]["random"] != halves[1]["random"]  # dropout is drawn anew, differently in both
    joined = [first + second for first, second in zip(*(half["samples"] for half in halves), strict=True)]
    assert joined == whole["samples"][4:]
    for name, expected in whole["state"].items():
        if not name.endswith("qkv.bias"):  # the key third has no true gradient: Adam amplifies rounding
            torch.testing.assert_close(halves[0]["state"][name], expected, rtol=1e-9, atol=1e-12, msg=name)


def stop_one(directory: str, rank_of_signal: int) -> str:
    args = make_args(directory, max_steps=5, per_device_train_batch_size=4, save_strategy="steps", save_steps=10)
    trainer = ImageClassificationTrainer(model=make_model(), args=args, train_dataset=make_rows())
    compute_loss = trainer.compute_loss

    def signal_at_step_2(*args, **kwargs):
        if trainer.state.global_step == 1 and torch.distributed.get_rank() == rank_of_signal:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = signal_at_step_2
    return ending_of(trainer)


def test_a_signal_to_one_process_stops_both_after_the_same_step(two_processes, tmp_path):
    for message in two_processes.run(stop_one, str(tmp_path), 1):
        assert message.startswith(f"SIGTERM at step 2. The last good checkpoint is {tmp_path}/checkpoint-2")


def fail_to_save(directory: str, rank_of_failure: int) -> str:
    args = make_args(directory, per_device_train_batch_size=4, save_strategy="steps", save_steps=2)
    trainer = ImageClassificationTrainer(model=make_model(), args=args, train_dataset=make_rows())
    save_rng_state = trainer._save_rng_state

    def full(output_dir):
        if torch.distributed.get_rank() == rank_of_failure:
            raise OSError(28, "No space left on device")
        save_rng_state(output_dir)

    trainer._save_rng_state = full
    return ending_of(trainer)


@pytest.mark.parametrize("rank_of_failure", [0, 1])
def test_a_failure_to_save_on_one_process_ends_both(two_processes, tmp_path, rank_of_failure):
    messages = two_processes.run(fail_to_save, str(tmp_path), rank_of_failure)
    assert "No space left on device" in messages[rank_of_failure]
    assert "another process failed" in messages[1 - rank_of_failure]
    assert not [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name]


AUGMENTED = {
    "crop_scale": [0.3, 1.0],
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "label_smoothing_factor": 0.1,
    "repeated_augmentation": 3,
}


def train_augmented(directory: str, **options) -> dict[str, torch.Tensor]:
    """Images are made in float32; everything after them is float64."""
    trainer = ImageClassificationTrainer(
        model=make_model(torch.float64),
        args=make_args(directory, max_steps=5, **AUGMENTED, **options),
        train_dataset=make_images(),
        processing_class=ViTImageProcessor(size={"height": 8, "width": 8}),
        data_collator=collate_in_float64,
    )
    trainer.train()
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def collate_in_float64(rows):
    batch = collate_labelled(rows)
    return {**batch, "pixel_values": batch["pixel_values"].double()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one_with_augmentation_and_mixing(two_processes, tmp_path, accumulation):
    expected = train_augmented(str(tmp_path))
    plain = train_augmented(str(tmp_path), mix_probability=0.0)
    assert relative_error(plain["classifier.weight"].numpy(), expected["classifier.weight"].numpy()) > 1e-3
    split = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    for found in two_processes.run(train_augmented, str(tmp_path), **split):
        for name, weight in expected.items():
            assert relative_error(found[name].numpy(), weight.numpy()) < 1e-10, name
