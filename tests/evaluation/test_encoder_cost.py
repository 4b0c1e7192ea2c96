"""The cost of an image encoder: operations by formula, parameters counted by hand, memory that is known."""

import mmap
import sys

import pytest
import torch
import transformers
from torch import nn

from hf_vitfm import MAEModel, ViTModel
from hf_vitfm.evaluation import encoder_cost, peak_memory
from hf_vitfm.evaluation.encoder_cost import measure_encoder
from hf_vitfm.evaluation.flops import count_flops
from hf_vitfm.evaluation.peak_memory import PeakMemory
from tests.tiny import MAE_FIELDS, random_images, randomize, tiny_clip, tiny_config, tiny_mae


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(encoder_cost, "_SECONDS", 0.0)


def measure(model: nn.Module, pooling: str = "cls", images: int = 4):
    return measure_encoder(model, random_images(images), pooling, PeakMemory(torch.device("cpu")))


def test_operations_are_those_of_the_formula():
    model = randomize(ViTModel(tiny_config()))
    cost = measure(model)
    assert cost.flops == count_flops(model)["encoder"].flops
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    clip = tiny_clip()
    assert measure(clip, "projected").flops == count_flops(clip)["image tower"].flops
    assert measure(clip, "pre_projection").parameters == sum(p.numel() for p in clip.vision_model.parameters())


def test_a_masked_autoencoder_sees_all_patches():
    model = tiny_mae()
    whole = count_flops(randomize(MAEModel(type(model.config)(**{**MAE_FIELDS, "mask_ratio": 0.0}))))["encoder"].flops
    assert measure(model).flops == whole > count_flops(model)["encoder"].flops
    assert measure(model).parameters == sum(parameter.numel() for parameter in model.vit.parameters())
    fields = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.ViTMAEConfig(**fields, image_size=32, patch_size=8, mask_ratio=0.5)
    theirs = transformers.ViTMAEForPreTraining(config)
    assert measure(theirs).flops == pytest.approx(whole, rel=0.01)
    assert theirs.config.mask_ratio == 0.5 and theirs.training  # as it was


def test_a_convolution_is_counted():
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    found = measure(transformers.ResNetModel(config), "mean", images=2)
    stem = 2 * 16 * 16 * 4 * 3 * 49  # 7 x 7 with stride 2, then pooled to 8 x 8
    block = 2 * 2 * 8 * 8 * 4 * 4 * 9
    assert found.flops == pytest.approx(stem + block, rel=0.05)


def test_the_fastest_pass_counts(monkeypatch):
    ticks = iter([0, 9, 10, 14, 20, 23, 30, 35, 40, 47, 50, 52])  # passes of 9 (warm-up), 4, 3, 5, 7 s ...
    monkeypatch.setattr(encoder_cost.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(encoder_cost, "_SECONDS", 15.0)
    cost = measure(randomize(ViTModel(tiny_config())), images=20)
    assert (cost.batch_size, cost.images_per_second) == (16, pytest.approx(16 / 3))
    assert cost.device.startswith("CPU, ")


def test_the_peak_of_the_memory_is_seen():
    memory = PeakMemory(torch.device("cpu"))
    memory.start_peak()
    with mmap.mmap(-1, 64 << 20) as block:  # a tensor may lie where earlier ones lay, which is no new memory
        block[::4096] = b"1" * (len(block) // 4096)
    found = memory.read()
    assert 60 << 20 < found < 120 << 20 if sys.platform == "linux" else found is None


def test_what_the_system_does_not_tell_is_not_made_up(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "none")
    assert PeakMemory(torch.device("cpu")).read() is None
    monkeypatch.undo()
    monkeypatch.setattr(peak_memory, "_CLEAR", tmp_path / "no" / "such")
    memory = PeakMemory(torch.device("cpu"))
    memory.start_peak()
    assert memory.read() is None
    assert PeakMemory(torch.device("mps")).read() is None
