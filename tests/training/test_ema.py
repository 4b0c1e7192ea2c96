"""The average of the weights against torch's own, and what evaluates, saves and loads it."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hf_vitfm import ImageClassificationTrainer, ViTForImageClassification
from hf_vitfm.training.ema import WeightAverage
from tests.training.runs import make_args, make_model, make_rows


def step_at_random(model) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))


def test_average_equals_torchs():
    model = make_model(torch.float64)
    ours = WeightAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # the first call copies
    for _ in range(4):
        step_at_random(model)
        ours.update()
        theirs.update_parameters(model)
    expected = dict(theirs.module.named_parameters())
    for name, average in ours.state_dict().items():
        torch.testing.assert_close(average, expected[name].detach(), rtol=1e-12, atol=1e-12)


def test_bfloat16_weights_are_averaged_in_float32():
    model = torch.nn.Linear(4, 4).bfloat16()
    average = WeightAverage(model, 0.9999)
    before = average.state_dict()["weight"].clone()
    step_at_random(model)
    average.update()
    moved = average.state_dict()["weight"] - before
    expected = 1e-4 * (model.weight.float() - before)
    torch.testing.assert_close(moved, expected.detach(), rtol=1e-2, atol=1e-7)


def test_the_model_has_its_own_weights_back_after_the_block_and_after_an_error():
    model = make_model()
    average = WeightAverage(model, 0.5)
    averaged = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    step_at_random(model)
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(KeyError), average.applied():
        for name, weight in model.named_parameters():
            assert torch.equal(weight, averaged[name])
        raise KeyError
    for name, weight in model.named_parameters():
        assert torch.equal(weight, own[name])


def test_frozen_weights_are_left_out_and_bad_states_refused(tmp_path):
    model = make_model()
    model.vit.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    assert set(average.state_dict()) == {"classifier.weight", "classifier.bias"}
    average.save(tmp_path)
    with pytest.raises(ValueError, match="do not fit"):
        WeightAverage(make_model(), 0.9).load(tmp_path)
    with pytest.raises(FileNotFoundError, match="did not average"):
        average.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        WeightAverage(model, 1.0)


def make_trainer(directory, **options) -> ImageClassificationTrainer:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "ema_decay": 0.8, **options}
    return ImageClassificationTrainer(
        model=make_model(),
        args=make_args(directory, **options),
        train_dataset=make_rows(),
        eval_dataset=make_rows(9, seed=1),
    )


def expected_average(directory, steps: int) -> dict[str, torch.Tensor]:
    """From the raw weights that the checkpoints hold."""
    average = {name: weight.detach().clone() for name, weight in make_model().named_parameters()}
    for step in range(1, steps + 1):
        raw = ViTForImageClassification.from_pretrained(directory / f"checkpoint-{step}")
        average = {name: 0.8 * average[name] + 0.2 * weight.detach() for name, weight in raw.named_parameters()}
    return average


def assert_weights(model, expected) -> None:
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_finished_run_saves_the_average_and_its_checkpoints_the_raw_weights(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    expected = expected_average(tmp_path, 4)
    assert_weights(ViTForImageClassification.from_pretrained(tmp_path), expected)
    assert_weights(trainer.model, expected)
    raw = ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert not torch.allclose(raw.classifier.weight, expected["classifier.weight"], atol=1e-4)


def test_evaluation_during_training_sees_the_average(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    for step in (2, 4):
        other = make_trainer(tmp_path / "other", ema_decay=None)
        other.model.load_state_dict(expected_average(tmp_path, step), strict=False)
        assert losses[step] == pytest.approx(other.evaluate()["eval_loss"], abs=1e-5)


def test_the_best_model_is_the_average_of_its_step(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the loss falls in the end, so that the last step is not the best
    )
    trainer.train()
    assert trainer.state.best_global_step < 4
    assert_weights(trainer.model, expected_average(tmp_path, trainer.state.best_global_step))


def test_a_step_that_the_loss_scaling_skips_is_not_averaged(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, save_strategy="no")
    updates, update = [], WeightAverage.update
    monkeypatch.setattr(
        WeightAverage, "update", lambda self: (updates.append(trainer.state.global_step), update(self))
    )
    skipped = property(lambda accelerator: trainer.state.global_step == 1)
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", skipped)
    trainer.train()
    assert updates == [0, 2, 3]
