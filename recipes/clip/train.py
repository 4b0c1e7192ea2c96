"""Train CLIP on images with captions: from scratch, on from a checkpoint, or with a tower that stays locked.

CLIP (Radford et al. 2021), section 2; LiT (Zhai et al. 2022). One command does the whole run:

    python recipes/clip/train.py recipes/clip/configs/emoji.yaml

On several devices put `accelerate launch` in the place of `python`: the pairs of all of them are told apart. `--smoke`
runs any configuration in seconds.
"""

import shlex
import sys

import torch
from transformers import set_seed

from hf_vitfm import CLIPModel, CLIPTrainer, CLIPTrainingArguments, load_tokenizer
from hf_vitfm.data.order import in_memory
from hf_vitfm.data.pair_collator import PairCollator
from hf_vitfm.training.clip_report import report_contrastive
from hf_vitfm.training.clip_start import CLIPModelArguments, build_clip
from hf_vitfm.training.pair_arguments import PairArguments, ZeroShotArguments, captions_of
from hf_vitfm.training.recipe import parse_recipe
from hf_vitfm.training.report import check_output


def check_reload(trainer: CLIPTrainer) -> None:
    """Load the finished model and tokenizer as their users will, and compare them with what was trained.

    Every process calls it, since they may share the model that was trained.
    """
    view = trainer.get_eval_dataloader().dataset
    row = next(row for row in (view[i] for i in range(len(view))) if row["caption"])
    batch = trainer.data_collator([{**row, "caption": row["caption"][0]}])
    inputs = {name: value.to(trainer.model.device) for name, value in batch.items()}
    with torch.no_grad():
        trained = trainer.model.eval()(**inputs, return_logits=False)
        if not trainer.is_world_process_zero():
            return
        loaded = CLIPModel.from_pretrained(trainer.args.output_dir).eval()
        collator = PairCollator(load_tokenizer(trainer.args.output_dir), trainer.data_collator.context_length)
        reloaded = loaded(**collator([{**row, "caption": row["caption"][0]}]), return_logits=False)
    for name in ("image_embeds", "text_embeds"):
        cosine = torch.cosine_similarity(trained[name].float().cpu(), reloaded[name].float()).item()
        if not cosine > 0.99:
            raise RuntimeError(
                f"The saved model's `{name}` of an evaluation row have a cosine of {cosine:.4g} with those of the trained "
                "one."
            )


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics of the last evaluation."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (CLIPModelArguments, PairArguments, ZeroShotArguments, CLIPTrainingArguments)
    model_args, data_args, zero_shot_args, training_args = parse_recipe(classes, argv, description=__doc__)
    set_seed(training_args.seed)
    check_output(training_args.output_dir)

    # 1. Data
    train_rows, eval_rows, split = data_args.load(training_args.seed)
    zero_shot, about_zero_shot = zero_shot_args.load(eval_rows, data_args)
    splits = {"train": train_rows, "evaluation": eval_rows, "zero_shot": zero_shot.get("labelled_dataset")}
    if data_args.keep_in_memory:
        train_rows, eval_rows = in_memory(train_rows), in_memory(eval_rows)
        zero_shot |= {name: in_memory(rows) for name, rows in zero_shot.items() if name == "labelled_dataset"}
    # 2. Model, tokenizer and image processor
    model, processor = build_clip(model_args, lambda: captions_of(train_rows), data_args.smoke)
    # 3. Train
    trainer = CLIPTrainer(
        model=model,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        **zero_shot,
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    # 4. Evaluate, draw, write the card
    run = {
        "recipe": "recipes/clip/train.py",
        "config": argv[0],
        "command": shlex.join(["python", "recipes/clip/train.py", *argv]),
        "base_model": None if data_args.smoke else model_args.base_model,
        "locked_towers": model_args.locked_towers,
        "zero_shot": about_zero_shot,
        "sources": {"evaluation": data_args.source(), **zero_shot_args.source()},
    }
    dataset = {**data_args.describe(), "evaluation_split": split}
    metrics = report_contrastive(trainer, dataset, run, model_args.half_weights, splits)
    check_reload(trainer)
    return metrics


if __name__ == "__main__":
    main()
