"""What every recipe script shares: its command line (a YAML file, options, `--smoke`) and its arguments about data."""

import argparse
import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoConfig, AutoModelForImageClassification, HfArgumentParser

from ..conversion.detect import detect
from ..conversion.files import check_source
from ..conversion.formats import OURS, TRANSFORMERS
from ..conversion.source import Source
from ..data.datasets import load_images
from ..data.labels import count_unlabelled
from ..data.sources.stream import open_stream
from ..models.configuration_mae import VitfmMAEConfig
from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_vit import ViTForImageClassification
from .arguments import VisionTrainingArguments
from .sources import shareable_source
from .sweep import SweepArguments
from .targets import HEADS, hold_out


# What says how a data set's columns are to be read.
_COLUMNS = ("image_column", "label_column", "class_names", "caption_column")
# `--smoke`: any configuration in seconds, on the embedded images.
SMOKE_MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
SMOKE_ROWS = 32
SMOKE_HOLDOUT = 0.25
_ONLY_TOLD = ("title", "license", "credit", "keep_in_memory")  # these choose no rows
EVALUATION_SPLITS = ("validation", "test")  # where none is named, the first one that is there
SMOKE_TRAINING = {
    "max_steps": 2,
    "warmup_steps": 0,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "global_batch_size": None,
    "grad_cache_chunk_size": None,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "crop_padding": None,
    "dataloader_prefetch_factor": None,
    "dataloader_persistent_workers": False,
    "bf16": False,
    "fp16": False,
    "torch_compile": False,
    "report_to": "none",
}


