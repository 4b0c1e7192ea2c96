"""Features of images: one vector per row of a data set, from any vision model, for probes and neighbours."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.collators import collate_labelled
from ..data.decode import BadImageError
from ..data.order import ImageView
from ..models.modeling_losses import IGNORE_INDEX
from .feature_cache import CacheFile, precision_of, recall
from .feature_pooling import check_pooling, pool_images, vision_tower
from .fingerprint import fingerprint_model, fingerprint_rows, fingerprint_transform
from .modes import evaluating, masked_at


logger = logging.getLogger(__name__)

SILENT_SECONDS = 5  # no progress bar before
# Of an image-text model: names of weights that the features of images do not depend on.
TEXT_PARTS = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
_HALF = (torch.bfloat16, torch.float16)
_NAMED = 5  # of the images that were skipped


@torch.no_grad()
def extract_features(  # noqa: PLR0913 - the public signature
    model: nn.Module,
    dataset: Sequence[dict],
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    pooling: str = "cls",
    *,
    layer: int | None = None,
    dtype: torch.dtype | None = None,
    num_workers: int = 0,
    on_bad_image: str = "error",
    cache_dir: str | Path | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute one feature vector for every row, in the order of the data set.

    A model with a head, such as a classifier, is used without it, and a masked autoencoder without its decoder and
    without masking.

    Args:
        model: any vision model of transformers or this library, or an image-text model. It is used on its device, in
            evaluation mode, and left as it was.
        dataset: rows with `image` and `label`, as `load_images` gives them, or with `pixel_values`.
        transform: image -> float tensor (channels, height, width), such as `build_transform` makes of the model's image
            processor. Not needed for rows with `pixel_values`.
        batch_size: images per forward pass.
        pooling: "cls" for the class token, "mean" for the mean over the patches (over all places, of a model without
            patches), both of the `last_hidden_state`, which has passed the final norm of a ViT, MAE or DINOv2, not of
            CLIP's vision tower. Of our ViT built with `pooling="mean"`, whose norm follows the pooling, it does here
            too. "pooler" for the model's `pooler_output`, as ResNet, BiT, ConvNeXt and Swin give it. Of an image-text
            model, "projected" for the embedding that is compared with those of texts, as `get_image_features` gives
            it, and "pre_projection" for the pooled and normed vector that its projection is given.
        layer: pool the hidden states of this layer instead, as the model gives them: 0 are the embeddings, L the
            output of the last of L layers (stages, of a convolutional network or Swin), -1 the same. The final norm is
            never applied to them, of the last layer neither. With "cls" and "mean".
        dtype: bfloat16 or float16 computes under autocast: products in that type, norms and softmax in float32. The
            weights stay as they are, where casting them would round them for good. None: in the model's own dtype.
        num_workers: processes that decode images; 0 decodes in this one.
        on_bad_image: "error", or "skip": an image that cannot be decoded keeps its row, with the features of a black
            image and the label -100, and a warning tells how many there are.
        cache_dir: folder that keeps features under a key of the weights, the content of the rows, the transform with all its
            parameters, pooling, layer, precision and the versions of the libraries: the same request is then read from
            there. All rows are read for the key, not decoded. The transform has to be one that has no randomness, and
            that `fingerprint_transform` knows; hooks on the model, and code of its own, are not seen.
        group: processes that share the rows, each of which calls this with the same arguments and gets all rows, equal
            to what one alone computes; None: this process computes all rows.

    Returns:
        Features (rows, D) float32 and labels (rows,) int64, -100 for rows without any; both on the CPU. Targets that
        are no class ids stay what `collate_labelled` makes of them.

    Raises:
        ValueError: if there are no rows, the transform is missing, the pooling, layer or dtype is none of those allowed,
            or the model has no class token or no features of this form; with `cache_dir`, if the transform or the rows
            have no fingerprint.
        BadImageError: if an image cannot be decoded; it names the row.
    """
    _check_request(model, dataset, transform, batch_size)
    check_pooling(pooling, layer)
    base = getattr(model, "base_model", model)  # without the head
    view = ImageView(dataset, transform, on_bad_image=on_bad_image)
    pool = partial(pool_images, base, pooling=pooling, layer=layer)
    compute = partial(_compute, base, view, pool, batch_size, num_workers, group)
    with evaluating(model), _precision(base, dtype):
        options = {"pooling": pooling, "layer": layer, "on_bad_image": on_bad_image}
        file = cache_dir and CacheFile(cache_dir, "features", options | _request(base, dataset, transform))
        found = recall(file, compute, next(base.parameters()).device, group)
    if "skipped" in found and (group is None or dist.get_rank(group) == 0):
        _warn_of_skipped(view, found["skipped"].tolist())
    return found["features"], found["labels"]


