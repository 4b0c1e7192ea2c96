"""What the scripts share that train an image classifier: the arguments of the model, its building, and one whole run."""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForImageClassification, ViTImageProcessor, pipeline, set_seed

from ..conversion.processors import load_image_processor
from ..data.decode import BadImageError
from ..data.order import ImageView, in_memory
from ..data.samples import find_checkpoint
from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_embeddings import as_pair
from ..models.modeling_vit import ViTForImageClassification
from .arguments import VisionTrainingArguments
from .classification import ImageClassificationTrainer
from .recipe import SMOKE_MODEL, DataArguments, load_for_fine_tuning, parse_recipe
from .report import check_output, print_summary, report_classification
from .targets import REGRESSION, SINGLE, Targets, TargetScale, as_numbers, read_targets


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class ModelArguments:
    """The model: built from scratch, or loaded from a checkpoint."""

    checkpoint: str | None = field(default=None, metadata={"help": "Hub id, folder, or fashion-mae, which ships"})
    variant: str | None = field(default=None, metadata={"help": "from scratch: B/16, L/16, ..."})
    image_size: int | None = field(
        default=None, metadata={"help": "pixels; by default the checkpoint's own, 224 from scratch"}
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label_classification, multi_label_classification or regression; told from the labels"
        },
    )
    model: dict = field(default_factory=dict, metadata={"help": "more fields of the model's configuration"})
    image_processor: dict = field(
        default_factory=dict, metadata={"help": "fields of the image processor, such as a centre crop"}
    )
    half_weights: bool = field(default=False, metadata={"help": "save the final weights as float16, half the size"})


def build_classifier(
    args: ModelArguments,
    targets: Targets,
    smoke: bool,
    load: Callable = load_for_fine_tuning,
    vit_class: type = ViTForImageClassification,
):
    """Model and image processor for the targets; the head of a checkpoint is replaced if it has other outputs.

    Args:
        args: what the script was given.
        targets: what the model has to predict.
        smoke: build a tiny model whatever the arguments say, but for the pooling.
        load: called with the checkpoint and fields of the configuration.
        vit_class: what is built where there is no checkpoint.
    """
    labels = targets.config_fields
    if args.checkpoint is not None and not smoke:
        fields = args.model if args.image_size is None else {"image_size": args.image_size, **args.model}
        source = find_checkpoint(args.checkpoint)
        model = load(source, **fields, **labels)
        return model, load_image_processor(source, args.image_size, **args.image_processor)
    fields = {"image_size": args.image_size or 224, **args.model, **labels}
    if smoke:
        fields = {**labels, **SMOKE_MODEL, "pooling": args.model.get("pooling", "cls")}
    is_free = smoke or args.variant is None
    config = VitfmViTConfig(**fields) if is_free else VitfmViTConfig.from_variant(args.variant, **fields)
    height, width = as_pair(config.image_size)
    fields = {"size": {"height": height, "width": width}, **({} if smoke else args.image_processor)}
    return vit_class(config), ViTImageProcessor(**fields)


