"""A model in another mode for a while: everything is afterwards as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside a `with` block; every part gets back the mode of its own.

    What the root of a sharded model (`fully_shard`) holds is gathered, so that parts of it can be called: in all
    processes alike.
    """
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()
        for module in was_training:
            module.training = True


@contextmanager
def masked_at(model: nn.Module, mask_ratio: float) -> Iterator[None]:
    """Let a masked autoencoder, this library's or transformers', mask another share of the patches in a `with` block.

    Args:
        model: the autoencoder or its encoder; the configuration holds the ratio.
        mask_ratio: share of patches to mask, in [0, 1).

    Raises:
        ValueError: if the ratio is outside its range.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"`mask_ratio` must be in [0, 1), such as 0.75; got {mask_ratio!r}.")
    config, configured = model.config, model.config.mask_ratio
    config.mask_ratio = mask_ratio
    try:
        yield
    finally:
        config.mask_ratio = configured
