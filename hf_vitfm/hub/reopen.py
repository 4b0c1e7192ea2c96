"""A published model and the data that it was evaluated on, opened again as its run.json says.

Nothing that a repository holds is run: models are of the classes of this library and of transformers, weights are
safetensors, data are those that ship, data sets on the Hub, or what the caller names.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, CLIPProcessor

from ..conversion import load_image_processor, load_tokenizer
from ..data.order import ON_BAD_IMAGE
from ..data.samples import SAMPLE_NAMES
from ..data.sources.stream import HUB_ID
from ..evaluation.predict import evaluation_transform, load_classifier
from ..evaluation.reconstruction import load_autoencoder
from ..models.modeling_clip import CLIPModel
from ..training.arguments import VisionTrainingArguments
from ..training.classification import ImageClassificationTrainer
from ..training.clip import CLIPTrainer
from ..training.clip_arguments import CLIPTrainingArguments
from ..training.mae import MAETrainer
from ..training.pair_arguments import PairArguments, ZeroShotArguments
from ..training.recipe import DataArguments, RowArguments
from ..training.targets import REGRESSION, as_numbers
from ..training.trainer import VisionTrainer


_LOADING = {"dtype": torch.float32, "use_safetensors": True}


def open_rows(run: dict, data: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open what a run was evaluated on.

    Args:
        run: its run.json, with `sources` and `seeds`.
        data: folder, file or Hub id in the place of the evaluation data that run.json names.

    Returns:
        Rows by their name in the field `splits` of run.json; and what of the trainer's arguments they are.

    Raises:
        FileNotFoundError: if the data is not there, or was a local path and `data` is not given.
        ConnectionError: if it is on the Hub, which cannot be asked.
        ValueError: if it does not hold what run.json says, or that cannot be understood.
    """
    return _OPENERS[run["task"]](run, data)


