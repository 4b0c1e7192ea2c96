"""Features of images: one vector per row of a data set, from any vision model, for probes and neighbours.

Shapes: B batch, T tokens, D width.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import ModelOutput

from ..data.collators import collate_labelled
from ..data.order import ImageView
from ..models.configuration_base import as_pair
from ..models.modeling_losses import IGNORE_INDEX
from ..models.modeling_vit import ViTModel
from .modes import evaluating, masked_at


POOLINGS = ("cls", "mean", "projected")
SILENT_SECONDS = 5  # no progress bar before


@torch.no_grad()
def extract_features(
    model: nn.Module,
    dataset: Sequence[dict],
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    pooling: str = "cls",
    *,
    num_workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Compute one feature vector for every row, in the order of the data set.

    A model with a head, such as a classifier, is used without it, and a masked autoencoder without its decoder and
    without masking. Where several processes run, each of them that calls this computes all rows: nothing is exchanged.

    Args:
        model: any vision model of transformers or this library whose base gives a `last_hidden_state`. It is used on
            its device and in its dtype, in evaluation mode, and left as it was.
        dataset: rows with `image` and `label`, as `load_images` gives them, or with `pixel_values`.
        transform: image -> float tensor (channels, height, width), such as `build_transform` makes of the model's image
            processor. Not needed for rows with `pixel_values`.
        batch_size: images per forward pass.
        pooling: "cls" for the class token, "mean" for the mean over the patches (over all places, of a model without
            patches), both of the `last_hidden_state`, which has passed the final norm of a ViT, MAE or DINOv2. Of our
            ViT built with `pooling="mean"`, whose norm follows the pooling, it does here too. "projected" for the
            embedding that an image-text model compares with those of texts, as `get_image_features` gives it.
        num_workers: processes that decode images; 0 decodes in this one.

    Returns:
        Features (rows, D) float32 and labels (rows,) int64, -100 for rows without any; both on the CPU. Targets that
        are no class ids stay what `collate_labelled` makes of them.

    Raises:
        ValueError: if there are no rows, the transform is missing, the pooling is unknown, or the model has no class
            token or no features of this form.
        BadImageError: if an image cannot be decoded; it names the row.
    """
    _check_request(dataset, transform, pooling)
    base = getattr(model, "base_model", model)  # without the head
    weight = next(base.parameters())
    loader = DataLoader(
        ImageView(dataset, transform),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_labelled,
        pin_memory=weight.device.type == "cuda",
        generator=torch.Generator(),  # for the workers' seeds, which would be drawn from the global one
    )
    is_silent = dist.is_initialized() and dist.get_rank() > 0
    features, labels = [], []
    # A masked autoencoder of transformers masks whatever it is given, also in evaluation mode.
    unmasked = masked_at(base, 0.0) if hasattr(base.config, "mask_ratio") else nullcontext()
    progress = tqdm(
        total=len(dataset),
        desc="features",
        unit="image",
        delay=SILENT_SECONDS,
        disable=is_silent or None,
        leave=False,
    )
    with evaluating(model), unmasked, progress:
        for batch in loader:
            pixel_values = batch["pixel_values"].to(weight.device, weight.dtype, non_blocking=True)
            features.append(_pool(base, pixel_values, pooling).float().cpu())
            labels.append(batch.get("labels", torch.full((len(pixel_values),), IGNORE_INDEX)))
            progress.update(len(pixel_values))
    return torch.cat(features), torch.cat(labels)


def _check_request(dataset: Sequence[dict], transform: Callable | None, pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}; got {pooling!r}.")
    if len(dataset) == 0:
        raise ValueError("`dataset` must hold at least one row; got none.")
    if transform is None and "pixel_values" not in dataset[0]:
        raise ValueError(
            f"The rows hold {', '.join(dataset[0])}, and `transform` is missing. Pass "
            "`build_transform(load_image_processor(checkpoint))` of the model's checkpoint."
        )


def _pool(base: nn.Module, pixel_values: Tensor, pooling: str) -> Tensor:
    """Images to features (B, D)."""
    if pooling == "projected":
        if not hasattr(base, "get_image_features"):
            raise ValueError(
                f"{type(base).__name__} has no `get_image_features`. Pass an image-text model, such as `AutoModel` loads "
                "from a CLIP checkpoint."
            )
        return joint_embeds(base.get_image_features(pixel_values=pixel_values))
    hidden = getattr(base(pixel_values=pixel_values), "last_hidden_state", None)
    name = type(base).__name__
    if hidden is None or hidden.ndim not in (3, 4):
        raise ValueError(
            f"{name} gives no `last_hidden_state` of tokens or of a map. Pass a vision model, such as `AutoModel` loads."
        )
    if hidden.ndim == 4:  # (B, D, rows, columns) of a convolutional network
        hidden, num_prefix = hidden.flatten(2).transpose(1, 2), 0
    else:
        num_prefix = _count_prefix(base.config, hidden.shape[1], pixel_values.shape[-2:])
    if pooling == "mean":
        pooled = hidden[:, num_prefix:].mean(dim=1)
    elif num_prefix and getattr(base.config, "use_class_token", True):
        pooled = hidden[:, 0]
    else:
        raise ValueError(f'{name} has no class token. Pass `pooling="mean"`.')
    return base.fc_norm(pooled) if isinstance(base, ViTModel) else pooled


def joint_embeds(features: Tensor | ModelOutput) -> Tensor:
    """The embeddings (B, D) in what `get_image_features` or `get_text_features` returned; models differ in the form."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _count_prefix(config: Any, num_tokens: int, image_size: Sequence[int]) -> int:
    """Tokens that stand before those of the patches: class, distillation, registers."""
    patch_size = getattr(config, "patch_size", None)
    if patch_size is None:
        return 0
    num_patches = math.prod(length // patch for length, patch in zip(image_size, as_pair(patch_size), strict=True))
    return max(0, num_tokens - num_patches)  # a network that merges patches, as Swin does, has no other tokens


def check_labelled(features: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Check that features (rows, D) are finite and have one class id each; arrays become tensors.

    Args:
        features: what is to be checked.
        labels: (rows,) of a whole number type, at least 0.
        name: of the two in an error: "train" or "test".

    Raises:
        ValueError: naming what is wrong.
    """
    features, labels = torch.as_tensor(features), torch.as_tensor(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) == 0:
        raise ValueError(
            f"`{name}_features` must be (rows, dim) with one of `{name}_labels` per row, at least one; got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.min() < 0:
        raise ValueError(
            f"`{name}_labels` must be class ids, whole numbers from 0; got {labels.dtype} from {labels.min().item()}. "
            "Leave rows without a class out."
        )
    if not features.isfinite().all():
        raise ValueError(f"`{name}_features` hold NaN or infinity. Check the model and the dtype it ran in.")
    return features, labels
