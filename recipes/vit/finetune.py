"""Train or fine-tune a Vision Transformer (or any image classifier of the Hub) on images with classes or numbers.

ViT paper (Dosovitskiy et al. 2021), section 4.1 and appendix B.1.1. One command does the whole run:

    python recipes/vit/finetune.py recipes/vit/configs/quickstart.yaml

On several devices put `accelerate launch` in the place of `python`. `--smoke` runs any configuration in seconds.
"""

import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import torch
from transformers import AutoModelForImageClassification, ViTImageProcessor, pipeline, set_seed

from hf_vitfm import ImageClassificationTrainer, ViTConfig, ViTForImageClassification, load_image_processor
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.data.order import ImageView, in_memory
from hf_vitfm.models.modeling_embeddings import as_pair
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, load_for_fine_tuning, parse_recipe
from hf_vitfm.training.report import check_output, print_summary, report_classification
from hf_vitfm.training.targets import REGRESSION, SINGLE, Targets, TargetScale, as_numbers, read_targets


@dataclass
class ModelArguments:
    """The model: built from scratch, or loaded from a checkpoint."""

    checkpoint: str | None = field(default=None, metadata={"help": "Hub id or folder to start from"})
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
        default_factory=dict, metadata={"help": "from scratch: fields of the image processor, such as a centre crop"}
    )


def build(args: ModelArguments, targets: Targets, smoke: bool):
    """Model and image processor for the targets; the head of a checkpoint is replaced if it has other outputs."""
    labels = targets.config_fields
    if args.checkpoint is not None and not smoke:
        fields = args.model if args.image_size is None else {"image_size": args.image_size, **args.model}
        if args.image_processor:
            raise ValueError("`image_processor` is for a model from scratch; a checkpoint comes with its own.")
        model = load_for_fine_tuning(args.checkpoint, **fields, **labels)
        return model, load_image_processor(args.checkpoint, image_size=args.image_size)
    fields = {"image_size": args.image_size or 224, **args.model, **labels}
    if smoke:
        fields = {**labels, **SMOKE_MODEL, "pooling": args.model.get("pooling", "cls")}
    config = ViTConfig(**fields) if smoke or args.variant is None else ViTConfig.from_variant(args.variant, **fields)
    height, width = as_pair(config.image_size)
    fields = {"size": {"height": height, "width": width}, **({} if smoke else args.image_processor)}
    return ViTForImageClassification(config), ViTImageProcessor(**fields)


def first_picture(rows):
    """The first image that can be decoded."""
    view = ImageView(rows, None)
    for index in range(len(rows)):
        with suppress(BadImageError):
            return view.image(index)
    raise BadImageError(f"none of the {len(rows)} evaluation images can be decoded")


def check_reload(directory: str, rows) -> None:
    """Load the finished model as its users will, by `from_pretrained` and by `pipeline`, and compare the two."""
    model = AutoModelForImageClassification.from_pretrained(directory)
    image = first_picture(rows).convert("RGB")
    with torch.no_grad():
        logits = model(**load_image_processor(directory)(images=image, return_tensors="pt")).logits[0]
    expected = model.config.id2label[logits.argmax().item()]
    best = pipeline("image-classification", model=directory, device="cpu", function_to_apply="none")(image)[0]
    if best["label"] != expected or abs(best["score"] - logits.max().item()) > 1e-3 * max(1, logits.abs().max()):
        raise RuntimeError(f"from_pretrained and pipeline disagree: {expected} ({logits.max():.4g}), {best}")
    print(f"reloaded with from_pretrained and pipeline: {best['label']!r} is largest for the first evaluation image")


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics of the evaluation set."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, VisionTrainingArguments)
    model_args, data_args, training_args = parse_recipe(classes, argv, description=__doc__)
    set_seed(training_args.seed)

    check_output(training_args.output_dir)

    # 1. Data
    train_rows, eval_rows, split = data_args.load(training_args.seed)
    problem_type = None if data_args.smoke else model_args.problem_type
    if problem_type == REGRESSION:
        train_rows, eval_rows = as_numbers(train_rows), as_numbers(eval_rows)
    column = data_args.label_column if isinstance(data_args.label_column, str) else None
    targets = read_targets(train_rows, problem_type, column)
    if targets.problem_type != SINGLE:
        training_args.label_smoothing_factor = 0.0  # it spreads the one class's probability over the others
    # 2. Model and image processor
    model, processor = build(model_args, targets, data_args.smoke)
    # 3. Train
    report_rows, scale = eval_rows, None
    if targets.problem_type == REGRESSION:
        scale = TargetScale.of(train_rows)
        scale.heads(model)  # a model without one is an error now rather than after the training
        train_rows, eval_rows = scale.standardize(train_rows), scale.standardize(eval_rows)
    if data_args.keep_in_memory:
        train_rows, eval_rows = in_memory(train_rows), in_memory(eval_rows)
    trainer = ImageClassificationTrainer(
        model=model,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    if scale is not None:
        scale.restore(trainer.model)
        trainer.eval_dataset = report_rows
    # 4. Evaluate, draw, write the card
    dataset = {**data_args.describe(), "evaluation_split": split}
    run = {
        "recipe": "recipes/vit/finetune.py",
        "config": argv[0],
        "command": shlex.join(["python", "recipes/vit/finetune.py", *argv]),
        "base_model": None if data_args.smoke else model_args.checkpoint,
        "target_scale": None if scale is None else asdict(scale),
    }
    metrics = report_classification(trainer, dataset, run)
    if trainer.is_world_process_zero():
        check_reload(training_args.output_dir, eval_rows)
        print_summary(metrics, training_args.output_dir, result.metrics["train_runtime"])
    return metrics


if __name__ == "__main__":
    main()