@dataclass
class RowArguments:
    """Which rows a recipe trains and evaluates on, whatever they hold beside an image."""

    dataset: str = field(metadata={"help": "embedded sample, folder, parquet file or Hub id"})
    image_column: str | None = field(default=None, metadata={"help": "column of the images, found if not given"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(
        default=None, metadata={"help": "split to evaluate on; by default validation, else test"}
    )
    train_rows: int | None = field(
        default=None, metadata={"help": "use only so many rows of the training split, the same whatever the seed"}
    )
    holdout: float | None = field(
        default=None,
        metadata={"help": "evaluate on this share of the training rows instead, or on so many (to choose settings)"},
    )
    holdout_if_missing: float | None = field(
        default=None, metadata={"help": "the same, but only where the data has neither a validation nor a test split"}
    )
    title: str | None = field(default=None, metadata={"help": "name of the data set for the card"})
    license: str | None = field(default=None, metadata={"help": "licence of the data set for the card, such as mit"})
    streaming: bool = field(
        default=False, metadata={"help": "read parquet or tar shards in sequence where they lie, without a copy"}
    )
    keep_in_memory: bool = field(default=False, metadata={"help": "decode all images once (small sets)"})
    smoke: bool = field(default=False, metadata={"help": "a few steps of a tiny model on embedded images"})

    def source(self) -> dict:
        """What opens the same rows again, for run.json: every field that says which they are and is not its default."""
        fixed = {"dataset": shareable_source(self.dataset)}
        if getattr(self, "eval_dataset", None) is not None:
            fixed["eval_dataset"] = shareable_source(self.eval_dataset)
        if getattr(self, "class_names", None) is not None:
            fixed["class_names"] = read_names(self.class_names, "class_names")
        chosen = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _ONLY_TOLD}
        known = {item.name: item.default for item in fields(self)}
        return {name: value for name, value in chosen.items() if value != known[name]} | fixed

    def _check_choice(self) -> None:
        if self.eval_split is not None and self.holdout is not None:
            raise ValueError("Give `eval_split` or `holdout`, not both.")

    def _check_stream(self) -> None:
        if self.holdout is not None or self.train_rows is not None:
            raise ValueError(
                "`holdout` and `train_rows` choose rows of a data set that is at hand; with `streaming` leave them out "
                "and give `eval_split`."
            )

    def _divide(self, splits, seed: int, found: str | None, check: Callable | None = None, train: bool = True):
        """Training rows, evaluation rows and the name of these; None twice where nothing says which they are.

        `found` is the split to evaluate on where none is named; `check(rows, name)` refuses a split before it is used.
        Without `train`, the training split need not be there unless rows are held out of it.
        """
        name = self.eval_split or found
        holdout = self.holdout_if_missing if self.holdout is None and name is None else self.holdout
        if not train and holdout is None and name is not None:
            return None, self._split(splits, name, check), name
        train = self._split(splits, self.train_split, check)
        if self.train_rows is not None:
            train = choose_rows(train, self.train_rows)
        if holdout is not None:
            share = _holdout_share(holdout, len(train))
            return *hold_out(train, share, seed), f"{holdout:g} of {self.train_split}"
        if name is None:
            return train, None, None
        return train, self._split(splits, name, check), name

    def _split(self, splits, name: str, check: Callable | None):
        if name not in splits:
            raise ValueError(f"{self.dataset!r} has no split {name!r}; it has {', '.join(splits)}.")
        if check is not None:
            check(splits[name], name)
        return splits[name]

    def _divide_sample(self, splits: Sequence, names: Sequence[str], seed: int):
        """What `_divide` gives, in a smoke run, of an embedded sample's two splits."""
        train, test = (choose_rows(rows, SMOKE_ROWS) for rows in splits)
        if self.holdout is not None:
            return *hold_out(train, SMOKE_HOLDOUT, seed), f"{SMOKE_HOLDOUT:g} of {names[0]}"
        return train, test, names[1]

    def _open_streams(self, open_split: Callable, found: Sequence[str]):
        """What `_divide` gives, of shards; `found` are the splits that are tried where none is named."""
        self._check_stream()
        train = open_split(self.train_split)
        names = found if self.eval_split is None else (self.eval_split,)
        if not names:
            return train, None, None
        for name in names:
            try:
                return train, open_split(name), name
            except FileNotFoundError as error:
                missing = error
        raise ValueError(f"{self.dataset!r} has no shards to evaluate on. Give `eval_split`.") from missing

    def _nothing_to_evaluate(self, splits) -> ValueError:
        return ValueError(
            f"{self.dataset!r} has only the splits {', '.join(splits)}. Give `eval_split`, or `holdout` (such as "
            "0.1) to evaluate on a share of the training images."
        )


@dataclass
class DataArguments(RowArguments):
    """Which images a recipe trains and evaluates on."""

    label_column: list[str] | None = field(
        default=None,
        metadata={"help": "column of the labels, found if not given; several are numbers in 0..1, one per class"},
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "of a stream that does not hold them, by class id; or a text file with one name per line"},
    )

    def __post_init__(self):
        if isinstance(self.label_column, list) and len(self.label_column) == 1:
            (self.label_column,) = self.label_column  # one column of labels, and not one class
        if isinstance(self.class_names, str):
            self.class_names = [self.class_names]

    def describe(self) -> dict:
        """What the model card says of the data set."""
        if self.smoke:
            return {"name": "Fashion-MNIST (smoke run)", "id": "fashion-mnist", "license": "mit"}
        return {"name": self.title or self.dataset, "id": self.dataset, "license": self.license}

    def load(self, seed: int, labels: bool = True, train: bool = True):
        """Load the data: (training rows, evaluation rows, name of the evaluation split).

        Evaluated on are, the first that applies: the share `holdout` of the training rows, the split `eval_split`, the
        split validation, the split test, the share `holdout_if_missing` of the training rows. Without `labels`, rows
        need none, and evaluation rows are only those that `holdout` or `eval_split` names, or else None. Without
        `train`, training rows may be None.
        """
        self._check_choice()
        if not labels and (self.label_column or self.class_names):
            raise ValueError("`label_column` and `class_names` are for data with labels, which are not read here.")
        if self.smoke:
            splits, names = load_images("fashion-mnist"), ("train", "test")
            return self._divide_sample([splits[name] for name in names], names, seed)
        if self.streaming:
            return self._open_streams(self._stream_opener(), EVALUATION_SPLITS if labels else ())
        if self.class_names is not None:
            raise ValueError("`class_names` are for `streaming`; data that is loaded has its own. Leave them out.")
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        splits = load_images(self.dataset, labels=labels, **columns)
        found = next((name for name in EVALUATION_SPLITS if name in splits and labels), None)
        check = self._check_labelled if labels else None
        train_rows, evaluation, name = self._divide(splits, seed, found, check, train)
        if evaluation is None and labels:
            raise self._nothing_to_evaluate(splits)
        return train_rows, evaluation, name

    def _stream_opener(self) -> Callable:
        """Opens a split as a stream; the class names of the first one are those of the others."""
        if isinstance(self.label_column, list):
            raise ValueError(
                f"A stream has one column of labels; got {', '.join(self.label_column)}. Leave `streaming` out to make "
                "several labels of several columns."
            )
        names = None if self.class_names is None else read_names(self.class_names, "class_names")

        def open_split(split: str):
            nonlocal names
            rows = open_stream(
                self.dataset,
                split,
                image_column=self.image_column,
                label_column=self.label_column,
                label_names=names,
            )
            names = rows.label_names
            return rows

        return open_split

    def _check_labelled(self, rows, name: str) -> None:
        if count_unlabelled(rows):
            raise ValueError(
                f"The split {name} of {self.dataset!r} has no labels. Give another as `eval_split`, or `holdout` (such "
                "as 0.1) to evaluate on a share of the training images."
            )


