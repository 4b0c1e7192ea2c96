"""The end of a run: final evaluation, pictures, results files and the model card."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torchvision
import transformers

from ..cards.figures import draw_confusion, draw_curves, draw_examples, has_curves
from ..cards.model_card import MARKER, create_model_card
from ..cards.redact import redact, redact_command
from ..cards.target_figures import draw_average_precision, draw_scatter
from ..data.order import ImageView
from ..evaluation.metrics import confusion_matrix, summarize_logits
from ..models.modeling_losses import known_rows, resolve_problem_type
from ..version import __version__
from .arguments import VisionTrainingArguments
from .checkpoints import write_text
from .classification import ImageClassificationTrainer
from .half_weights import save_half
from .recipe import training_settings
from .record import SPEEDS, as_json, fingerprint_splits, hash_weights, measure, trace_loss
from .trainer import VisionTrainer


def describe_hardware(args: VisionTrainingArguments) -> str:
    """The devices that a run uses, in words."""
    count = args.world_size * max(1, args.n_gpu)
    if args.device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(args.device)}"
    return f"{args.device.type} ({platform.machine()}), {count} processes of {torch.get_num_threads()} threads"


def check_output(directory: str) -> None:
    """Refuse an output folder whose README.md is somebody's own text, before any time is spent on training."""
    card = Path(directory) / "README.md"
    if card.exists() and MARKER not in card.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(
            f"{card} was not written by a run like this one. Move it away, or choose another folder."
        )


def report_classification(
    trainer: ImageClassificationTrainer,
    dataset: dict,
    run: dict,
    half_weights: bool = False,
    splits: Mapping[str, Sequence[dict]] | None = None,
) -> dict:
    """Evaluate a trained classifier and write everything that belongs to the run into its output folder.

    Writes the model, the processor, all_results.json, run.json, README.md and pictures: curves.png, unless the run was
    too short to log anything; confusion.png and examples.png for one class per image, average_precision.png for several
    labels, scatter.png for numbers. Call it in every process; the first one writes.

    Args:
        trainer: after `train()`; its targets are class ids, several labels or numbers.
        dataset: name, id, license, evaluation_split (and what else the card is to say of the data).
        run: recipe, config, command, base_model, and `sources`: what opens the evaluation rows again
            (`RowArguments.source`).
        half_weights: save float16 weights, in half the space, and measure these; the model still loads as float32.
        splits: rows as they are stored, by what they were for, for their fingerprints. Default: the trainer's.

    Returns:
        The metrics of the evaluation set: `eval_loss`, `eval_top1`, ...

    Raises:
        ValueError: for rows of probabilities, of which there are no metrics.
    """
    rows = trainer.eval_dataset
    save_half(trainer) if half_weights else trainer.save_model(publish=False)
    prediction, evaluation = measure(trainer)
    if not trainer.is_world_process_zero():
        return prediction.metrics
    directory = Path(trainer.args.output_dir)
    outputs, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    known = known_rows(labels)
    rows = _Pictures(rows, known.nonzero().flatten().tolist())
    prediction.metrics["eval_samples"] = len(rows)
    unit = None if run.get("target_scale") is None else "mean squared error, standardised"
    draw_history(trainer.state.log_history, directory / "curves.png", unit)
    details = _report_targets(trainer, rows, outputs[known], labels[known])
    trainer.log_metrics("eval", prediction.metrics)
    trainer.save_metrics("eval", prediction.metrics)
    dataset = {"evaluation_rows": len(rows), **dataset}
    own = {**details, "evaluation": evaluation, **({"half_weights": True} if half_weights else {})}
    write_record(trainer, {"dataset": dataset, **own, **run}, splits)
    return prediction.metrics


