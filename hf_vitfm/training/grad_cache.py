"""Gradient caching: the gradient of a contrastive loss over a batch that no device could hold (Gao et al. 2021).

The loss of all pairs depends on the towers through the embeddings alone. So the batch is embedded in chunks without
gradients, the loss of all embeddings gives its gradient by each of them, and every chunk is embedded once more, now with
gradients, and passes on what belongs to it. What a chunk drew at random is drawn again. Only a layer that looks at a
batch as a whole, such as a batch norm, makes a difference: it sees a chunk.

Shapes: C pairs of a chunk, B pairs of this process, E width of the joint space.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..models.modeling_clip import CLIPModel
from .scalars import whole_scalar


Batch = Mapping[str, Tensor]
_SIDES = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}
_FACTORS = ("logit_scale", "logit_bias")


@dataclass
class _RandomState:
    """The state of torch's generators, that of the CPU and that of the device a model is on."""

    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "_RandomState":
        is_cpu = device.type == "cpu"
        state = None if is_cpu else torch.get_device_module(device).get_rng_state(*_index(device))
        return cls(torch.get_rng_state(), state)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(device).set_rng_state(self.accelerator, *_index(device))


def _index(device: torch.device) -> list[torch.device]:
    return [] if device.type == "mps" else [device]  # of which there is one only


@dataclass
class _Chunk:
    """What has to be known of a chunk between its two passes."""

    start: _RandomState
    # By side, for a tower without trainable weights: what it pooled, (C, D), and the random state after it.
    pooled: dict[str, tuple[Tensor, _RandomState]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)  # by side, (C, E)


class GradientCache:
    """The loss of one global batch, and its gradient, given out chunk by chunk.

    Args:
        model: the model itself; a tower without trainable weights runs once only.
        forward: calls the model, or what wraps it for distributed training.
        batches: the chunks of this process, on the model's device; they are read once.
        objective: (image embeddings (B, E), text embeddings (B, E), logit scale, logit bias or None) -> the loss of the
            whole global batch, whose gradients, averaged over the processes, are those of that batch.

    Attributes:
        loss: of the global batch, without gradient.

    Raises:
        ValueError: if no tower and no projection needs a gradient.
    """

    def __init__(
        self, model: CLIPModel, forward: Callable, batches: Iterable[Batch], objective: Callable[..., Tensor]
    ):
        self.model, self.forward = model, forward
        self._chunks: list[_Chunk] = []
        embeds = {side: [] for side in _SIDES}
        with torch.no_grad():
            for batch in batches:
                for side, found in self._embed(batch).items():
                    embeds[side].append(found)
        self.loss = self._differentiate(embeds, objective)

    def __len__(self) -> int:
        """Chunks that have not had their second pass."""
        return len(self._chunks)

    def replay(self, batch: Batch) -> Tensor:
        """The second pass of the first chunk that has not had it.

        Returns:
            A scalar whose gradient is the chunk's part of that of the loss, and with the last chunk that of the factor
            and the bias too. Its value is that of `loss` over the number of chunks.
        """
        chunk = self._chunks.pop(0)
        chunk.start.restore(self._device)
        with ExitStack() as stack:
            for side, (pooled, after) in chunk.pooled.items():
                stack.enter_context(self._recalling(side, pooled, after))
            outputs = self.forward(**batch, return_logits=False)
        parts = [(getattr(outputs, f"{side}_embeds") * gradient).sum() for side, gradient in chunk.gradients.items()]
        if not self._chunks:
            parts += [(whole_scalar(getattr(self.model, n)) * g).sum() for n, g in self._factor_gradients.items()]
        surrogate = sum(parts)
        return surrogate + (self.loss / self._num_chunks - surrogate).detach()

    @property
    def _device(self) -> torch.device:
        return self.model.device

    def _embed(self, batch: Batch) -> dict[str, Tensor]:
        """The first pass of a chunk: its embeddings by side."""
        chunk = _Chunk(_RandomState.now(self._device))
        with ExitStack() as stack:
            for side, (tower, _) in _SIDES.items():
                if not _is_trained(getattr(self.model, tower)):
                    stack.enter_context(self._noting(side, chunk))
            outputs = self.forward(**batch, return_logits=False)
        self._chunks.append(chunk)
        return {side: getattr(outputs, f"{side}_embeds") for side in _SIDES}

    def _differentiate(self, embeds: dict[str, list[Tensor]], objective: Callable[..., Tensor]) -> Tensor:
        """The loss of all embeddings; its gradients are laid out for the second pass."""
        self._num_chunks = len(self._chunks)
        sizes = [len(part) for part in embeds["image"]]
        inputs = {
            side: torch.cat(parts).requires_grad_(any(_is_trained(getattr(self.model, name)) for name in _SIDES[side]))
            for side, parts in embeds.items()
        }
        for name in _FACTORS:
            factor = getattr(self.model, name)
            inputs[name] = (
                None if factor is None else whole_scalar(factor).detach().requires_grad_(factor.requires_grad)
            )
        loss = objective(inputs["image"], inputs["text"], inputs["logit_scale"], inputs["logit_bias"])
        wanted = {name: tensor for name, tensor in inputs.items() if tensor is not None and tensor.requires_grad}
        if not wanted.keys() & _SIDES.keys():
            raise ValueError(
                "Gradient caching is for towers and projections, none of which needs a gradient. Leave "
                "`grad_cache_chunk_size` out, or let one of them be trained."
            )
        gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
        self._factor_gradients = {name: gradients.pop(name) for name in _FACTORS if name in gradients}
        for side, gradient in gradients.items():
            for chunk, part in zip(self._chunks, gradient.split(sizes), strict=True):
                chunk.gradients[side] = part
        return loss.detach()

    @contextmanager
    def _noting(self, side: str, chunk: _Chunk) -> Iterator[None]:
        """Note what a tower gives to its projection."""

        def note(projection, arguments):
            chunk.pooled[side] = arguments[0], _RandomState.now(self._device)

        handle = getattr(self.model, _SIDES[side][1]).register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _recalling(self, side: str, pooled: Tensor, after: _RandomState) -> Iterator[None]:
        """Let the model take what its tower gave in the first pass, instead of running it."""
        method, projection = f"get_{side}_features", getattr(self.model, _SIDES[side][1])

        def recall(*args, **kwargs):
            after.restore(self._device)
            return BaseModelOutputWithPooling(pooler_output=projection(pooled))

        setattr(self.model, method, recall)  # on the instance, before the class
        try:
            yield
        finally:
            delattr(self.model, method)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