def build_trainer(directory: Path, run: dict, rows: dict[str, Any], output_dir: Path) -> VisionTrainer:
    """A trainer that evaluates the model of a folder as its own run did, in float32.

    Args:
        directory: of the model.
        run: its run.json.
        rows: the trainer's arguments of `open_rows`.
        output_dir: for what an evaluation writes.

    Raises:
        OSError: if the model's files are not there, or no safetensors.
        ValueError: if the model is another one than run.json says, lacks weights, or does not fit the data.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"The model type {config.get('model_type')!r} is neither of this library nor of transformers, and code that "
            "comes with a model is not run."
        )
    return _BUILDERS[run["task"]](directory, run, rows, output_dir)


# Rows


def _open_labelled(run: dict, data: str | None):
    rows = _arguments(DataArguments, run, "evaluation", data).load(_seed(run), train=False)[1]
    rows = as_numbers(rows) if run.get("problem_type") == REGRESSION else rows
    return {"evaluation": rows}, {"eval_dataset": rows}


def _open_images(run: dict, data: str | None):
    opened, labelled = {}, None
    if "evaluation" in run["sources"]:
        opened["evaluation"] = _arguments(DataArguments, run, "evaluation", data).load(_seed(run), False, False)[1]
        data = None  # it is not the labelled set
    if "labelled" in run["sources"]:
        bank, queries, _ = _arguments(DataArguments, run, "labelled", data).load(_seed(run))
        opened |= {"labelled_bank": bank, "labelled_queries": queries}
        labelled = bank, queries
    rows = opened["evaluation"] if "evaluation" in opened else labelled[1]
    return opened, {"eval_dataset": rows, "labelled_datasets": labelled}


def _open_pairs(run: dict, data: str | None):
    arguments = _arguments(PairArguments, run, "evaluation", data)
    rows = arguments.load(_seed(run), train=False)[1]
    opened, zero_shot = {"evaluation": rows}, {}
    if "zero_shot" in run["sources"]:
        options = dict(run["sources"]["zero_shot"])
        for name in ("templates", "classnames"):  # a text would be the path of a file
            if not isinstance(options.get(name, []), list):
                raise ValueError(f"`sources.zero_shot.{name}` in run.json must be a list; got {options[name]!r}.")
        if "dataset" in options:
            _check_place(options["dataset"], "the zero-shot data", "which `--data` cannot stand for")
        zero_shot, _ = ZeroShotArguments(options).load(rows, arguments)
        opened["zero_shot"] = zero_shot["labelled_dataset"]
    return opened, {"eval_dataset": rows, **zero_shot}


def _arguments(kind: type[RowArguments], run: dict, name: str, data: str | None) -> RowArguments:
    """The options that open a source, those that run.json tells."""
    options = dict(run["sources"][name])
    place = "eval_dataset" if "eval_dataset" in options else "dataset"
    if data is not None:
        options |= {place: str(data), "smoke": False}
    elif not options.get("smoke"):
        _check_place(options.get(place), f"the data of `sources.{name}`", "Give it: --data PATH")
    names = options.get("class_names")
    if names is not None and (not isinstance(names, list) or len(names) < 2):  # one would be the path of a file
        raise ValueError(f"`sources.{name}.class_names` in run.json must be two names or more; got {names!r}.")
    return kind(**options)


def _check_place(place: Any, what: str, help: str) -> None:
    """Refuse what is no public name: run.json may come from anywhere, and names no files of this machine."""
    is_public = place in SAMPLE_NAMES or (
        isinstance(place, str) and HUB_ID.fullmatch(place) is not None and not Path(place).exists()
    )
    if not is_public:
        raise FileNotFoundError(f"run.json names no public data set for {what} ({place!r}). {help}.")


def _seed(run: dict) -> int:
    return run["seeds"]["seed"]


# Models


def _settings(run: dict, output_dir: Path) -> dict[str, Any]:
    on_bad_image = run["hyperparameters"].get("on_bad_image", ON_BAD_IMAGE[0])
    devices = max(1, torch.cuda.device_count())
    return {
        "output_dir": str(output_dir),
        "per_device_eval_batch_size": max(1, run["evaluation"]["batch_size"] // devices),
        "on_bad_image": on_bad_image,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": "none",
    }


def _classifier(directory: Path, run: dict, rows: dict, output_dir: Path) -> VisionTrainer:
    return ImageClassificationTrainer(
        load_classifier(directory, trust_remote_code=False, **_LOADING),
        VisionTrainingArguments(**_settings(run, output_dir)),
        eval_transform=evaluation_transform(load_image_processor(directory)),
        **rows,
    )


def _autoencoder(directory: Path, run: dict, rows: dict, output_dir: Path) -> VisionTrainer:
    # Without an image processor it draws no pictures.
    return MAETrainer(
        load_autoencoder(directory, **_LOADING),
        VisionTrainingArguments(**_settings(run, output_dir)),
        eval_transform=evaluation_transform(load_image_processor(directory)),
        **rows,
    )


def _clip(directory: Path, run: dict, rows: dict, output_dir: Path) -> VisionTrainer:
    model, info = CLIPModel.from_pretrained(directory, output_loading_info=True, **_LOADING)
    missing = sorted(name for name in info["missing_keys"] if ".pooler." not in name)
    if missing:
        raise ValueError(f"The model lacks {len(missing)} weights: {', '.join(missing[:5])}.")
    return CLIPTrainer(
        model.eval(),
        CLIPTrainingArguments(**_settings(run, output_dir)),
        processing_class=CLIPProcessor(load_image_processor(directory), load_tokenizer(directory)),
        **rows,
    )


_OPENERS: Mapping[str, Callable] = {
    "image-classification": _open_labelled,
    "image-regression": _open_labelled,
    "masked-image-modeling": _open_images,
    "contrastive-image-text": _open_pairs,
}
_BUILDERS: Mapping[str, Callable] = {
    "image-classification": _classifier,
    "image-regression": _classifier,
    "masked-image-modeling": _autoencoder,
    "contrastive-image-text": _clip,
}
