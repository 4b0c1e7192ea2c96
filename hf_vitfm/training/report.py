"""The end of a run: final evaluation, pictures, results files and the model card."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
import transformers

from ..cards.figures import draw_confusion, draw_curves, draw_examples
from ..cards.model_card import MARKER, create_model_card
from ..cards.redact import redact, redact_command
from ..data.order import ImageView
from ..evaluation.metrics import classification_metrics, confusion_matrix, summarize_logits
from ..models.modeling_losses import IGNORE_INDEX
from ..version import __version__
from .arguments import VisionTrainingArguments
from .classification import ImageClassificationTrainer
from .recipe import training_settings


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


def report_classification(trainer: ImageClassificationTrainer, dataset: dict, run: dict) -> dict:
    """Evaluate a trained classifier and write everything that belongs to the run into its output folder.

    Writes the model, the processor, all_results.json, run.json, curves.png, confusion.png, examples.png and README.md.
    Call it in every process; the first one writes.

    Args:
        trainer: after `train()`.
        dataset: name, id, license, evaluation_split (and what else the card is to say of the data).
        run: recipe, config, command, base_model.

    Returns:
        The metrics of the evaluation set: `eval_loss`, `eval_top1`, ...
    """
    rows = trainer.eval_dataset
    prediction = trainer.predict(rows, metric_key_prefix="eval")
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return prediction.metrics
    directory = Path(trainer.args.output_dir)
    logits, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    counted = labels != IGNORE_INDEX  # the others are images that were skipped
    pictures = _Pictures(rows, counted.nonzero().flatten().tolist())
    logits, labels = logits[counted], labels[counted]
    summary = summarize_logits(logits, labels)
    names = trainer.class_names
    _draw(directory, trainer.state.log_history, pictures, labels, summary, names)
    trainer.log_metrics("eval", prediction.metrics)
    trainer.save_metrics("eval", prediction.metrics)
    record = {
        "task": "image-classification",
        "dataset": {"train_rows": len(trainer.train_dataset), "evaluation_rows": len(pictures), **dataset},
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
        "parameters": trainer.model.num_parameters(),
        "per_class": classification_metrics(summary, labels, names)["per_class"],
        **run,
    }
    record = redact({**record, "command": redact_command(record["command"])})
    (directory / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    create_model_card(directory)
    return prediction.metrics


class _Pictures(Sequence):
    """The images of some rows, decoded when they are looked at."""

    def __init__(self, rows, indices: list[int]):
        self._view, self._indices = ImageView(rows, None), indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int):
        return self._view.image(self._indices[place])


def _draw(directory: Path, history: list[dict], pictures: Sequence, labels, summary, names: Sequence[str]) -> None:
    predicted = summary[:, 0].long()
    draw_curves(history, directory / "curves.png")
    draw_confusion(confusion_matrix(predicted, labels, len(names)), names, directory / "confusion.png")
    draw_examples(pictures, labels, predicted, summary[:, 1], names, directory / "examples.png")


def print_summary(metrics: dict, directory, seconds: float | None = None) -> None:
    """Say what came out, where the pictures are and how to share the model."""
    directory = os.path.relpath(directory)
    lines = [f"top-1 accuracy {100 * metrics['eval_top1']:.2f} % on {metrics['eval_samples']} evaluation images"]
    if seconds is not None:
        lines.append(f"training took {seconds:.0f} s")
    lines.append(f"model, card and pictures: {directory} (README.md, curves.png, confusion.png, examples.png)")
    lines.append(f"share it: hf upload YOUR_NAME/MODEL_NAME {directory} --exclude 'checkpoint-*/*' training_args.bin")
    sys.stdout.write("\n".join(lines) + "\n")