def check_rows(dataset: Sequence[dict], batch_size: int) -> None:
    """Check that there are rows, of the kind that is read, and a number of them for a batch.

    Raises:
        TypeError: if it is no sequence of dictionaries.
        ValueError: if there are no rows, or `batch_size` is below 1.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"`dataset` must be a sequence of rows, such as a list or a `datasets.Dataset`; got a {type(dataset).__name__}. "
            "Collect its rows in a list."
        )
    if len(dataset) == 0:
        raise ValueError("`dataset` must hold at least one row; got none.")
    # Rows of a `datasets.Dataset` are dictionaries, and looking at one would decode its image.
    if not hasattr(dataset, "column_names") and not isinstance(dataset[0], Mapping):
        raise TypeError(
            "`dataset` must hold dictionaries with `image` and `label`, or with `pixel_values`; its first row is a "
            f"{type(dataset[0]).__name__}."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size!r}.")


def _check_request(model: nn.Module, dataset: Sequence[dict], transform: Callable | None, batch_size: int) -> None:
    check_rows(dataset, batch_size)
    if next(model.parameters()).is_meta:
        raise ValueError("The weights of `model` are on the device meta, where they have no values. Load them first.")
    if transform is None and "pixel_values" not in dataset[0]:
        raise ValueError(
            f"The rows hold {', '.join(dataset[0])}, and `transform` is missing. Pass "
            "`build_transform(load_image_processor(checkpoint))` of the model's checkpoint."
        )


def _unmasked(base: nn.Module) -> AbstractContextManager:
    """A masked autoencoder of transformers masks whatever it is given, also in evaluation mode."""
    tower = vision_tower(base)
    return masked_at(tower, 0.0) if hasattr(tower.config, "mask_ratio") else nullcontext()


def _precision(base: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager:
    weight = next(base.parameters())
    if dtype is None:
        return nullcontext()
    if dtype not in (*_HALF, weight.dtype):
        raise ValueError(
            f"`dtype` must be None, for the model's own {weight.dtype}, or one of {', '.join(map(str, _HALF))}; got {dtype}. "
            "To compute in another, convert the model."
        )
    return torch.autocast(weight.device.type, dtype, enabled=dtype in _HALF)


def _request(base: nn.Module, dataset: Sequence[dict], transform: Callable | None) -> dict[str, str]:
    """What features depend on, apart from how they are pooled. That of the rows takes longest and comes last."""
    weight = next(base.parameters())
    return {
        "precision": precision_of(weight.device, weight.dtype),
        "transform": fingerprint_transform(transform),
        "model": fingerprint_model(base, TEXT_PARTS if hasattr(base, "get_image_features") else ()),
        "rows": fingerprint_rows(dataset),
    }


def _compute(
    base: nn.Module,
    view: ImageView,
    pool: Callable[[Tensor], Tensor],
    batch_size: int,
    num_workers: int,
    group: dist.ProcessGroup | None,
) -> dict[str, Tensor]:
    """`features` and `labels` of all rows and, where bad images are skipped, the numbers of their rows as `skipped`."""
    parts = []
    with _unmasked(base):
        for pixel_values, labels, sizes in _batches(view, base, batch_size, num_workers, group):
            features = pool(pixel_values).float()
            parts.append([_gather(part, sizes, group).cpu() for part in (features, labels)])
    features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    found = {"features": features, "labels": labels}
    if view.bad_rows is not None:
        bad = view.bad_rows.to(next(base.parameters()).device, copy=True)
        if group is not None:
            dist.all_reduce(bad, op=dist.ReduceOp.MAX, group=group)
        found["skipped"] = bad.nonzero().flatten().cpu()
    return found


def _batches(
    view: ImageView, base: nn.Module, batch_size: int, num_workers: int, group: dist.ProcessGroup | None
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Read what this process computes: whole batches, the same as one process alone makes, in turns.

    Yields:
        `pixel_values` as the model takes them, labels, both on its device, and the rows that each process computes at
        the same time. All have equally many batches, since they may share the model's weights too (`fully_shard`): who
        has none left repeats the last one, which is no longer counted.
    """
    weight = next(base.parameters())
    batches = [rows.tolist() for rows in torch.arange(len(view)).split(batch_size)]
    rank, processes = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    starts = range(0, len(batches), processes)
    loader = DataLoader(
        view,
        batch_sampler=[batches[min(start + rank, len(batches) - 1)] for start in starts],
        num_workers=num_workers,
        collate_fn=collate_labelled,
        pin_memory=weight.device.type == "cuda",
        generator=torch.Generator(),  # for the workers' seeds, which would be drawn from the global one
    )
    is_silent = dist.is_initialized() and dist.get_rank() > 0
    options = {"unit": "image", "delay": SILENT_SECONDS, "disable": is_silent or None, "leave": False}
    with tqdm(total=len(view), desc="features", **options) as progress:
        for start, batch in zip(starts, _in_step(loader, group), strict=True):
            pixel_values = batch["pixel_values"].to(weight.device, weight.dtype, non_blocking=True)
            labels = batch.get("labels", torch.full((len(pixel_values),), IGNORE_INDEX))
            sizes = [len(rows) for rows in batches[start : start + processes]]
            yield pixel_values, labels.to(weight.device), sizes
            progress.update(sum(sizes))


