"""What it costs to turn images into features: the image encoder alone, without decoding and preprocessing of images."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .feature_pooling import pool_images, vision_tower
from .modes import evaluating, masked_at
from .peak_memory import PeakMemory


BATCH_ON_CPU = 16  # more images at a time are hardly faster there
_SECONDS, _LEAST_RUNS, _MOST_RUNS = 2.0, 3, 50


@dataclass(frozen=True)
class EncoderCost:
    """The cost of an image encoder.

    Args:
        parameters: of the image encoder; a text tower, a decoder and a head are left out.
        flops: of one image, in matrix products and convolutions; a multiply-add counts as two.
        images_per_second: of the forward pass alone, the fastest of several, which other programs disturbed least.
        batch_size: images of a forward pass that was timed.
        device: that it was timed on, with the number of threads of a CPU.
        peak_memory: bytes that loading the model and such a forward pass added at the peak; None: not measured.
    """

    parameters: int
    flops: int
    images_per_second: float
    batch_size: int
    device: str
    peak_memory: int | None


@torch.no_grad()
def measure_encoder(model: nn.Module, pixel_values: Tensor, pooling: str, memory: PeakMemory) -> EncoderCost:
    """Time the forward pass that gives features, and count its operations.

    After one pass to warm up, passes are timed until 2 seconds are over, at least 3 and at most 50.

    Args:
        model: as `extract_features` takes it, on its device.
        pixel_values: (images, channels, height, width), a batch as the transform makes it; on a CPU the first 16 of it
            are used.
        pooling: as of `extract_features`.
        memory: made before the model was loaded.
    """
    base = getattr(model, "base_model", model)
    tower, weight = vision_tower(base), next(base.parameters())
    pixel_values = pixel_values[: BATCH_ON_CPU if weight.device.type == "cpu" else None]
    pixel_values = pixel_values.to(weight.device, weight.dtype)
    # A masked autoencoder of transformers masks whatever it is given, also in evaluation mode.
    with evaluating(model), masked_at(tower, 0.0) if hasattr(tower.config, "mask_ratio") else nullcontext():
        with FlopCounterMode(display=False) as counter:
            pool_images(base, pixel_values[:1], pooling)
        memory.start_peak()
        seconds = _time(lambda: pool_images(base, pixel_values, pooling), weight.device)
    return EncoderCost(
        parameters=sum(parameter.numel() for parameter in tower.parameters()),
        flops=counter.get_total_flops(),
        images_per_second=len(pixel_values) / seconds,
        batch_size=len(pixel_values),
        device=_name_device(weight.device),
        peak_memory=memory.read(),
    )


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the fastest of several."""
    times = []
    for _ in range(1 + _MOST_RUNS):
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
        if len(times) > _LEAST_RUNS and sum(times[1:]) > _SECONDS:
            break
    return min(times[1:])


def _name_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type
