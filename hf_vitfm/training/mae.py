"""Pre-training of masked autoencoders (He et al. 2022), on images without labels."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.collators import MaskingCollator
from ..evaluation.features import extract_features
from ..evaluation.neighbours import knn_accuracy
from ..evaluation.reconstruction import picture_reconstructions
from ..models.modeling_mae import MAEForPreTraining
from .trainer import VisionTrainer


PICTURES = "reconstructions"
_PICTURED_ROWS = 8
_NEIGHBOURS = 20  # as DINO's evaluation
_LABEL_SETTINGS = ("mixup_alpha", "cutmix_alpha", "label_smoothing_factor", "class_weights")


class MAETrainer(VisionTrainer):
    """Trains a masked autoencoder; the mask of a sample is a function of (seed, epoch, sample), as its crop is.

    Every evaluation reports the loss, under masks that are the same each time, and draws reconstructions of the first
    evaluation images at 75, 85 and 95 % (where these leave a patch visible) into reconstructions/step-N.png of the output folder. With `labelled_datasets`
    it also reports `knn_top1`: how many labelled images the encoder's features (mean of the patches, nothing masked)
    classify right by their 20 nearest neighbours.

    Weight decay is the original's: class and mask token are decayed, biases and norms are not.

    Args:
        model: `MAEForPreTraining`.
        args: `VisionTrainingArguments`; settings that need labels are refused.
        labelled_datasets: rows with labels, (bank, queries): the queries look for neighbours in the bank.
        data_collator: rows with `pixel_values` and `sample_seed` -> batch; by default `MaskingCollator`.
        **kwargs: as `VisionTrainer` has them; rows need no label.

    Raises:
        TypeError: if the model is another one.
        ValueError: for settings that need labels, or a model that masks nothing.
    """

    no_decay_names = ("position_embeddings",)  # where they are learned

    def __init__(
        self,
        model: MAEForPreTraining | None = None,
        args=None,
        *,
        labelled_datasets: tuple[Sequence[dict], Sequence[dict]] | None = None,
        data_collator=None,
        **kwargs,
    ):
        if not isinstance(model, MAEForPreTraining):
            raise TypeError(f"`model` must be an MAEForPreTraining; got {type(model).__name__}.")
        config = model.config
        if not config.mask_ratio:
            raise ValueError("`mask_ratio=0` leaves nothing to predict. Train with a ratio in (0, 1), such as 0.75.")
        collator = data_collator or MaskingCollator(config.patch_size, config.mask_ratio, config.masking)
        super().__init__(model=model, args=args, data_collator=collator, **kwargs)
        given = [name for name in _LABEL_SETTINGS if getattr(args, name)]
        if given:
            raise ValueError(
                f"{', '.join(given)} mix or weigh labels, of which pre-training has none. Leave them out."
            )
        self.labelled_datasets = labelled_datasets
        self.label_names = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean over the masked patches of a batch; every sample has equally many of them."""
        outputs = model(**inputs, return_logits=return_outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of a batch; predicted pixels are not collected."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, the neighbours' accuracy and the pictures, all with the averaged weights if there are any."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        with self._averaged(), self._random_numbers_apart():
            if self.labelled_datasets is not None:
                output.metrics[f"{metric_key_prefix}_knn_top1"] = self._classify_by_neighbours()
            if self.is_world_process_zero() and self.processing_class is not None:
                name = f"step-{self.state.global_step}.png"
                self.draw_reconstructions(dataloader.dataset, Path(self.args.output_dir) / PICTURES / name)
        return output

    def draw_reconstructions(self, rows: Sequence[dict], path: Path) -> None:
        """Draw what the model makes of the first rows, which hold `pixel_values`."""
        pixels = [torch.as_tensor(rows[i]["pixel_values"]) for i in range(min(_PICTURED_ROWS, len(rows)))]
        picture_reconstructions(self.model, torch.stack(pixels), self.processing_class, path)

    def _classify_by_neighbours(self) -> float:
        bank, queries = (
            extract_features(
                self.model, rows, self.eval_transform, self.args.per_device_eval_batch_size, pooling="mean"
            )
            for rows in self.labelled_datasets
        )
        return knn_accuracy(*bank, *queries, k=min(_NEIGHBOURS, len(bank[0])))
