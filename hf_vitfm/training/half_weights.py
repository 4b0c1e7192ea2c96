"""Weights of a finished run rounded to float16, for a file of half the size."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .trainer import VisionTrainer


_EXACT = "position_embeddings"  # fixed ones are a table that is known exactly


def save_half(trainer: VisionTrainer) -> None:
    """Save a trained model in half the space, and leave the trainer with the rounded weights, as users will load them.

    What is measured afterwards holds for the file. Every process calls it.
    """
    trainer.save_model(publish=False)  # what is in the folder is not what is to be published
    if trainer.is_world_process_zero():
        halve_weights(Path(trainer.args.output_dir))
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if not name.endswith(_EXACT):
                weight.copy_(weight.half())


def halve_weights(directory: Path) -> None:
    """Round the weights of a saved model to float16; config.json goes on saying as what they are to be loaded.

    Positions stay as they are.

    Raises:
        ValueError: if a weight is too large for float16; the file is left as it was.
    """
    path = directory / "model.safetensors"
    weights = {name: weight if name.endswith(_EXACT) else weight.half() for name, weight in load_file(path).items()}
    overflowing = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if overflowing:
        raise ValueError(
            f"{len(overflowing)} tensors hold numbers that float16 cannot: {', '.join(overflowing[:5])}. The model is "
            f"saved as it was in {path}; leave `half_weights` out."
        )
    partial = path.with_name(f"{path.name}.partial")
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, path)
