"""Pre-train a masked autoencoder on images without labels.

MAE (He et al. 2022), section 4 and appendix A.1. One command does the whole run:

    python recipes/mae/pretrain.py recipes/mae/configs/pretrain_fashion.yaml

On several devices put `accelerate launch` in the place of `python`. `--smoke` runs any configuration in seconds. What
comes out is fine-tuned by recipes/mae/finetune.py and recipes/mae/linear_probe.py.
"""

import shlex
import sys
from dataclasses import dataclass, field

import torch
from transformers import ViTImageProcessor, set_seed

from hf_vitfm import MAEConfig, MAEForPreTraining, MAETrainer, VisionTrainingArguments, load_image_processor
from hf_vitfm.data.order import in_memory
from hf_vitfm.data.samples import find_checkpoint
from hf_vitfm.evaluation.reconstruction import load_autoencoder
from hf_vitfm.models.configuration_base import as_pair
from hf_vitfm.training.mae_report import report_pretraining
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, parse_recipe
from hf_vitfm.training.report import check_output


SMOKE_DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


@dataclass
class ModelArguments:
    """The autoencoder: from scratch, or a checkpoint with its decoder to go on from."""

    checkpoint: str | None = field(default=None, metadata={"help": "Hub id or folder whose weights to start from"})
    variant: str | None = field(default=None, metadata={"help": "from scratch: B/16, L/16, ..."})
    image_size: int | None = field(
        default=None, metadata={"help": "pixels; by default the checkpoint's own, 224 from scratch"}
    )
    model: dict = field(default_factory=dict, metadata={"help": "more fields of the model's configuration"})
    image_processor: dict = field(default_factory=dict, metadata={"help": "from scratch: its fields"})
    half_weights: bool = field(default=False, metadata={"help": "save the final weights as float16, half the size"})


@dataclass
class LabelledArguments:
    """A labelled set that shows during pre-training how good the features are; nothing is trained on it."""

    labelled: dict = field(
        default_factory=dict,
        metadata={"help": "options of data, such as {dataset: fashion-mnist, holdout: 1000}: rows held out or of the "
                  "evaluation split are classified by their neighbours among the others"},
    )  # fmt: skip

    labelled_seen: bool = field(
        default=False, metadata={"help": "they are among the images that are trained on, which the card will say"}
    )

    def options(self, smoke: bool) -> DataArguments | None:
        """Which rows they are, if there are any."""
        if not self.labelled:
            return None
        try:
            return DataArguments(**{**self.labelled, "smoke": smoke})
        except TypeError as error:
            raise ValueError(
                f"`labelled` takes options of data, `dataset` among them; got {self.labelled}."
            ) from error

    def load(self, seed: int, smoke: bool):
        """(bank, queries), both with labels, and what the card says of them; or None twice."""
        options = self.options(smoke)
        if options is None:
            return None, None
        bank, queries, split = options.load(seed)
        about = {
            "dataset": options.describe()["id"],
            "bank_rows": len(bank),
            "query_rows": len(queries),
            "split": split,
        }
        return (bank, queries), about


def build(args: ModelArguments, smoke: bool):
    """Model and image processor."""
    if args.checkpoint is not None and not smoke:
        if args.image_processor or args.variant:
            raise ValueError("`image_processor` and `variant` are for a model from scratch; leave them out.")
        fields = args.model if args.image_size is None else {"image_size": args.image_size, **args.model}
        source = find_checkpoint(args.checkpoint)
        return load_autoencoder(source, dtype=torch.float32, **fields), load_image_processor(
            source, image_size=args.image_size
        )
    fields = {"image_size": args.image_size or 224, **args.model}
    if smoke:
        masking = {name: args.model[name] for name in ("mask_ratio", "norm_pix_loss") if name in args.model}
        fields = {**masking, **SMOKE_MODEL, **SMOKE_DECODER}
    config = MAEConfig(**fields) if smoke or args.variant is None else MAEConfig.from_variant(args.variant, **fields)
    height, width = as_pair(config.image_size)
    processor = {"size": {"height": height, "width": width}, **({} if smoke else args.image_processor)}
    return MAEForPreTraining(config), ViTImageProcessor(**processor)


def check_reload(trainer: MAETrainer) -> None:
    """Load the finished model as its users will, and compare it with the one that was trained.

    Every process calls it, since they may share the model that was trained.
    """
    pixel_values = trainer.get_eval_dataloader().dataset[0]["pixel_values"].unsqueeze(0)
    with torch.no_grad():
        trained = trainer.model.eval()(pixel_values.to(trainer.model.device)).loss.item()
        if not trainer.is_world_process_zero():
            return
        loaded = load_autoencoder(trainer.args.output_dir)(pixel_values).loss.item()
    if abs(loaded - trained) > 1e-2 * max(1.0, trained):
        raise RuntimeError(f"The saved model has a loss of {loaded:.4g} on an image, the trained one {trained:.4g}.")


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics of the last evaluation."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, LabelledArguments, VisionTrainingArguments)
    model_args, data_args, labelled_args, training_args = parse_recipe(classes, argv, description=__doc__)
    set_seed(training_args.seed)
    check_output(training_args.output_dir)

    # 1. Data
    train_rows, eval_rows, split = data_args.load(training_args.seed, labels=False)
    labelled, about_labelled = labelled_args.load(training_args.seed, data_args.smoke)
    is_own = eval_rows is not None
    if not is_own:
        if labelled is None:
            raise ValueError("Nothing to evaluate on: give `eval_split`, `holdout` (such as 0.01), or `labelled`.")
        seen = ", which were among the training images" if labelled_args.labelled_seen else ""
        eval_rows, split = labelled[1], f"the labelled queries{seen}"
    splits = {"train": train_rows, "evaluation": eval_rows}
    sources = {"evaluation": data_args.source()} if is_own else {}
    if labelled is not None:
        splits |= {"labelled_bank": labelled[0], "labelled_queries": labelled[1]}
        options = labelled_args.options(data_args.smoke)
        sources["labelled"] = options.source()
        if options.keep_in_memory:
            labelled = tuple(in_memory(rows) for rows in labelled)
    if data_args.keep_in_memory:
        train_rows, eval_rows = in_memory(train_rows), in_memory(eval_rows)
    # 2. Model and image processor
    model, processor = build(model_args, data_args.smoke)
    # 3. Train
    trainer = MAETrainer(
        model=model,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        labelled_datasets=labelled,
        processing_class=processor,
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    # 4. Evaluate, draw, write the card
    run = {
        "recipe": "recipes/mae/pretrain.py",
        "config": argv[0],
        "command": shlex.join(["python", "recipes/mae/pretrain.py", *argv]),
        "base_model": None if data_args.smoke else model_args.checkpoint,
        "labelled": about_labelled,
        "sources": sources,
    }
    dataset = {**data_args.describe(), "evaluation_split": split}
    metrics = report_pretraining(trainer, dataset, run, model_args.half_weights, splits)
    check_reload(trainer)
    return metrics


if __name__ == "__main__":
    main()
