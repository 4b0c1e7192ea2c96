"""The part of run.json that lets others check a run: hashes of its data, weights and predictions, seeds, a trace."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PredictionOutput

from ..data.streams import StreamRows
from ..evaluation.fingerprint import COLUMNS, fingerprint_rows
from ..evaluation.metrics import summarize_logits
from ..evaluation.retrieval import CUTOFFS, retrieval_ranks
from ..models.modeling_losses import known_rows
from .classification import ImageClassificationTrainer
from .clip import CLIPTrainer
from .trainer import VisionTrainer


SPEEDS = (
    "_runtime",
    "_per_second",
    "total_flos",
    "loader_wait",
    "_preparation_time",
)  # the machine's, and different in every run
TRACE_POINTS = 20
_COLUMNS = (*COLUMNS, "caption")
_STEPS_PER_OCTAVE = 4
_CHUNK = 1 << 20


def measure(trainer: VisionTrainer) -> tuple[PredictionOutput, dict]:
    """Evaluate a model as the report of its run does; every process calls it.

    Args:
        trainer: with its evaluation set, trained or made for a model that was loaded.

    Returns:
        What `trainer.predict` gives, metrics named `eval_...`; and the field `evaluation` of run.json: these metrics, how
        they were measured, and a hash of the predictions.
    """
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    args = trainer.args
    return output, {
        "metrics": {name: value for name, value in output.metrics.items() if not name.endswith(SPEEDS)},
        "predictions": hash_predictions(trainer, output),
        "batch_size": args.eval_batch_size,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
    }


def measure_parts(trainer: VisionTrainer, output: PredictionOutput) -> dict[str, dict]:
    """The numbers of `output` by class or by output: `per_class` or `per_output`; none of other than classifiers."""
    if not isinstance(trainer, ImageClassificationTrainer):
        return {}
    outputs, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids)
    known = known_rows(labels)
    outputs, labels = outputs[known], labels[known]
    if trainer.problem_type(labels) == "single_label_classification" and not labels.is_floating_point():
        outputs = summarize_logits(outputs, labels)
    measured = trainer.measure(outputs, labels)
    return {name: measured[name] for name in ("per_class", "per_output") if name in measured}


def hash_predictions(trainer: VisionTrainer, output: PredictionOutput) -> dict[str, str] | None:
    """Digest of what a model answers for each row, in whole numbers that rounding errors leave as they are.

    Machines add up in different orders, so that logits and losses differ in their last digits, and so would a digest of
    them. Taken are: the class; which labels are above one half; how many of the cutoffs 1, 5 and 10 the rank of each
    image and caption is beyond; the loss of an image in steps of a quarter of an octave (19 %), of whose bounds rounding
    errors of float32 push one image in 100,000 or so. Numbers that are predicted have no such form.

    Returns:
        `of` and `sha256`; None for numbers.
    """
    outputs = output.predictions
    if isinstance(trainer, CLIPTrainer):
        image, text, counts = map(torch.as_tensor, outputs)
        image, text, counts = image[counts > 0], text[counts > 0], counts[counts > 0]
        is_caption = torch.arange(text.shape[1]) < counts[:, None]
        ranks = torch.cat(retrieval_ranks(image, text[is_caption], is_caption.nonzero()[:, 0]))
        choices = (ranks[:, None] > torch.tensor(CUTOFFS)).sum(dim=1)
        return _digest("ranks, first of images, then of captions: beyond how many of 1, 5 and 10", choices)
    outputs = torch.as_tensor(outputs)
    if isinstance(trainer, ImageClassificationTrainer):
        kind = trainer.problem_type(torch.as_tensor(output.label_ids))
        if kind == "regression":
            return None
        if kind == "multi_label_classification":
            return _digest("labels above one half", outputs > 0)
        return _digest("class ids", outputs.argmax(dim=1))
    steps = (outputs.double().clamp(min=1e-30).log2() * _STEPS_PER_OCTAVE).floor()
    return _digest("losses in steps of a quarter of an octave", steps)


def _digest(of: str, choices: Tensor) -> dict[str, str]:
    values = choices.to(torch.int32).contiguous().cpu().numpy().astype("<i4")
    return {"of": f"{of}; {'x'.join(map(str, values.shape))} int32", "sha256": hashlib.sha256(values).hexdigest()}


def fingerprint_splits(splits: Mapping[str, Sequence[dict]]) -> dict[str, dict]:
    """What each split holds, by content: `rows` and `sha256`, or None with a `reason`.

    Args:
        splits: rows as they are stored, not decoded into memory: other decoders may give other pixels.
    """
    return {name: _fingerprint(rows) for name, rows in splits.items() if rows is not None}


def _fingerprint(rows: Sequence[dict]) -> dict[str, Any]:
    found = {"rows": len(rows), "sha256": None}
    if isinstance(rows, StreamRows):
        return {**found, "reason": "a stream, which would have to be read once more"}
    try:
        return {**found, "sha256": fingerprint_rows(rows, _COLUMNS)}
    except ValueError as error:
        return {**found, "reason": str(error)}


def hash_weights(directory: Path) -> dict[str, str]:
    """SHA-256 of each weight file of a folder, by name."""
    return {path.name: _hash_file(path) for path in sorted(Path(directory).glob("*.safetensors"))}


def _hash_file(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def as_json(record: dict) -> str:
    """The text of a results file; a list of plain values takes one line."""
    text = json.dumps(record, indent=2)
    # A line ends nowhere inside a string.
    return (
        re.sub(
            r"\[\n\s+[^\[\]{}]*\n\s+\]", lambda found: re.sub(r"\n\s+", " ", found[0][1:-1]).strip().join("[]"), text
        )
        + "\n"
    )


def trace_loss(log_history: Iterable[dict]) -> list[list]:
    """[step, loss] of a training, at most `TRACE_POINTS` of them, evenly spread from the first to the last."""
    points = [
        [entry["step"], float(f"{float(entry['loss']):.6g}")]
        for entry in log_history
        if "loss" in entry and "step" in entry
    ]
    if len(points) <= TRACE_POINTS:
        return points
    return [points[round(place * (len(points) - 1) / (TRACE_POINTS - 1))] for place in range(TRACE_POINTS)]
