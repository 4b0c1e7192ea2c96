"""Training image classifiers: ours and any `AutoModelForImageClassification`."""

import torch

from ..data.collators import collate_labelled
from ..evaluation.metrics import classification_metrics, summarize_logits
from ..evaluation.multi_label import multi_label_metrics
from ..evaluation.regression import regression_metrics
from ..models.modeling_losses import IGNORE_INDEX, classification_loss, known_rows, resolve_problem_type
from .class_weights import balanced_class_weights, read_labels
from .trainer import VisionTrainer


class ImageClassificationTrainer(VisionTrainer):
    """Trains with hard or soft targets, several labels or regression, and reports the metrics of each.

    The loss is computed here from the model's logits, so that it is the same for every model, exact under accumulation
    and on several devices, and label smoothing and class weights apply to training alone. Class ids need no
    configuration; rows of probabilities need `model.config.problem_type = "single_label_classification"`.

    `evaluate()` gathers four numbers per image for class ids (`classification_metrics`), the logits for several labels
    (`multi_label_metrics`) and numbers (`regression_metrics`); for soft targets it reports the loss alone. `predict()`
    gives the logits. Rows of class id -100, or with a NaN in their target, count nowhere.
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
        self.class_weights = self._weigh_classes()
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

    def _weigh_classes(self) -> torch.Tensor | None:
        if self.args.class_weights is None or self.train_dataset is None:
            return None
        labels = read_labels(self.train_dataset)
        kind = self.problem_type(labels)
        if kind != "single_label_classification":
            raise ValueError(f"`class_weights` are for one class per image; got the problem type {kind!r}.")
        return balanced_class_weights(labels, self.model.config.num_labels).to(self.args.device, torch.float32)

    def _get_num_items_in_batch(self, batch_samples, device):
        # Trainer knows only -100, which may be a number that is to be predicted.
        marked = []
        for batch in batch_samples:
            labels = batch.get("labels")
            if labels is not None and labels.is_floating_point():
                known = known_rows(labels).view(-1, *[1] * (labels.ndim - 1)).expand_as(labels)
                batch = {"labels": torch.where(known, 0, IGNORE_INDEX)}
            marked.append(batch)
        return super()._get_num_items_in_batch(marked, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of a batch; divided by the whole global batch's label elements in training."""
        if self.compute_loss_func is not None or "labels" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        kind = self.problem_type(inputs["labels"])
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
            class_weights=self.class_weights if model.training else None,
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, outputs) if return_outputs else loss

    def _mix(self, inputs: dict, num_items: torch.Tensor | int | None) -> tuple[dict, torch.Tensor | int | None]:
        """Mix neighbours; class ids become rows of probabilities, so that there are more label elements to count."""
        labels, num_labels = inputs["labels"], self.model.config.num_labels
        pixel_values, targets = self.mixing(inputs["pixel_values"], labels, num_labels, self.state.global_step)
        if not labels.is_floating_point():
            num_items = None if num_items is None else num_items * num_labels
        return {**inputs, "pixel_values": pixel_values, "labels": targets}, num_items

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """Logits of every row in `predictions`, in the order of the data set, with the metrics."""
        self._gather_logits = True
        try:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._gather_logits = False

    def problem_type(self, labels: torch.Tensor) -> str:
        """The kind of targets: one class, several labels or numbers."""
        config = self.model.config
        return resolve_problem_type(config.problem_type, config.num_labels, labels)

    def _has_class_ids(self, labels: torch.Tensor) -> bool:
        return self.problem_type(labels) == "single_label_classification" and not labels.is_floating_point()

    def _summarize(self, logits, labels):
        logits = logits[0] if isinstance(logits, tuple) else logits
        if self._gather_logits or labels is None or not self._has_class_ids(labels):
            return logits
        return summarize_logits(logits, labels.clamp(min=0))  # ignored rows are left out below

    def _compute_metrics(self, prediction) -> dict[str, float]:
        predictions, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
        if not self._gather_logits or not self._has_class_ids(labels):
            metrics = self.measure(predictions, labels)
        else:
            metrics = self.measure(summarize_logits(predictions, labels.clamp(min=0)), labels)
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    def measure(self, predictions: torch.Tensor, labels: torch.Tensor) -> dict:
        """All metrics of a whole evaluation set, also by class or output.

        Args:
            predictions: (rows, 4) summaries (`summarize_logits`) for class ids; (rows, outputs) logits otherwise.
            labels: the targets as the collator gives them; rows without one are left out.

        Returns:
            What `classification_metrics`, `multi_label_metrics` or `regression_metrics` returns; for soft targets the
            mean `loss` of the rows.
        """
        kind = self.problem_type(labels)
        if self._has_class_ids(labels):
            kept = known_rows(labels)
            return classification_metrics(predictions[kept], labels[kept], self.class_names)
        if kind == "single_label_classification":
            return {"loss": classification_loss(predictions, labels, kind).item()}
        measure = regression_metrics if kind == "regression" else multi_label_metrics
        return measure(predictions, labels, self.class_names)
