"""The linear probe: its norm is torch's, its encoder stays as it is, and what it saves is a plain ViT."""

import pytest
import torch
from transformers import TrainerCallback

from hf_vitfm import ImageClassificationTrainer, ViTConfig, ViTForImageClassification
from hf_vitfm.training.linear_probe import LinearProbeForImageClassification, NormalizedLinear, load_linear_probe
from tests.tiny import FIELDS, random_images, randomize, relative_error, tiny_mae
from tests.training.runs import TINY, make_args, make_rows, read_checkpoint


def make_probe(dtype=torch.float32, **fields) -> LinearProbeForImageClassification:
    """A tiny probe of an encoder with features of unequal sizes, the same in every process."""
    torch.manual_seed(0)
    model = LinearProbeForImageClassification(ViTConfig(**{**TINY, "hidden_dropout_prob": 0.2, **fields})).to(dtype)
    torch.nn.init.normal_(model.vit.layernorm.weight, mean=3)
    torch.nn.init.normal_(model.vit.layernorm.bias, std=3)
    return model


def test_training_and_evaluation_equal_torchs_batch_norm_and_linear():
    layer = NormalizedLinear(6, 4)
    layer.initialize()
    norm = torch.nn.BatchNorm1d(6, affine=False, eps=1e-6)
    for seed in range(3):
        features = 5 + 3 * torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        expected = norm(features) @ layer.weight.T + layer.bias
        torch.testing.assert_close(layer(features), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)
    layer.eval(), norm.eval()
    torch.testing.assert_close(layer(features), norm(features) @ layer.weight.T + layer.bias, rtol=1e-5, atol=1e-7)


def test_one_row_has_no_moments():
    with pytest.raises(ValueError, match="per_device_train_batch_size"):
        NormalizedLinear(6, 4)(torch.zeros(1, 6))


def test_the_head_begins_as_in_the_reference_code():
    head = LinearProbeForImageClassification(ViTConfig(**{**FIELDS, "hidden_size": 64, "num_labels": 500})).classifier
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert torch.equal(head.bias, torch.zeros(500))
    assert (head.running_mean == 0).all() and (head.running_var == 1).all()


def train(directory, dtype=torch.float32, stop_before: int | None = None, resume: bool = False, **options):
    """Six steps by LARS on 27 rows."""
    trainer = ImageClassificationTrainer(
        model=make_probe(dtype),
        args=make_args(
            directory, **{"max_steps": 6, "optim": "lars", "learning_rate": 3.0, "save_steps": 2, **options}
        ),
        train_dataset=make_rows(dtype=dtype),
    )
    if stop_before is not None:
        trainer.add_callback(StopBefore(stop_before))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class StopBefore(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            raise KeyboardInterrupt


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_only_the_head_changes_and_the_encoder_has_neither_gradient_nor_dropout(tmp_path):
    before = weights_of(make_probe())
    trainer = train(tmp_path)
    after = weights_of(trainer.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"classifier.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert all(weight.grad is None and not weight.requires_grad for weight in trainer.model.vit.parameters())
    model = trainer.model.train()
    images = random_images(4, 8, 8)
    assert torch.equal(model.vit(images).pooler_output, model.vit(images).pooler_output)
    assert not model.vit(images).pooler_output.requires_grad


def test_folding_keeps_the_logits_and_gives_a_plain_vit(tmp_path):
    trainer = train(tmp_path)
    probe = trainer.model.eval()
    plain = probe.fold()
    images = random_images(4, 8, 8)
    assert type(plain) is ViTForImageClassification
    assert all(weight.requires_grad for weight in plain.parameters())
    plain.save_pretrained(tmp_path / "plain")
    reloaded = ViTForImageClassification.from_pretrained(tmp_path / "plain")
    for model in (plain, reloaded):
        torch.testing.assert_close(model(images).logits, probe(images).logits, rtol=1e-5, atol=1e-5)
    assert plain.config.architectures == ["ViTForImageClassification"]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    options = {"save_strategy": "steps", "ema_decay": 0.8}
    train(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_before=4, **options)
    train(tmp_path / "broken", resume=True, **options)
    expected = read_checkpoint(tmp_path / "whole" / "checkpoint-6")
    found = read_checkpoint(tmp_path / "broken" / "checkpoint-6")
    assert "model.safetensors: classifier.running_var" in expected and found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def train_in_float64(directory) -> dict[str, torch.Tensor]:
    return weights_of(train(directory, torch.float64, per_device_train_batch_size=4).model)


def test_two_processes_equal_one(two_processes, tmp_path):
    expected = weights_of(train(tmp_path, torch.float64).model)
    for found in two_processes.run(train_in_float64, str(tmp_path)):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-10, atol=1e-12, msg=name)


def normalize_unequal_shares(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    layer = NormalizedLinear(6, 4).double()
    share = rows[:3] if torch.distributed.get_rank() == 0 else rows[3:]
    layer(share)
    return {"mean": layer.running_mean, "variance": layer.running_var}


def test_moments_of_unequal_shares_are_those_of_all_rows(two_processes):
    rows = torch.randn(11, 6, dtype=torch.float64) + 2
    for found in two_processes.run(normalize_unequal_shares, rows):
        torch.testing.assert_close(found["mean"], 0.1 * rows.mean(dim=0))
        torch.testing.assert_close(found["variance"], 0.9 + 0.1 * rows.var(dim=0))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_probe_takes_the_encoder_of_an_mae(tmp_path, pooling):
    mae = tiny_mae(mask_ratio=0.0)
    mae.save_pretrained(tmp_path)
    probe = load_linear_probe(str(tmp_path), pooling=pooling, num_labels=7)
    trained = [name for name, weight in probe.named_parameters() if weight.requires_grad]
    assert trained == ["classifier.weight", "classifier.bias"]
    images = random_images()
    if pooling == "cls":
        expected = mae.vit(images).last_hidden_state[:, 0]
    else:
        mae.vit.layernorm = torch.nn.Identity()
        expected = torch.nn.functional.layer_norm(mae.vit(images).last_hidden_state[:, 1:].mean(dim=1), (32,))
    assert relative_error(probe.vit(images).pooler_output, expected) < 1e-5


def test_the_head_of_a_classifier_is_not_taken_over(tmp_path):
    model = randomize(ViTForImageClassification(ViTConfig(**FIELDS)))
    model.save_pretrained(tmp_path)
    probe = load_linear_probe(str(tmp_path))
    assert probe.classifier.weight.std() < 0.02 and not probe.classifier.bias.any()
    assert torch.equal(probe.vit.layernorm.weight, model.vit.layernorm.weight)


def test_a_probe_refuses_a_norm_that_was_never_trained(tmp_path):
    ViTForImageClassification(ViTConfig(**FIELDS, pooling="mean")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='Set `pooling="mean"`'):
        load_linear_probe(str(tmp_path), pooling="cls")
    assert load_linear_probe(str(tmp_path)).config.pooling == "mean"
