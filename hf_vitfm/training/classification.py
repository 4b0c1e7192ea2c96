"""Training image classifiers: ours and any `AutoModelForImageClassification`."""

import numpy as np
import torch

from ..data.collators import collate_labelled
from ..evaluation.metrics import classification_metrics, summarize_logits
from ..models.modeling_losses import IGNORE_INDEX, classification_loss, resolve_problem_type
from .trainer import VisionTrainer


class ImageClassificationTrainer(VisionTrainer):
    """Trains with hard or soft targets, several labels or regression; reports top-1, top-5 and mean per class.

    The loss is computed here from the model's logits, so that it is the same for every model, exact under accumulation
    and on several devices, and label smoothing applies to training alone. Class ids need no configuration; rows of
    probabilities need `model.config.problem_type = "single_label_classification"`.

    `evaluate()` gathers four numbers per image; `predict()` gives the logits.
    """

    def __init__(self, model=None, args=None, *, data_collator=None, compute_metrics=None, **kwargs):
        self._gather_logits = False
        self._own_metrics = compute_metrics is None
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or collate_labelled,
            compute_metrics=compute_metrics or self._compute_metrics,
            preprocess_logits_for_metrics=self._summarize if self._own_metrics else None,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # `compute_loss` below divides by `num_items_in_batch` for every model
        self.label_smoother = None  # `compute_loss` smooths
        if self.args.label_names is None:
            self.label_names = ["labels"]
        self.class_names = self._check_classes()
        self.mixing = self.args.mixing
        if self.mixing is not None and self.model.config.num_labels == 1:
            raise ValueError("mixup and CutMix need at least two classes or labels; the model has one output.")

    def _check_classes(self) -> list[str]:
        config = self.model.config
        for name, dataset in (("train_dataset", self.train_dataset), ("eval_dataset", self.eval_dataset)):
            features = getattr(dataset, "features", None) or {}
            classes = getattr(features.get("labels") or features.get("label"), "names", None)
            if classes is not None and len(classes) != config.num_labels:
                raise ValueError(
                    f"`{name}` has {len(classes)} classes, the model {config.num_labels} outputs. Load the model with "
                    f"`num_labels={len(classes)}` (and `ignore_mismatched_sizes=True` to replace its head)."
                )
            own = [config.id2label[i] for i in range(config.num_labels)]
            if classes is not None and classes != own and sorted(classes) == sorted(own):
                raise ValueError(
                    f"`{name}` numbers the classes otherwise than the model: {', '.join(classes[:5])}, ... against "
                    f"{', '.join(own[:5])}, ... Cast its label column to the model's order."
                )
        return [config.id2label[i] for i in range(config.num_labels)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of a batch; divided by the whole global batch's label elements in training."""
        if self.compute_loss_func is not None or "labels" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        config = self.model.config
        kind = resolve_problem_type(config.problem_type, config.num_labels, inputs["labels"])
        if model.training and self.mixing is not None:
            inputs, num_items_in_batch = self._mix(inputs, num_items_in_batch)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        loss = classification_loss(
            logits,
            inputs["labels"],
            kind,
            num_items_in_batch,
            label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, outputs) if return_outputs else loss

    def _mix(self, inputs: dict, num_items: torch.Tensor | int | None) -> tuple[dict, torch.Tensor | int | None]:
        """Mix neighbours; class ids become rows of probabilities, so that there are more label elements to count."""
        labels, num_labels = inputs["labels"], self.model.config.num_labels
        pixel_values, targets = self.mixing(inputs["pixel_values"], labels, num_labels, self.state.global_step)
        if num_items is not None and not labels.is_floating_point():
            num_items = num_items * num_labels
        return {**inputs, "pixel_values": pixel_values, "labels": targets}, num_items

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """Logits of every row in `predictions`, in the order of the data set, with the metrics."""
        self._gather_logits = True
        try:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._gather_logits = False

    def _single_label(self, labels: torch.Tensor) -> bool:
        config = self.model.config
        kind = resolve_problem_type(config.problem_type, config.num_labels, labels)
        return kind == "single_label_classification" and not labels.is_floating_point()

    def _summarize(self, logits, labels):
        logits = logits[0] if isinstance(logits, tuple) else logits
        if self._gather_logits or labels is None or not self._single_label(labels):
            return logits
        return summarize_logits(logits, labels.clamp(min=0))  # ignored rows are left out below

    def _compute_metrics(self, prediction) -> dict[str, float]:
        predictions, labels = prediction.predictions, torch.as_tensor(np.asarray(prediction.label_ids))
        if not self._single_label(labels):
            return {}
        if self._gather_logits:
            predictions = summarize_logits(torch.as_tensor(predictions), labels.clamp(min=0))
        kept = labels != IGNORE_INDEX
        predictions, labels = torch.as_tensor(predictions)[kept], labels[kept]
        metrics = classification_metrics(predictions, labels, self.class_names)
        metrics.pop("per_class")
        return metrics
