"""Small pre-training runs for tests; importable in worker processes."""

import numpy as np
import torch
from transformers import TrainerCallback, ViTImageProcessor

from hf_vitfm import MAEConfig, MAEForPreTraining, MAETrainer
from hf_vitfm.data.collators import MaskingCollator
from hf_vitfm.data.order import ImageView
from tests.tiny import MAE_FIELDS
from tests.training.runs import make_args, make_images


def make_mae(dtype=torch.float32, **fields) -> MAEForPreTraining:
    """A tiny autoencoder of 32 x 32 pixels and 16 patches as a user starts with it, the same in every process."""
    torch.manual_seed(0)
    return MAEForPreTraining(MAEConfig(**{**MAE_FIELDS, **fields})).to(dtype)


def make_processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 32, "width": 32})


def make_trainer(output_dir, train_dataset=None, model=None, trainer_options=None, **options) -> MAETrainer:
    """Images of 20 x 24 pixels, cropped at random to 32 x 32; 8 a step."""
    return MAETrainer(
        model=make_mae() if model is None else model,
        args=make_args(output_dir, **{"crop_scale": [0.3, 1.0], **options}),
        train_dataset=make_images() if train_dataset is None else train_dataset,
        **{"processing_class": make_processor(), **(trainer_options or {})},
    )


def collate_in_float64(rows) -> dict:
    """Images are made in float32; everything after them is float64."""
    batch = MaskingCollator(patch_size=8, mask_ratio=0.75)(rows)
    return {**batch, "pixel_values": batch["pixel_values"].double()}


@torch.no_grad()
def mean_loss(rows, transform, left_out=()) -> float:
    """What an evaluation is to report: images in one batch, in float64, each with the mask of its place in the rows."""
    view = ImageView(rows, transform)
    batch = collate_in_float64([view[i] for i in range(len(rows)) if i not in left_out])
    return make_mae(torch.float64).eval()(**batch).loss.item()


class KeepGradients(TrainerCallback):
    """Copies of the gradients of the first step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            model = getattr(model, "module", model)
            named = model.named_parameters()
            self.gradients = {name: p.grad.numpy().copy() for name, p in named if p.grad is not None}


def record_losses(trainer) -> list[float]:
    """The losses of the micro-batches, as they add up to that of a step: Trainer's log adds them in float32."""
    losses, training_step = [], trainer.training_step

    def record(*args, **kwargs):
        loss = training_step(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.training_step = record
    return losses


def pretrain(output_dir, double: bool = True, fields=None, **options) -> dict:
    """Train, into the second epoch; losses by step, gradients of the first step and weights as plain numbers."""
    model = make_mae(torch.float64 if double else torch.float32, **(fields or {}))
    collator = {"data_collator": collate_in_float64} if double else None
    trainer = make_trainer(
        output_dir, model=model, trainer_options=collator, **{"max_steps": 5, "learning_rate": 0.5, **options}
    )
    losses, keep = record_losses(trainer), KeepGradients()
    trainer.add_callback(keep)
    trainer.train()
    return {
        "losses": np.array(losses).reshape(5, -1).sum(axis=1),
        "gradients": keep.gradients,
        "is_checkpointing": trainer.model.is_gradient_checkpointing,
        "weights": {name: weight.numpy().copy() for name, weight in trainer.model.state_dict().items()},
    }