def read_names(names: Sequence[str], field_name: str) -> list[str]:
    """Texts that a recipe lists, or the lines of the text file that it names.

    Args:
        names: two or more texts, or one path.
        field_name: what the recipe calls them, for messages.

    Raises:
        FileNotFoundError: if the one path is no file.
    """
    if len(names) > 1:
        return list(names)
    (file,) = names
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"`{field_name}` {file!r} is no file. Give a text file with one name per line, or two names or more."
        )
    lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def choose_rows(rows, count: int):
    """So many rows chosen at random, always the same ones, in their old order."""
    if not 0 < count <= len(rows):
        raise ValueError(f"`train_rows` must be between 1 and the {len(rows)} rows of the split; got {count}.")
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:count]))


def _holdout_share(holdout: float, num_rows: int) -> float:
    if 0 < holdout < 1:
        return holdout
    if holdout != int(holdout) or not 1 <= holdout < num_rows:
        raise ValueError(
            f"`holdout` must be a share in (0, 1), or a number of rows from 1 to {num_rows - 1}; got {holdout:g}."
        )
    return holdout / num_rows


def parse_recipe(argument_classes: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None):
    """Read a recipe's command line: a YAML file whose keys are the fields of the classes, then options over it.

    The file may also hold what only a sweep reads (`SweepArguments`), so that a single run can use it too.

    Args:
        argument_classes: dataclasses; every field is a key of the file and an option `--field`.
        argv: the command line without the program's name; the process's by default.
        description: for `--help`.

    Returns:
        One instance per class.

    Raises:
        SystemExit: with a message, on a missing file, an unknown key or a value of the wrong type.
    """
    parser = HfArgumentParser(
        argument_classes,
        description=description,
        usage="%(prog)s CONFIG.yaml [--smoke] [--OPTION VALUE ...]    (--help lists the options)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML file with the recipe's settings")
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] not in ("-h", "--help") and argv[0].startswith("-"):
        parser.error(f"the configuration file comes first: CONFIG.yaml {' '.join(argv)}")
    settings = _read_yaml(argv[0], argument_classes, parser) if argv and not argv[0].startswith("-") else {}
    _set_defaults(parser, settings)
    values = _read_options(parser, argv)
    adjusted = _adjust(values, settings, argument_classes)
    if adjusted:
        _set_defaults(parser, adjusted)
        values = _read_options(parser, argv)
    if str(values.get("resume_from_checkpoint")).lower() in ("true", "false"):
        values["resume_from_checkpoint"] = values["resume_from_checkpoint"].lower() == "true"
    return tuple(
        cls(**{item.name: values[item.name] for item in fields(cls) if item.init}) for cls in argument_classes
    )


