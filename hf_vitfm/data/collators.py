"""Batching of rows that a transform has turned into tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


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
