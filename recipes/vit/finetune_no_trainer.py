"""The fine-tuning of finetune.py as one plain loop on 🤗 Accelerate, without Trainer: to read, and to change.

Same command line, same configurations; without dropout also the same weights. Left out: checkpoints and resuming, model
card and pictures, FSDP, targets other than one class per image.

    accelerate launch --num_processes 2 recipes/vit/finetune_no_trainer.py recipes/vit/configs/fashion_scratch.yaml
"""

import json
import math
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import set_seed

from hf_vitfm import build_transform
from hf_vitfm.data.collators import collate_labelled
from hf_vitfm.data.order import EpochOrder, ImageView
from hf_vitfm.evaluation.metrics import classification_metrics, summarize_logits
from hf_vitfm.models.modeling_losses import IGNORE_INDEX, classification_loss
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.ema import WeightAverage
from hf_vitfm.training.fine_tuning import ModelArguments, build_classifier
from hf_vitfm.training.lars import LARS
from hf_vitfm.training.optimization import parameter_groups
from hf_vitfm.training.recipe import DataArguments, parse_recipe
from hf_vitfm.training.report import check_output
from hf_vitfm.training.schedules import DECAYS, warmup_decay
from hf_vitfm.training.targets import SINGLE, read_targets


def check_simple(args: VisionTrainingArguments, data_args: DataArguments) -> None:
    """Refuse what finetune.py can do and this loop leaves out, rather than ignore it."""
    if not args.dataloader_drop_last:
        raise ValueError("This loop leaves the incomplete last global batch out. Set `dataloader_drop_last=True`.")
    given = {
        "class_weights": args.class_weights is not None,
        "on_bad_image": args.on_bad_image != "error",
        "streaming": data_args.streaming,
        "resume_from_checkpoint": bool(args.resume_from_checkpoint),
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise ValueError(
            f"This loop leaves `{name}` out. Take recipes/vit/finetune.py, or leave it out of the settings."
        )


def make_loaders(args: VisionTrainingArguments, rows, processor) -> tuple[EpochOrder, DataLoader, DataLoader]:
    """The order of samples with its loader, and the loader of the evaluation rows; for all processes together."""
    seed = args.seed if args.data_seed is None else args.data_seed
    train_rows, eval_rows = rows
    train_view = ImageView(train_rows, build_transform(processor, train=True, **args.train_transform_options), seed)
    eval_view = ImageView(eval_rows, build_transform(processor))
    order = EpochOrder(len(train_rows), seed, args.global_batch_size, repeats=args.repeated_augmentation)
    options = {
        "collate_fn": collate_labelled,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and args.device.type != "cpu",
    }
    train_loader = DataLoader(train_view, args.per_device_train_batch_size, sampler=order, **options)
    return order, train_loader, DataLoader(eval_view, args.per_device_eval_batch_size, **options)


def make_optimizer(model: torch.nn.Module, args: VisionTrainingArguments) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW on groups by layer and decay."""
    rate, name = args.peak_learning_rate, getattr(args.optim, "value", args.optim)
    groups = parameter_groups(model, rate, args.weight_decay, args.layer_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=args.momentum)
    if name == "lars":
        return LARS(groups, lr=rate, momentum=args.momentum)
    if name in ("adamw_torch", "adamw_torch_fused"):
        betas = (args.adam_beta1, args.adam_beta2)
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=args.adam_epsilon, fused=name.endswith("fused"))
    raise ValueError(f"`optim` must be sgd, lars, adamw_torch or adamw_torch_fused in this loop; got {name!r}.")


def make_schedule(optimizer: torch.optim.Optimizer, args: VisionTrainingArguments, steps: int) -> LambdaLR:
    """Warm-up and decay, one value per update."""
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type).removesuffix("_with_warmup")
    if name not in DECAYS or args.lr_scheduler_kwargs:
        raise ValueError(
            f"`lr_scheduler_type` must be one of {', '.join(DECAYS)}, without `lr_scheduler_kwargs`, in this loop; got "
            f"{name!r}."
        )
    floor = args.min_learning_rate / args.peak_learning_rate
    return LambdaLR(optimizer, warmup_decay(name, args.get_warmup_steps(steps), steps, floor, args.cooldown_steps))


def update(accelerator: Accelerator, model, optimizer, batches: list[dict], args: VisionTrainingArguments, step: int):
    """Update number `step` (from 0) by the micro-batches of all processes; returns the loss of the global batch."""
    # Every image counts alike, however the global batch is cut: sums are divided by its number of labels.
    count = accelerator.reduce(sum((batch["labels"] != IGNORE_INDEX).sum() for batch in batches), "sum")
    mixing, num_classes = args.mixing, accelerator.unwrap_model(model).config.num_labels
    if mixing is not None:
        count = count * num_classes  # class ids become rows of probabilities, and the loss counts their elements
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches, 1):
        pixel_values, labels = batch["pixel_values"], batch["labels"]
        if mixing is not None:
            pixel_values, labels = mixing(pixel_values, labels, num_classes, step)
        # Gradients are exchanged with the last micro-batch.
        with nullcontext() if number == len(batches) else accelerator.no_sync(model):
            logits = model(pixel_values=pixel_values).logits
            loss = classification_loss(
                logits, labels, "single_label_classification", count, label_smoothing=args.label_smoothing_factor
            )
            accelerator.backward(loss * accelerator.num_processes)  # DDP takes the mean over processes
            total += loss.detach()
    total = accelerator.reduce(total, "sum").item()
    if not math.isfinite(total):
        raise FloatingPointError(f"The loss is {total}. Lower the learning rate, or clip gradients.")
    if args.max_grad_norm:
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


@torch.no_grad()
def evaluate(accelerator: Accelerator, model, loader, class_names: list[str], ema: WeightAverage | None) -> dict:
    """Metrics over all evaluation rows, each counted once, of the averaged weights if there are any."""
    model.eval()
    summaries, labels = [], []
    with nullcontext() if ema is None else ema.applied():
        for batch in loader:
            logits = model(pixel_values=batch["pixel_values"]).logits
            summary = summarize_logits(logits, batch["labels"])
            gathered = accelerator.gather_for_metrics(
                (summary, batch["labels"])
            )  # without what fills up the last batch
            summaries.append(gathered[0].cpu())
            labels.append(gathered[1].cpu())
    model.train()
    metrics = classification_metrics(torch.cat(summaries), torch.cat(labels), class_names)
    return {f"eval_{name}": value for name, value in metrics.items() if name != "per_class"}


def count_steps(args: VisionTrainingArguments, order: EpochOrder) -> tuple[int, int]:
    """Updates of the whole run, and between two evaluations."""
    per_epoch = len(order) // args.global_batch_size
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
    if strategy == "steps":
        return total, math.ceil(args.eval_steps if args.eval_steps >= 1 else args.eval_steps * total)
    return total, per_epoch if strategy == "epoch" else total


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns what all_results.json holds."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, VisionTrainingArguments)
    model_args, data_args, args = parse_recipe(classes, argv, description=__doc__)
    accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else "no")
    check_output(args.output_dir)
    check_simple(args, data_args)
    set_seed(args.seed)

    # 1. Data, model, optimizer, schedule
    *rows, split = data_args.load(args.seed)
    targets = read_targets(rows[0], model_args.problem_type)
    if targets.problem_type != SINGLE:
        raise ValueError(f"This loop is for one class per image; the labels are {targets.problem_type}.")
    class_names = targets.names
    model, processor = build_classifier(model_args, targets, data_args.smoke)
    if data_args.keep_in_memory:
        rows = [list(part) for part in rows]
    order, train_loader, eval_loader = make_loaders(args, rows, processor)
    total, interval = count_steps(args, order)
    optimizer = make_optimizer(model, args)
    schedule = make_schedule(optimizer, args, total)
    model, optimizer, train_loader, eval_loader = accelerator.prepare(model, optimizer, train_loader, eval_loader)
    ema = None if args.ema_decay is None else WeightAverage(accelerator.unwrap_model(model), args.ema_decay)

    # 2. Train
    model.train()
    progress = tqdm(total=total, disable=args.disable_tqdm or not accelerator.is_main_process)
    step, epoch, metrics = 0, 0, {}
    while step < total:
        order.set_epoch(epoch)
        batches = iter(train_loader)
        while step < total and (micro_batches := list(islice(batches, args.gradient_accumulation_steps))):
            loss = update(accelerator, model, optimizer, micro_batches, args, step)
            if not accelerator.optimizer_step_was_skipped:  # by the loss scaling of fp16
                schedule.step()
                if ema is not None:
                    ema.update()
            step += 1
            progress.update()
            progress.set_postfix(loss=f"{loss:.4f}", learning_rate=f"{schedule.get_last_lr()[0]:.2e}")
            if step % interval == 0 or step == total:
                metrics = evaluate(accelerator, model, eval_loader, class_names, ema)
                accelerator.print({"step": step, "loss": loss, **metrics})
        epoch += 1
    progress.close()

    # 3. Save
    if ema is not None:
        ema.copy_to_model()
    run = {"steps": step, "global_batch_size": args.global_batch_size, "processes": accelerator.num_processes}
    results = {**metrics, "train_loss": loss, "evaluation_split": split, **run}
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        Path(args.output_dir, "all_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
