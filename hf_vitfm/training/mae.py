"""Pre-training of masked autoencoders (He et al. 2022), on images without labels."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..data.collators import MaskingCollator
from ..data.order import ImageView
from ..evaluation.features import extract_features
from ..evaluation.neighbours import knn_accuracy
from ..evaluation.reconstruction import picture_reconstructions
from ..models.modeling_losses import IGNORE_INDEX
from ..models.modeling_mae import MAEForPreTraining
from .trainer import VisionTrainer


PICTURES = "reconstructions"
_PICTURED_ROWS = 8
_NEIGHBOURS = 20  # as DINO's evaluation
_LABEL_SETTINGS = ("mixup_alpha", "cutmix_alpha", "label_smoothing_factor", "class_weights")


class MAETrainer(VisionTrainer):
    """Trains a masked autoencoder; the mask of a sample is a function of (seed, epoch, sample), as its crop is.

    Every evaluation reports the loss, under masks that are the same each time, and draws reconstructions of the first
    evaluation images at 75, 85 and 95 % (where these leave a patch visible) into reconstructions/step-N.png of the
    output folder. With `labelled_datasets` it also reports `knn_top1`: how many labelled images the encoder's features
    (mean of the patches, nothing masked) classify right by their 20 nearest neighbours. Bad images that are skipped
    count in none of these. `predict()` gives the loss of every image in `predictions`; `label_ids` are 0 for bad ones.

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
                f"Settings for labels, of which pre-training has none: {', '.join(given)}. Leave them out; fine-tuning is "
                "recipes/mae/finetune.py."
            )
        self.labelled_datasets = labelled_datasets
        self.label_names = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean over the masked patches of a batch; every sample has equally many of them."""
        outputs = model(**inputs, return_logits=return_outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """A loss per image and whether it counts, not their mean: the rows that fill up the last batch are cut off."""
        inputs = self._prepare_inputs(inputs)
        is_blank = inputs.pop("is_blank", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, return_logits=True)
            errors = self.model.patch_losses(outputs.logits, self.model.patchify(inputs["pixel_values"]))
            losses = (errors * outputs.mask).sum(dim=1) / outputs.mask.sum(dim=1)
        counts = torch.ones_like(losses, dtype=torch.uint8) if is_blank is None else (~is_blank).to(torch.uint8)
        return None, losses, counts

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, the neighbours' accuracy and the pictures, all with the averaged weights if there are any."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        losses, counts = (
            np.concatenate(values) if isinstance(values, list) else values  # with `eval_do_concat_batches=False`
            for values in (output.predictions, output.label_ids)
        )
        losses = losses[counts.astype(bool)]
        output.metrics[f"{metric_key_prefix}_loss"] = float(losses.mean(dtype=float))
        if not metric_key_prefix.startswith("eval"):  # `predict()`
            return output
        with self._averaged(), self._random_numbers_apart():
            if self.labelled_datasets is not None:
                output.metrics[f"{metric_key_prefix}_knn_top1"] = self._classify_by_neighbours()
            if self.processing_class is not None:
                name = f"step-{self.state.global_step}{metric_key_prefix.removeprefix('eval').replace('_', '-')}.png"
                path = Path(self.args.output_dir) / PICTURES / name
                self.draw_reconstructions(dataloader.dataset, path if self.is_world_process_zero() else None)
        return output

    def draw_reconstructions(self, rows: Sequence[dict], path: Path | None) -> None:
        """Draw what the model makes of the first rows, which hold `pixel_values`; bad images are passed over.

        Every process calls it, since they may share the model; where `path` is None nothing is written.
        """
        good = (row for row in (rows[i] for i in range(len(rows))) if not row.get("is_blank"))
        pixel_values = torch.stack([torch.as_tensor(row["pixel_values"]) for row in islice(good, _PICTURED_ROWS)])
        picture_reconstructions(self.model, pixel_values, self.processing_class, path)

    def _classify_by_neighbours(self) -> float:
        bank, queries = (self._extract(rows) for rows in self.labelled_datasets)
        return knn_accuracy(*bank, *queries, k=min(_NEIGHBOURS, len(bank[0])))

    def _extract(self, rows: Sequence[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        args = self.args
        view = ImageView(rows, self.eval_transform, on_bad_image=args.on_bad_image)
        features, labels = extract_features(
            self.model,
            view,
            batch_size=args.per_device_eval_batch_size,
            pooling="mean",
            num_workers=args.dataloader_num_workers,
        )
        is_good = labels != IGNORE_INDEX
        return features[is_good], labels[is_good]