def write_record(trainer: VisionTrainer, own: dict, splits: Mapping[str, Sequence[dict]] | None = None) -> None:
    """Write log.json, run.json and the model card into the output folder of a trained model.

    With `push_to_hub` in the trainer's arguments, all that is in the folder is published then, in one commit.

    Args:
        trainer: after `train()`.
        own: what only the recipe knows: task, recipe, config, command, base_model, dataset (with evaluation_rows), and
            the fields of its task.
        splits: rows as they are stored, by what they were for. Default: those that the trainer trained and evaluated on.
    """
    directory = Path(trainer.args.output_dir)
    num_skipped = trainer.num_skipped_images
    rows = {"train_rows": len(trainer.train_dataset) - num_skipped, "skipped_train_rows": num_skipped}
    args, splits = trainer.args, splits or {"train": trainer.train_dataset, "evaluation": trainer.eval_dataset}
    record = {
        **own,
        "dataset": {**rows, **own["dataset"]},
        "resumed_at_step": trainer.resumed_at_step,
        "hyperparameters": {
            **training_settings(trainer.args),
            "optimizer": getattr(trainer.args.optim, "value", trainer.args.optim),
            "steps": trainer.state.global_step,
        },
        "versions": {
            "hf_vitfm": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "hardware": describe_hardware(trainer.args),
        "world_size": args.world_size,
        "seeds": {"seed": args.seed, "data_seed": args.seed if args.data_seed is None else args.data_seed},
        "parameters": trainer.model.num_parameters(),
        "model_type": trainer.model.config.model_type,
        "splits": fingerprint_splits(splits),
        "weights": hash_weights(directory),
        "loss_trace": trace_loss(trainer.state.log_history),
    }
    record = redact({**record, "command": redact_command(own["command"])})
    create_model_card(directory, run=record)
    write_log(trainer.state.log_history, directory / "log.json")
    write_text(directory / "run.json", as_json(record))  # last: with it a run counts as finished
    if trainer.args.push_to_hub:
        trainer.publish("End of training")


def write_log(log_history: list[dict], path: Path) -> None:
    """Write what a run logged, an entry a line; speeds aside, which are the machine's and differ from run to run."""
    kept = [{name: entry[name] for name in sorted(entry) if not name.endswith(SPEEDS)} for entry in log_history]
    write_text(path, "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in kept) + "\n]\n")


def draw_history(log_history: list[dict], path: Path, unit: str | None = None) -> None:
    """Draw the curves of a run; one too short to have logged anything has none."""
    if has_curves(log_history):
        draw_curves(log_history, path, loss_unit=unit)
    else:
        path.unlink(missing_ok=True)  # the card would show an earlier run's


class _Pictures(Sequence):
    """The images of some rows, decoded when they are looked at."""

    def __init__(self, rows, indices: list[int]):
        self._view, self._indices = ImageView(rows, None), indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int):
        return self._view.image(self._indices[place])


def _report_targets(trainer: ImageClassificationTrainer, rows, outputs: torch.Tensor, labels: torch.Tensor) -> dict:
    """Draw the pictures of this kind of task; returns the task's fields of run.json."""
    config, directory = trainer.model.config, Path(trainer.args.output_dir)
    kind = resolve_problem_type(config.problem_type, config.num_labels, labels)
    if kind == "regression":
        per_output = trainer.measure(outputs, labels)["per_output"]
        shape = len(labels), len(per_output)
        draw_scatter(outputs.reshape(shape), labels.reshape(shape), per_output, directory / "scatter.png")
        return {"task": "image-regression", "problem_type": kind, "per_output": per_output}
    if kind == "multi_label_classification":
        per_class = trainer.measure(outputs, labels)["per_class"]
        if any(value is not None for value in per_class.values()):
            shares = labels.double().mean(dim=0).tolist()
            draw_average_precision(per_class, shares, directory / "average_precision.png")
        return {"task": "image-classification", "problem_type": kind, "per_class": per_class}
    summary, names = summarize_logits(outputs, labels), trainer.class_names
    predicted = summary[:, 0].long()
    draw_confusion(confusion_matrix(predicted, labels, len(names)), names, directory / "confusion.png")
    draw_examples(rows, labels, predicted, summary[:, 1], names, directory / "examples.png")
    per_class = trainer.measure(summary, labels)["per_class"]
    return {"task": "image-classification", "problem_type": kind, "per_class": per_class}


def print_summary(metrics: dict, directory, seconds: float | None = None) -> None:
    """Say what came out, where the pictures are and how to share the model."""
    pictures = ", ".join(sorted(path.name for path in Path(directory).glob("*.png")))
    directory = os.path.relpath(directory)
    lines = [f"{_headline(metrics)} on {metrics['eval_samples']} evaluation images"]
    if seconds is not None:
        lines.append(f"training took {seconds:.0f} s")
    lines.append(f"model, card and pictures: {directory} (README.md, {pictures})")
    lines.append(f"share it: hf-vitfm push {directory} YOUR_NAME/MODEL_NAME")
    sys.stdout.write("\n".join(lines) + "\n")


def _headline(metrics: dict) -> str:
    if "eval_top1" in metrics:
        return f"top-1 accuracy {100 * metrics['eval_top1']:.2f} %"
    if "eval_rmse" in metrics:
        return f"root of the mean squared error {metrics['eval_rmse']:.4g}"
    return f"mean average precision {100 * metrics.get('eval_mean_average_precision', 0):.2f} %"
