"""Train or fine-tune a Vision Transformer (or any image classifier of the Hub) on labelled images.

ViT paper (Dosovitskiy et al. 2021), section 4.1 and appendix B.1.1. One command does the whole run:

    python recipes/vit/finetune.py recipes/vit/configs/quickstart.yaml

On several devices put `accelerate launch` in the place of `python`. `--smoke` runs any configuration in seconds.
"""

import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForImageClassification, ViTImageProcessor, pipeline, set_seed

from hf_vitfm import ImageClassificationTrainer, ViTConfig, ViTForImageClassification, load_image_processor
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.data.order import ImageView, in_memory
from hf_vitfm.models.modeling_embeddings import as_pair
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, load_for_fine_tuning, parse_recipe
from hf_vitfm.training.report import check_output, print_summary, report_classification


@dataclass
class ModelArguments:
    """The model: built from scratch, or loaded from a checkpoint."""

    checkpoint: str | None = field(default=None, metadata={"help": "Hub id or folder to start from"})
    variant: str | None = field(default=None, metadata={"help": "from scratch: B/16, L/16, ..."})
    image_size: int | None = field(
        default=None, metadata={"help": "pixels; by default the checkpoint's own, 224 from scratch"}
    )
    model: dict = field(default_factory=dict, metadata={"help": "more fields of the model's configuration"})


def build(args: ModelArguments, class_names: list[str], smoke: bool):
    """Model and image processor for the classes; the head of a checkpoint is replaced if it has other classes."""
    labels = {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
    if args.checkpoint is not None and not smoke:
        fields = args.model if args.image_size is None else {"image_size": args.image_size, **args.model}
        model = load_for_fine_tuning(args.checkpoint, **fields, **labels)
        return model, load_image_processor(args.checkpoint, image_size=args.image_size)
    fields = {"image_size": args.image_size or 224, **args.model, **labels}
    if smoke:
        fields = {**labels, **SMOKE_MODEL, "pooling": args.model.get("pooling", "cls")}
    config = ViTConfig(**fields) if smoke or args.variant is None else ViTConfig.from_variant(args.variant, **fields)
    height, width = as_pair(config.image_size)
    return ViTForImageClassification(config), ViTImageProcessor(size={"height": height, "width": width})


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
    pixels = load_image_processor(directory)(images=image, return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).logits.argmax(-1).item()
    best = pipeline("image-classification", model=directory, device="cpu")(image)[0]
    if best["label"] != model.config.id2label[expected]:
        raise RuntimeError(
            f"from_pretrained and pipeline disagree: {model.config.id2label[expected]}, {best['label']}"
        )
    print(
        f"reloaded with from_pretrained and pipeline: the first evaluation image is {best['label']!r} ({best['score']:.2f})"
    )


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics of the evaluation set."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, VisionTrainingArguments)
    model_args, data_args, training_args = parse_recipe(classes, argv, description=__doc__)
    set_seed(training_args.seed)

    check_output(training_args.output_dir)

    # 1. Data
    train_rows, eval_rows, split = data_args.load(training_args.seed)
    class_names = getattr(train_rows.features["label"], "names", None)
    if class_names is None:
        raise ValueError(
            "This recipe needs one class per image; the label column holds numbers that are no class ids."
        )
    # 2. Model and image processor
    model, processor = build(model_args, class_names, data_args.smoke)
    # 3. Train
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
    # 4. Evaluate, draw, write the card
    dataset = {**data_args.describe(), "evaluation_split": split}
    run = {
        "recipe": "recipes/vit/finetune.py",
        "config": argv[0],
        "command": shlex.join(["python", "recipes/vit/finetune.py", *argv]),
        "base_model": None if data_args.smoke else model_args.checkpoint,
    }
    metrics = report_classification(trainer, dataset, run)
    if trainer.is_world_process_zero():
        check_reload(training_args.output_dir, eval_rows)
        metrics["eval_samples"] = len(eval_rows)
        print_summary(metrics, training_args.output_dir, result.metrics["train_runtime"])
    return metrics


if __name__ == "__main__":
    main()
