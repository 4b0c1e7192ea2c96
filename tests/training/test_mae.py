"""MAETrainer: the same run on any number of processes, losses of an evaluation, weight decay, and what is refused."""

import numpy as np
import pytest
import timm.optim
import torch

from hf_vitfm import MAETrainer
from tests.training.mae_runs import make_mae, make_trainer, mean_loss, pretrain
from tests.training.runs import make_args, make_images, make_model


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one_in_float64(two_processes, tmp_path, accumulation):
    expected = pretrain(tmp_path)
    assert len(set(expected["losses"].tolist())) == 5
    assert "decoder.mask_token" in expected["gradients"]
    split = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    runs = two_processes.run(pretrain, str(tmp_path), **split)
    losses = np.mean([run["losses"] for run in runs], axis=0)
    assert relative_error(losses, expected["losses"]) < 1e-10
    for run in runs:
        for kind in ("gradients", "weights"):
            assert run[kind].keys() == expected[kind].keys()
            for name, values in expected[kind].items():
                assert relative_error(run[kind][name], values) < 1e-10, (kind, name)


def masks_of_two_epochs(output_dir, **options) -> dict[float, list[float]]:
    """The noise of every sample, by the sum of its pixels."""
    trainer = make_trainer(output_dir, **options)
    loader, masks = trainer.get_train_dataloader(), {}
    for epoch in range(2):
        trainer.train_order.set_epoch(epoch)
        for batch in loader:
            assert batch["noise"].shape == (len(batch["pixel_values"]), 16)
            for pixels, noise in zip(batch["pixel_values"], batch["noise"], strict=True):
                masks[pixels.double().sum().item()] = noise.tolist()
    return masks


def test_masks_do_not_depend_on_batches_workers_or_processes(two_processes, tmp_path):
    expected = masks_of_two_epochs(tmp_path)
    assert len(expected) == len({tuple(noise) for noise in expected.values()}) == 48  # other ones in each epoch
    assert masks_of_two_epochs(tmp_path, seed=1).keys().isdisjoint(expected)
    for options in (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"dataloader_num_workers": 2},
    ):
        assert masks_of_two_epochs(tmp_path, **options) == expected
    first, second = two_processes.run(masks_of_two_epochs, str(tmp_path), per_device_train_batch_size=4)
    assert not first.keys() & second.keys()
    assert {**first, **second} == expected


def evaluate(output_dir, count: int = 13, **options) -> list[float]:
    """The loss of a set of rows whose number divides by nothing, twice."""
    rows = {"eval_dataset": make_images(count)}
    trainer = make_trainer(output_dir, trainer_options=rows, **options)
    trainer.processing_class = None  # no pictures
    return [trainer.evaluate()["eval_loss"] for _ in range(2)]


def test_the_loss_of_an_evaluation_is_the_mean_over_its_images(two_processes, tmp_path):
    expected = mean_loss(make_images(13), make_trainer(tmp_path).eval_transform)
    for batch_size in (13, 5, 4):
        first, second = evaluate(tmp_path, per_device_eval_batch_size=batch_size)
        assert first == second == pytest.approx(expected, rel=1e-5)
    for losses in two_processes.run(evaluate, str(tmp_path), per_device_eval_batch_size=4):
        assert losses == pytest.approx([expected] * 2, rel=1e-5)


def test_the_masks_of_an_evaluation_differ_between_images(tmp_path):
    rows = [make_images(1)[0]] * 4
    trainer = make_trainer(tmp_path, trainer_options={"eval_dataset": rows})
    (batch,) = trainer.get_eval_dataloader()
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][3])
    assert len({tuple(noise) for noise in batch["noise"].tolist()}) == 4
    predictions = trainer.predict(rows).predictions  # one loss per image
    assert predictions.shape == (4,) and len(set(predictions.tolist())) == 4


def test_gradient_checkpointing_and_bfloat16_give_the_loss(tmp_path):
    fields = {"norm_pix_loss": True}
    expected = pretrain(tmp_path, fields=fields)
    checkpointed = pretrain(tmp_path, fields=fields, activation_checkpointing=True)
    assert checkpointed["is_checkpointing"] and not expected["is_checkpointing"]
    np.testing.assert_allclose(checkpointed["losses"], expected["losses"], rtol=1e-12)
    half = pretrain(tmp_path, double=False, fields=fields, bf16=True)["losses"]
    assert half == pytest.approx(expected["losses"], rel=0.02)
    assert half != pytest.approx(expected["losses"], rel=1e-5)


def test_the_training_step_compiles_without_a_break(tmp_path):
    trainer = make_trainer(tmp_path)
    batch, model = next(iter(trainer.get_train_dataloader())), trainer.model.train()
    gradients = []
    for module in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = trainer.compute_loss(module, batch)
        loss.backward()
        gradients.append([loss.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, ours, rtol=1e-4, atol=1e-6)


def test_weight_decay_is_that_of_the_original(tmp_path):
    """main_pretrain.py of MAE leaves the groups to timm: all but biases and one-dimensional parameters is decayed."""
    model = make_mae(num_register_tokens=2)
    trainer = make_trainer(tmp_path, model=model, weight_decay=0.05, optim="adamw_torch")
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decays(groups) -> dict[str, float]:
        return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}

    found = decays(trainer.create_optimizer().param_groups)
    assert found == decays(timm.optim.param_groups_weight_decay(model, 0.05))
    for name in ("vit.embeddings.cls_token", "decoder.mask_token", "predict.weight"):
        assert found[name] == 0.05
    for name in ("predict.bias", "vit.layernorm.weight", "decoder.norm.bias"):
        assert found[name] == 0.0
    assert not [name for name in found if "position" in name]


def test_positions_that_are_learned_are_not_decayed(tmp_path):
    model = make_mae(position_embedding_type="learned")
    optimizer = make_trainer(tmp_path, model=model, weight_decay=0.05).create_optimizer()
    positions = model.vit.embeddings.position_embeddings
    (group,) = [group for group in optimizer.param_groups if any(p is positions for p in group["params"])]
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize(
    "options",
    [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}, {"label_smoothing_factor": 0.1}, {"class_weights": "balanced"}],
)
def test_settings_that_need_labels_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=f"Settings for labels.*{next(iter(options))}"):
        make_trainer(tmp_path, **options)


def test_models_that_predict_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`mask_ratio=0` leaves nothing to predict"):
        make_trainer(tmp_path, model=make_mae(mask_ratio=0))
    for model, name in ((make_model(), "ViTForImageClassification"), (make_mae().vit, "MAEModel"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"MAEForPreTraining; got {name}"):
            MAETrainer(model=model, args=make_args(tmp_path))
