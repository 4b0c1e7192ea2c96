"""Exponential moving average of the weights (Polyak averaging)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


EMA_FILE = "ema.safetensors"


class WeightAverage:
    """average <- decay * average + (1 - decay) * weight, after every optimizer step, from the first weights on.

    The ViT paper (section 4.1) averages with a factor of 0.9999 for its ImageNet results of Table 2, DeiT with 0.99996.
    Only trainable parameters are averaged; buffers, such as the moments of a batch norm, stay the model's own.
    Works on sharded parameters (`fully_shard`): every process averages its shards.

    Args:
        model: holds the weights to follow; not wrapped by DDP.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1); got {decay}.")
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not self._weights:
            raise ValueError("`model` has no trainable parameter to average.")
        # bfloat16 cannot hold a change of 1e-4 of a value.
        self._averages = {
            name: weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for name, weight in self._weights.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        averages = [_local(average) for average in self._averages.values()]
        pairs = zip(self._weights.values(), averages, strict=True)
        weights = [_local(weight).to(average.dtype) for weight, average in pairs]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Put the averages in the place of the model's weights."""
        for name, weight in self._weights.items():
            weight.copy_(self._averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averages inside the `with` block, and its own weights after it."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the parameters' names, whole; on sharded parameters all processes have to call it."""
        return {
            name: average.full_tensor() if isinstance(average, DTensor) else average
            for name, average in self._averages.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages from `state_dict()`.

        Raises:
            ValueError: if names or shapes are not those of the model.
        """
        shapes = {name: tuple(average.shape) for name, average in self._averages.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if given != shapes:
            differing = sorted(name for name in given.keys() | shapes.keys() if given.get(name) != shapes.get(name))
            raise ValueError(
                f"{len(differing)} averages do not fit the model's trainable weights: {', '.join(differing[:5])}. "
                "Go on with the model and the frozen layers that the run was started with."
            )
        for name, average in self._averages.items():
            tensor = state[name].to(average.device, average.dtype)
            if isinstance(average, DTensor):
                tensor = distribute_tensor(tensor, average.device_mesh, average.placements)
            average.copy_(tensor)

    def save(self, directory: str | Path, is_writer: bool = True) -> None:
        """Write `ema.safetensors`; on sharded parameters all processes have to call it, and one is the writer."""
        state = self.state_dict()
        if is_writer:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(directory) / EMA_FILE)

    def load(self, directory: str | Path) -> None:
        """Read `ema.safetensors` of a checkpoint.

        Raises:
            FileNotFoundError: if the checkpoint was written without an average.
            ValueError: if names or shapes are not those of the model.
        """
        path = Path(directory) / EMA_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: that run did not average its weights. Go on without `ema_decay`, or start anew."
            )
        self.load_state_dict(load_file(path))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