@dataclass
class ClassificationRun:
    """One run of a recipe: its command line and its data, then training and report.

    Args:
        recipe: path of the script from the root of the repository.
        argv: its command line.
        model_args: the model's part of it.
        data_args: the data's part.
        training_args: the training's part.
        train_rows: to train on.
        eval_rows: to evaluate on, with the targets in their own unit.
        split: what the evaluation rows are called.
        targets: what there is to predict.
    """

    recipe: str
    argv: Sequence[str]
    model_args: ModelArguments
    data_args: DataArguments
    training_args: VisionTrainingArguments
    train_rows: "Dataset"
    eval_rows: "Dataset"
    split: str
    targets: Targets
    scale: TargetScale | None = field(default=None, init=False)  # of numbers to predict; known after `train()`
    seconds: float | None = field(default=None, init=False)  # that the training took

    @classmethod
    def start(cls, recipe: str, argv: Sequence[str] | None, description: str | None) -> "ClassificationRun":
        """Read the command line (the process's own for None), seed, look at the output folder and load the data."""
        argv = sys.argv[1:] if argv is None else argv
        classes = (ModelArguments, DataArguments, VisionTrainingArguments)
        model_args, data_args, training_args = parse_recipe(classes, argv, description=description)
        set_seed(training_args.seed)
        check_output(training_args.output_dir)
        train_rows, eval_rows, split = data_args.load(training_args.seed)
        problem_type = None if data_args.smoke else model_args.problem_type
        if problem_type == REGRESSION:
            train_rows, eval_rows = as_numbers(train_rows), as_numbers(eval_rows)
        column = data_args.label_column if isinstance(data_args.label_column, str) else None
        targets = read_targets(train_rows, problem_type, column)
        if targets.problem_type != SINGLE:
            training_args.label_smoothing_factor = 0.0  # it spreads the one class's probability over the others
        return cls(recipe, argv, model_args, data_args, training_args, train_rows, eval_rows, split, targets)

    @property
    def smoke(self) -> bool:
        """Whether this is to be a few steps of a tiny model."""
        return self.data_args.smoke

    def train(self, model, processor) -> ImageClassificationTrainer:
        """Train; the model of the trainer that is returned predicts numbers in their own unit."""
        train_rows, eval_rows = self.train_rows, self.eval_rows
        if self.targets.problem_type == REGRESSION:
            self.scale = TargetScale.of(train_rows)
            self.scale.heads(model)  # a model without one is an error now rather than after the training
            train_rows, eval_rows = self.scale.standardize(train_rows), self.scale.standardize(eval_rows)
        if self.data_args.keep_in_memory:
            train_rows, eval_rows = in_memory(train_rows), in_memory(eval_rows)
        trainer = ImageClassificationTrainer(
            model=model,
            args=self.training_args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=processor,
        )
        result = trainer.train(resume_from_checkpoint=self.training_args.resume_from_checkpoint)
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        if self.scale is not None:
            self.scale.restore(trainer.model)
            trainer.eval_dataset = self.eval_rows
        self.seconds = result.metrics["train_runtime"]
        return trainer

    def report(self, trainer: ImageClassificationTrainer) -> dict:
        """Evaluate, draw, write the card, and load the finished model as its users will; returns the metrics."""
        dataset = {**self.data_args.describe(), "evaluation_split": self.split}
        run = {
            "recipe": self.recipe,
            "config": self.argv[0],
            "command": shlex.join(["python", self.recipe, *self.argv]),
            "base_model": None if self.smoke else self.model_args.checkpoint,
            "target_scale": None if self.scale is None else asdict(self.scale),
            "sources": {"evaluation": self.data_args.source()},
        }
        splits = {"train": self.train_rows, "evaluation": self.eval_rows}
        metrics = report_classification(trainer, dataset, run, self.model_args.half_weights, splits)
        if trainer.is_world_process_zero():
            check_reload(self.training_args.output_dir, self.eval_rows)
            print_summary(metrics, self.training_args.output_dir, self.seconds)
        return metrics


def check_reload(directory: str, rows) -> None:
    """Load the finished model as its users will, by `from_pretrained` and by `pipeline`, and compare the two.

    Raises:
        RuntimeError: if the two do not agree on the first image that can be decoded.
    """
    model = AutoModelForImageClassification.from_pretrained(directory)
    image = _first_picture(rows).convert("RGB")
    with torch.no_grad():
        logits = model(**load_image_processor(directory)(images=image, return_tensors="pt")).logits[0]
    expected = model.config.id2label[logits.argmax().item()]
    best = pipeline("image-classification", model=directory, device="cpu", function_to_apply="none")(image)[0]
    if best["label"] != expected or abs(best["score"] - logits.max().item()) > 1e-3 * max(1, logits.abs().max()):
        raise RuntimeError(f"from_pretrained and pipeline disagree: {expected} ({logits.max():.4g}), {best}")
    sys.stdout.write(
        f"reloaded with from_pretrained and pipeline: {best['label']!r} is largest for the first evaluation image\n"
    )


def _first_picture(rows):
    view = ImageView(rows, None)
    for index in range(len(rows)):
        with suppress(BadImageError):
            return view.image(index)
    raise BadImageError(f"none of the {len(rows)} evaluation images can be decoded")
