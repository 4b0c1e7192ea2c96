"""Writes the configuration that fine-tunes the winner of a comparison of models with recipes/vit/finetune.py."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForImageClassification

from ..data.samples import CHECKPOINT_NAMES, find_checkpoint
from ..evaluation.compare import ComparedModel, Comparison
from ..evaluation.compare_tasks import TASKS
from ..evaluation.suite_runner import write_text
from ..models.modeling_vit import ViTForImageClassification
from .recipe import find_classifier_class


RECIPE = "recipes/vit/finetune.py"
# Training images: up to so many, so many epochs; small sets are seen more often.
_EPOCHS = ((500, 100), (2_000, 50), (10_000, 20), (50_000, 10))
_FEWEST_EPOCHS = 5
# Of 32 images; encoders of fewer parameters than ViT-S has take a larger one.
_LEARNING_RATE, _SMALL_LEARNING_RATE, _SMALL = 1e-4, 5e-4, 20_000_000
_BATCHES_PER_EPOCH = 10  # at least, of so small sets that 32 images at a time would give fewer


@dataclass(frozen=True)
class FineTuningConfig:
    """A configuration and the model that it is for.

    Args:
        model: the best one that the recipe can train.
        text: of the YAML file.
        passed_over: better models that it cannot train, with the reason.
    """

    model: ComparedModel
    text: str
    passed_over: dict[str, str]


def write_fine_tuning_config(comparison: Comparison, path: str | Path, output_dir: str) -> FineTuningConfig | None:
    """Write a configuration for the best model that the recipe can train.

    Args:
        comparison: of models.
        path: the YAML file to write.
        output_dir: of the run that it describes.

    Returns:
        What was written; None if the recipe can train none of the models, and then there is no file.
    """
    passed_over = {}
    for model in comparison.models:
        place = find_checkpoint(model.source)
        kind = _trained_as(place)
        if isinstance(kind, str):
            passed_over[model.name] = kind
            continue
        fields = _fields(comparison, model, place, kind is ViTForImageClassification, output_dir)
        text = "\n".join([*_header(comparison, model, path, passed_over), _yaml(fields)])
        write_text(Path(path), text)
        return FineTuningConfig(model, text, passed_over)
    return None


def _trained_as(place: str) -> type | str:
    """The class that the recipe makes of a checkpoint, or why there is none."""
    try:
        model_class, config = find_classifier_class(place)
    except (OSError, ValueError) as error:
        return f"the recipe cannot read it as a classifier ({' '.join(str(error).split())[:200]})"
    if model_class is AutoModelForImageClassification and type(config) not in model_class._model_mapping:
        return (
            f"there is no image classifier of the type {config.model_type!r}; `hf-vitfm convert` may write it as one that "
            "transformers has"
        )
    return model_class


def _fields(comparison: Comparison, model: ComparedModel, place: str, is_vit: bool, output_dir: str) -> dict[str, Any]:
    """The settings, in the order of the file; those of recipes/vit/configs/folder.yaml, by the size of the data."""
    rows = len(comparison.data.train)
    height, width = model.image_size
    batch_size = max(1, min(32, rows // _BATCHES_PER_EPOCH))
    learning_rate = _SMALL_LEARNING_RATE if model.cost.parameters < _SMALL else _LEARNING_RATE
    fields = {
        "checkpoint": model.source if model.source in CHECKPOINT_NAMES else place,
        **comparison.data.recipe,
        **({"image_size": height} if height == width else {}),
        **({"model": {"drop_path_rate": 0.1}} if is_vit else {}),
        "output_dir": output_dir,
        "num_train_epochs": next((epochs for most, epochs in _EPOCHS if rows <= most), _FEWEST_EPOCHS),
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 64,
        "learning_rate": learning_rate * batch_size / 32,
        **({"layer_decay": 0.75} if is_vit else {}),
        "weight_decay": 0.05,
        "warmup_steps": 0.1,
        "label_smoothing_factor": 0.1,
        "max_grad_norm": 1.0,
        "crop_scale": [0.4, 1.0],
        **({"on_bad_image": "skip"} if comparison.skipped else {}),
        "dataloader_num_workers": min(4, os.cpu_count() or 1),
        "eval_strategy": "epoch",
        "logging_steps": 10,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "report_to": "none",
    }
    return fields


def _header(comparison: Comparison, model: ComparedModel, path: str | Path, passed_over: dict[str, str]) -> list[str]:
    data = comparison.data
    best = f"the best that this recipe trains (not {', '.join(passed_over)})" if passed_over else "the best"
    return [
        f"# {model.name} for the images of {data.source}: {best} of {len(comparison.models)} models compared on them",
        f"# run:       python {RECIPE} {shlex.quote(str(path))}",
        f"# expect:    {_expected(comparison, model)}",
        "# measured:  not run",
        "# differs:   not a recipe of a paper: the settings of recipes/vit/configs/folder.yaml, with epochs and batch size",
        f"#            by the number of training images ({len(data.train):,}), the learning rate by the size of the model;",
        "#            nothing was searched",
    ]


def _expected(comparison: Comparison, model: ComparedModel) -> str:
    score = model.scores.get(comparison.by)
    if score is None:
        return f"not known: the model has no score of {TASKS[comparison.by]}"
    low, high = 100 * score.low, 100 * score.high
    return (
        f"not known; {TASKS[comparison.by]} reached {100 * score.accuracy:.1f} % on the same test images (95 % interval "
        f"{low:.1f} to {high:.1f}): where fine-tuning stays below, more epochs or a larger learning rate may help"
    )


def _yaml(fields: dict[str, Any]) -> str:
    """YAML in the given order; floats keep a dot, since 1e-4 would be read as text."""
    return yaml.dump(fields, sort_keys=False, allow_unicode=True, default_flow_style=None)