def _read_options(parser: HfArgumentParser, argv: Sequence[str]) -> dict:
    values, unknown = parser.parse_known_args(argv)
    for option in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        parser.error(f"unknown option {option}.{_suggest(option, parser._option_string_actions)}")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return vars(values)


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _set_defaults(parser: HfArgumentParser, settings: dict) -> None:
    for action in parser._actions:
        if action.dest in settings:
            action.required = False
            if (
                action.type is dict
            ):  # --model '{drop_path_rate: 0.1}' goes over the file's entries, '{}' leaves them out
                action.type = functools.partial(_merge, settings[action.dest] or {})
    parser.set_defaults(**settings)


def _adjust(values: dict, settings: dict, argument_classes: Sequence[type]) -> dict:
    """Defaults that other values make void: a smoke run's, and what the file says of a data set that is not used."""
    adjusted = {}
    if values.get("holdout") is not None and "holdout" not in settings and "eval_split" in settings:
        adjusted |= {"eval_split": None, **({"credit": None} if "credit" in settings else {})}
    if "dataset" in settings and values.get("dataset") != settings["dataset"]:
        describing = ("title", "license", "credit", "eval_dataset", "eval_split", "train_split", *_COLUMNS)
        known = {item.name: item.default for cls in argument_classes for item in fields(cls)}
        adjusted |= {name: known[name] for name in describing if name in settings and name in known}
    if values.get("smoke"):
        smoke = {**SMOKE_TRAINING, "output_dir": f"{settings.get('output_dir', 'outputs/run')}-smoke"}
        adjusted |= {name: value for name, value in smoke.items() if name in values}
    return adjusted


def _merge(settings: dict, text: str) -> dict:
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a mapping; write '{{drop_path_rate: 0.1}}'")
    return {**settings, **options} if options else {}


def _read_yaml(path: str, argument_classes: Sequence[type], parser) -> dict:
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"cannot read the configuration {path!r}: {error}")
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        parser.error(f"{path} must hold `key: value` lines; got {type(settings).__name__}.")
    own = {item.name: item for cls in argument_classes for item in fields(cls) if item.init}
    known = {item.name: item for item in fields(SweepArguments)} | own
    for key, value in settings.items():
        if key not in known:
            parser.error(f"{path}: unknown key {key!r}.{_suggest(key, known)}")
        if isinstance(value, str) and known[key].type in (float, float | None, int, int | None):
            parser.error(f"{path}: {key}: {value!r} is text, not a number; write 1.0e-4 in place of 1e-4.")
        if known[key].type is dict and not isinstance(value, dict):
            parser.error(f"{path}: {key} must be a mapping such as {{drop_path_rate: 0.1}}; got {value!r}.")
        if key.endswith("_strategy") and value is False:
            parser.error(f'{path}: {key}: YAML reads a bare no as False; write {key}: "no".')
    return {key: value for key, value in settings.items() if key in own}


# `model_type` of what becomes a ViT of this library: ViTs, and MAEs, of which it takes the encoder.
VIT_TYPES = ("vit", VitfmViTConfig.model_type, "vit_mae", VitfmMAEConfig.model_type)
# What another pooling leaves behind or needs: `pooling="mean"` has a norm of its own.
_POOLING = ("vit.fc_norm.", "vit.layernorm.")


def _is_foreign_vit(checkpoint: str, vit_class: type) -> bool:
    """Whether it is a ViT that another library saved: timm, MAE's and DeiT's code, a weight file, ..."""
    try:
        return detect(Source(checkpoint), model_class=vit_class).format.name not in (OURS, TRANSFORMERS)
    except (OSError, ValueError):  # another architecture
        return False


