"""Another masking ratio for a while, without a lasting change of a masked autoencoder's configuration."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..models.modeling_mae import MAEPreTrainedModel


@contextmanager
def masked_at(model: MAEPreTrainedModel, mask_ratio: float) -> Iterator[None]:
    """Let a model mask another share of the patches inside a `with` block.

    Args:
        model: a masked autoencoder or its encoder.
        mask_ratio: share of patches to mask, in [0, 1); 0 masks and shuffles nothing.

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
