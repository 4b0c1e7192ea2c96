"""What is evaluated between the steps of a sharded model: parts of it are called, by all processes alike."""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_vitfm.evaluation.features import extract_features
from hf_vitfm.evaluation.reconstruction import reconstruct
from tests.tiny import tiny_mae


def evaluate_between_steps() -> list[torch.Tensor]:
    """A step, features and reconstructions, and another step; sharded where there are several processes."""
    torch.manual_seed(0)
    model = tiny_mae().double().train()
    size = model.config.image_size
    pixels = torch.randn(4, 3, size, size, dtype=torch.float64)
    noise = torch.rand(4, (size // model.config.patch_size) ** 2)
    if dist.is_initialized():
        mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (*model.vit.encoder.layers, *model.decoder.encoder.layers):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert isinstance(model.predict.weight, DTensor)
    rows = [{"pixel_values": image} for image in pixels]
    found = []
    for _ in range(2):
        loss = model(pixels, noise).loss
        loss.backward()
        features, _ = extract_features(model, rows, pooling="mean")
        pictures = reconstruct(model, pixels, 0.5, (0.5,) * 3, (0.5,) * 3)
        found += [loss.detach(), features, pictures.reconstruction]
    return found


def test_a_sharded_autoencoder_is_evaluated_between_steps(two_processes):
    expected = evaluate_between_steps()
    for found in two_processes.run(evaluate_between_steps):
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