def find_classifier_class(checkpoint: str, vit_class: type = ViTForImageClassification) -> tuple[type, Any]:
    """What a checkpoint is fine-tuned as: `vit_class` or an Auto class, and its configuration (None: not transformers').

    Raises:
        OSError: if it has no configuration that can be read, or cannot be reached.
        ValueError: if its configuration is of no known architecture.
    """
    config = None if _is_foreign_vit(checkpoint, vit_class) else AutoConfig.from_pretrained(checkpoint)
    is_vit = config is None or config.model_type in VIT_TYPES
    return vit_class if is_vit else AutoModelForImageClassification, config


def load_for_fine_tuning(checkpoint: str, vit_class: type = ViTForImageClassification, **fields):
    """Load an image classifier with a new head; every other weight has to come from the checkpoint.

    Weights are float32 whatever the file holds: updates are too small for less.

    Args:
        checkpoint: Hub id, folder or weight file; ViTs and the encoders of MAEs, of any format that is read, are loaded
            as ours, other models by `AutoModelForImageClassification`.
        vit_class: what ViTs and MAEs become.
        **fields: of the configuration: `id2label`, `label2id`, `image_size`, `drop_path_rate`, ...

    Raises:
        FileNotFoundError: if the checkpoint is a path that does not exist.
        ValueError: if weights other than the head's are missing or have another shape.
    """
    check_source(checkpoint)
    model_class, config = find_classifier_class(checkpoint, vit_class)
    if model_class is vit_class:
        fields.setdefault("representation_size", None)  # fine-tuning drops the pre-logits layer (ViT, section 3.2)
    else:
        if not hasattr(config, "image_size"):
            fields.pop("image_size", None)  # convolutions take any size
        unknown = [name for name in fields if not hasattr(config, name)]
        if unknown:
            raise ValueError(f"{type(config).__name__} of {checkpoint!r} has no field {', '.join(unknown)}.")
    model, info = model_class.from_pretrained(
        checkpoint, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32, **fields
    )
    lost = [name for name in info["missing_keys"] if not name.startswith((*HEADS, *_POOLING))]
    lost += [name for name, *_ in info["mismatched_keys"] if not name.startswith(HEADS)]
    if lost:
        raise ValueError(
            f"{len(lost)} weights of {checkpoint!r} do not fit the configuration and would start at random: "
            f"{', '.join(sorted(lost)[:5])}. Only the head may differ; correct {', '.join(sorted(fields))}."
        )
    return model


# Settings that say nothing about what was trained: folders, identifiers, logging, what was asked for on the way.
_NOT_ON_A_CARD = {
    "output_dir", "run_name", "logging_dir", "hub_token", "hub_model_id", "local_rank", "report_to", "disable_tqdm",
    "debug", "do_train", "do_eval", "do_predict", "use_cpu", "dataloader_pin_memory", "dataloader_num_workers",
    "logging_steps", "logging_strategy", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
    "save_total_limit", "per_device_eval_batch_size", "resume_from_checkpoint",
}  # fmt: skip
_ALWAYS_ON_A_CARD = ("learning_rate", "lr_scheduler_type", "weight_decay", "seed")


def training_settings(args: VisionTrainingArguments) -> dict:
    """The settings of a run for its card, flat: what differs from the defaults, and what a reader always asks for."""
    settings = {"global_batch_size": args.global_batch_size, **args.train_transform_options}
    for item in fields(args):
        value, default = (getattr(entry, "value", entry) for entry in (getattr(args, item.name), item.default))
        is_told = item.init and not item.name.startswith("_") and item.name not in _NOT_ON_A_CARD
        is_plain = isinstance(value, (bool, int, float, str))
        if is_told and is_plain and (item.name in _ALWAYS_ON_A_CARD or (value != default and value is not False)):
            settings[item.name] = value
    if "max_steps" in settings:
        settings.pop("num_train_epochs", None)
    if settings.get("optim") == "sgd":
        settings["momentum"] = args.momentum
    return settings
