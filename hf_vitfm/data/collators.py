"""Batching of rows that a transform has turned into tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.configuration_base import as_pair
from ..models.modeling_masking import draw_noise
from .order import mix_seed


# Apart from the numbers that the crop and the flip of the same sample are made of.
_MASK_STREAM = 1


def collate_labelled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Stack rows into one batch; other keys of the rows are left out.

    Args:
        rows: each holds `pixel_values` (channels, height, width) and, all of them or none, a target under `labels` or
            `label`: a class id, one number (regression), or a vector (soft or multi-hot labels, regression).

    Returns:
        `pixel_values` (batch, channels, height, width) in the rows' dtype and, if the rows have targets, `labels`:
        (batch,) int64 for class ids, float32 for everything else: (batch,) for numbers, (batch, classes) for vectors.

    Raises:
        ValueError: if there are no rows, a row has no pixel values, shapes differ, or only some rows have a target.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one row; got none.")
    lacking = next((i for i, row in enumerate(rows) if row.get("pixel_values") is None), None)
    if lacking is not None:
        raise ValueError(
            f"every row must hold `pixel_values`; row {lacking} has the keys {sorted(rows[lacking])}. "
            "Apply a transform from `build_transform` to the images first."
        )
    pixel_values = [torch.as_tensor(row["pixel_values"]) for row in rows]
    shapes = sorted({tuple(values.shape) for values in pixel_values})
    if len(shapes) > 1:
        raise ValueError(
            f"`pixel_values` of one batch must have one shape; got {', '.join(map(str, shapes))}. "
            "Resize the images to one size, for example with `build_transform`."
        )
    batch = {"pixel_values": torch.stack(pixel_values)}
    labels = [row["labels"] if row.get("labels") is not None else row.get("label") for row in rows]
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(rows):
        raise ValueError(f"all rows of a batch must have a label, or none; got {unlabelled} of {len(rows)} without.")
    if not unlabelled:
        batch["labels"] = _stack_labels(labels)
    return batch


def _stack_labels(labels: list[Any]) -> Tensor:
    if any(isinstance(label, str) for label in labels):
        raise ValueError("class names must be numbers here; `load_images` turns a column of names into class ids.")
    targets = [torch.as_tensor(label) for label in labels]
    shapes = sorted({tuple(target.shape) for target in targets})
    if len(shapes) > 1:
        raise ValueError(f"the labels of one batch must have one shape; got {', '.join(map(str, shapes))}.")
    are_class_ids = shapes[0] == () and not any(target.is_floating_point() for target in targets)
    return torch.stack([target.to(torch.int64 if are_class_ids else torch.float32) for target in targets])


class MaskingCollator:
    """Batches of images for a masked autoencoder, with the noise that chooses each sample's visible patches.

    The noise is a function of the sample's `sample_seed` alone, so that masks do not depend on batches, workers or
    processes; evaluation draws the same ones every time.

    Args:
        patch_size: height and width of a patch in pixels, or one number for both.
        mask_ratio: share of masked patches, in [0, 1); with 0 there is no noise.
        masking: "random", "block" or "grid".
    """

    def __init__(self, patch_size: int | tuple[int, int], mask_ratio: float, masking: str = "random"):
        self.patch_size, self.mask_ratio, self.masking = as_pair(patch_size), mask_ratio, masking

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Stack `pixel_values` and draw `noise` (batch, patches); labels are left out.

        Where rows stand for bad images, the batch also has `is_blank` (batch,) bool: they are not to be counted.

        Args:
            rows: each holds `pixel_values` (channels, height, width) and `sample_seed`, as `ImageView` gives them.

        Raises:
            ValueError: if there are no rows, shapes differ, or a row has no pixel values or no seed.
        """
        pixel_values = collate_labelled([{"pixel_values": row.get("pixel_values")} for row in rows])["pixel_values"]
        if not self.mask_ratio:
            return {"pixel_values": pixel_values}
        lacking = next((i for i, row in enumerate(rows) if "sample_seed" not in row), None)
        if lacking is not None:
            raise ValueError(
                f"every row must hold `sample_seed`, which the mask is drawn from; row {lacking} has the keys "
                f"{sorted(rows[lacking])}. Wrap the rows in an `ImageView`."
            )
        grid = tuple(size // patch for size, patch in zip(pixel_values.shape[-2:], self.patch_size, strict=True))
        generator = torch.Generator()
        noise = [
            draw_noise(
                self.masking, grid, self.mask_ratio, generator.manual_seed(mix_seed(row["sample_seed"], _MASK_STREAM))
            )
            for row in rows
        ]
        batch = {"pixel_values": pixel_values, "noise": torch.stack(noise)}
        is_blank = [row.get("is_blank", False) for row in rows]
        return {**batch, "is_blank": torch.tensor(is_blank)} if any(is_blank) else batch
