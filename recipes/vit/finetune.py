"""Train or fine-tune a Vision Transformer (or any image classifier of the Hub) on labelled images.

ViT paper (Dosovitskiy et al. 2021), section 4.1 and appendix B.1.1. One command does the whole run:

    python recipes/vit/finetune.py recipes/vit/configs/quickstart.yaml

On several devices put `accelerate launch` in the place of `python`. `--smoke` runs any configuration in seconds.
"""

import sys
from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor, pipeline, set_seed

from hf_vitfm import ImageClassificationTrainer, ViTConfig, ViTForImageClassification, load_image_processor
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, parse_recipe
from hf_vitfm.training.report import print_summary, report_classification


@dataclass
class ModelArguments:
    """The model: built from scratch, or loaded from a checkpoint."""

    checkpoint: str | None = field(default=None, metadata={"help": "Hub id or folder to start from"})
    variant: str | None = field(default=None, metadata={"help": "from scratch: B/16, L/16, ..."})
    image_size: int = field(default=224, metadata={"help": "pixels; positions are resized to it"})
    model: dict = field(default_factory=dict, metadata={"help": "more fields of the model's configuration"})


def build(args: ModelArguments, class_names: list[str], smoke: bool):
    """Model and image processor for the classes; the head of a checkpoint is replaced if it has other classes."""
    labels = {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
    fields = {"image_size": args.image_size, **args.model, **labels}
    if smoke:
        fields = {
            **{name: value for name, value in fields.items() if name in labels or name == "pooling"},
            **SMOKE_MODEL,
        }
    if args.checkpoint is None or smoke:
        config = (
            ViTConfig(**fields) if smoke or args.variant is None else ViTConfig.from_variant(args.variant, **fields)
        )
        size = {"height": config.image_size, "width": config.image_size}
        return ViTForImageClassification(config), ViTImageProcessor(size=size)
    processor = load_image_processor(args.checkpoint, image_size=args.image_size)
    config = AutoConfig.from_pretrained(args.checkpoint)
    if config.model_type in ("vit", ViTConfig.model_type):
        fields.setdefault("representation_size", None)  # fine-tuning drops the pre-logits layer (section 3.2)
        load = ViTForImageClassification.from_pretrained
    else:
        load = AutoModelForImageClassification.from_pretrained
        if not hasattr(config, "image_size"):  # convolutions take any size
            fields.pop("image_size")
    return load(args.checkpoint, ignore_mismatched_sizes=True, **fields), processor


def check_reload(directory: str, rows) -> None:
    """Load the finished model as its users will, by `from_pretrained` and by `pipeline`, and compare the two."""
    model = AutoModelForImageClassification.from_pretrained(directory)
    pixels = load_image_processor(directory)(images=rows[0]["image"].convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).logits.argmax(-1).item()
    best = pipeline("image-classification", model=directory, device="cpu")(rows[0]["image"].convert("RGB"))[0]
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

    # 1. Data
    train_rows, eval_rows, split = data_args.load(training_args.seed)
    class_names = train_rows.features["label"].names
    # 2. Model and image processor
    model, processor = build(model_args, class_names, data_args.smoke)
    # 3. Train
    if data_args.keep_in_memory:
        train_rows, eval_rows = list(train_rows), list(eval_rows)
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
    run = {"recipe": "recipes/vit/finetune.py", "config": argv[0], "base_model": model_args.checkpoint}
    metrics = report_classification(trainer, dataset, {**run, "command": f"python {run['recipe']} {' '.join(argv)}"})
    if trainer.is_world_process_zero():
        check_reload(training_args.output_dir, eval_rows)
        metrics["eval_samples"] = len(eval_rows)
        print_summary(metrics, training_args.output_dir, result.metrics["train_runtime"])
    return metrics


if __name__ == "__main__":
    main()