def _in_step(loader: DataLoader, group: dist.ProcessGroup | None) -> Iterator[dict[str, Tensor]]:
    """Batches; where one process cannot read its own, all stop with its error, instead of waiting for it."""
    if group is None:
        yield from loader
        return
    batches = iter(loader)
    for _ in range(len(loader)):
        batch, error = None, None
        try:
            batch = next(batches)
        except Exception as problem:  # whatever it is, the others have to hear of it
            error = problem
        heard = [None] * dist.get_world_size(group)
        told = None if error is None else (isinstance(error, BadImageError), str(error))
        dist.all_gather_object(heard, told, group=group)
        if error is not None:
            raise error
        for is_bad_image, message in filter(None, heard):
            raise BadImageError(message) if is_bad_image else RuntimeError(f"Another process failed: {message}")
        yield batch


def _gather(part: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """Put together what the processes computed at the same time, in their order: `sizes` rows of each."""
    if group is None:
        return part
    padded = part.new_zeros(max(sizes), *part.shape[1:])
    padded[: len(part)] = part
    gathered = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=False)])


def _warn_of_skipped(view: ImageView, rows: list[int]) -> None:
    """Say how many images were skipped, and which were the first."""
    if rows:
        names = ", ".join(view.name(row) for row in rows[:_NAMED])
        more = ", ..." if len(rows) > _NAMED else ""
        logger.warning("%d of %d images were skipped: %s%s", len(rows), len(view), names, more)


def check_width(features: Tensor, train_features: Tensor, name: str) -> None:
    """Check that features (rows, D) are as wide as those that a probe learns from.

    Raises:
        ValueError: if they are not; `name` says which they are.
    """
    if features.shape[1] != train_features.shape[1]:
        raise ValueError(
            f"`{name}_features` must have the width of `train_features`, {train_features.shape[1]}; got "
            f"{features.shape[1]}. Extract both with the same model, pooling and layer."
        )


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
