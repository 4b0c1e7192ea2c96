"""One warning, after a training or an evaluation, about the images that were skipped in it."""

import logging

import torch
from transformers import TrainingArguments

from ..data.order import ImageView


logger = logging.getLogger(__name__)

_NAMED = 5


def warn_of_bad_images(view: ImageView | None, purpose: str, args: TrainingArguments) -> int:
    """Say how many rows were skipped, over all processes, and which were the first; nothing if there were none.

    Every process has to call it.

    Args:
        view: the rows; with `on_bad_image="error"`, or None, there is nothing to say.
        purpose: "training" or "evaluation".
        args: of the run; they know the processes and their device.

    Returns:
        How many they were.
    """
    if view is None or view.bad_rows is None:
        return 0
    bad = view.bad_rows
    if args.world_size > 1:  # the largest, not the sum: two processes may have met the same row
        bad = bad.to(args.device, copy=True)
        torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    indices = bad.nonzero().flatten().tolist()
    if indices and args.process_index == 0:
        names = ", ".join(view.name(index) for index in indices[:_NAMED])
        more = ", ..." if len(indices) > _NAMED else ""
        logger.warning("%d of %d images were skipped in %s: %s%s", len(indices), len(view), purpose, names, more)
    return len(indices)
