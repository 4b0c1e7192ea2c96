"""What recipes share that evaluate a model as it is: the images, the model and its features, the class names, the result."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from ..cards.redact import redact, redact_command
from ..data.datasets import label_names, load_images
from ..data.labels import count_unlabelled
from ..data.samples import SAMPLE_NAMES
from ..evaluation.class_names import (
    ClassNames,
    class_names_beside,
    class_names_of_labels,
    class_names_of_sample,
    imagenet_class_names,
    read_class_names,
)
from ..evaluation.features import extract_features
from ..evaluation.imagenet import NUM_CLASSES, imagenet_labels
from ..evaluation.suite_models import SuiteModel, load_suite_model
from ..evaluation.suite_prompts import are_unnamed
from ..evaluation.suite_tasks import probe_pooling
from ..evaluation.zero_shot import ZeroShotClassifier
from ..models.modeling_losses import IGNORE_INDEX
from .recipe import EVALUATION_SPLITS, SMOKE_ROWS, choose_rows


if TYPE_CHECKING:
    from datasets import Dataset

SMOKE_CHECKPOINT, SMOKE_SAMPLE = "emoji-clip", "fashion-mnist"  # the images are those of `DataArguments`' smoke runs
CACHE = "cache"


@dataclass
class EvaluationArguments:
    """Which labelled images a recipe evaluates on, where it trains on none."""

    dataset: str = field(metadata={"help": "embedded sample, folder, file or Hub id"})
    eval_split: str | None = field(
        default=None, metadata={"help": "split to evaluate on; by default validation, else test, else the only one"}
    )
    image_column: str | None = field(default=None, metadata={"help": "column of the images, found if not given"})
    label_column: str | None = field(default=None, metadata={"help": "column of the labels, found if not given"})
    title: str | None = field(default=None, metadata={"help": "name of the data set for the results"})
    license: str | None = field(default=None, metadata={"help": "licence of the data set, such as mit"})
    smoke: bool = field(default=False, metadata={"help": "a few embedded images and the small CLIP that ships"})

    def load(self) -> tuple["Dataset", str]:
        """Rows with `image` and `label`, and the name of their split.

        Raises:
            ValueError: if it is not clear which split to take, or some of its images have no label.
        """
        if self.smoke:
            return choose_rows(load_images(SMOKE_SAMPLE)["test"], SMOKE_ROWS), "test"
        splits = load_images(self.dataset, image_column=self.image_column, label_column=self.label_column)
        wanted = EVALUATION_SPLITS if self.eval_split is None else (self.eval_split,)
        name = next((name for name in wanted if name in splits), None)
        if name is None and self.eval_split is None and len(splits) == 1:
            (name,) = splits
        if name is None:
            raise ValueError(
                f"{self.dataset!r} has no split {' or '.join(wanted)}; it has {', '.join(splits)}. Give `eval_split`."
            )
        if count_unlabelled(splits[name]):
            raise ValueError(f"The split {name} of {self.dataset!r} has no labels. Give another as `eval_split`.")
        return splits[name], name

    def describe(self) -> dict:
        """What the results say of the data set."""
        if self.smoke:
            return {"name": "Fashion-MNIST (smoke run)", "id": SMOKE_SAMPLE, "license": "mit"}
        return {"name": self.title or self.dataset, "id": self.dataset, "license": self.license}


@dataclass
class PromptArguments:
    """What the classes are called in zero-shot classification."""

    prompts: str | None = field(
        default=None,
        metadata={"help": "source of names and templates: imagenet (CLIP's, which open_clip has), emoji or fashion-mnist "
                  "(this library's), labels (the data's own names), or a folder or Hub id with classnames.txt and "
                  "zeroshot_classification_templates.txt"},
    )  # fmt: skip
    classnames: str | None = field(
        default=None, metadata={"help": "file of names in the order of the class ids; goes with `templates`"}
    )
    templates: str | None = field(default=None, metadata={"help": "file of texts with {} or {c} for the name"})

    def read(self, rows: "Dataset", smoke: bool) -> ClassNames | None:
        """Names for the classes of labelled rows, in the order of their ids; None if no source is given.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if only one file is given, or there is not one name for each class.
        """
        if (self.classnames is None) != (self.templates is None):
            raise ValueError("`classnames` and `templates` go together, since a file holds one of them; got one file.")
        if self.prompts is None and self.classnames is None:
            return None
        found, labels = self._find(rows, smoke), label_names(rows)
        if labels is not None and len(labels) != len(found.names):
            raise ValueError(
                f"The data has {len(labels)} classes, and there are {len(found.names)} names ({found.source}). Give "
                "another source as `prompts`, or files as `classnames` and `templates`."
            )
        return found

    def _find(self, rows: "Dataset", smoke: bool) -> ClassNames:
        if smoke:
            return class_names_of_sample(SMOKE_SAMPLE)
        if self.classnames is not None:
            return read_class_names(self.classnames, self.templates)
        if self.prompts == "labels":
            return class_names_of_labels(rows)
        if self.prompts == "imagenet":
            return _imagenet_names(label_names(rows))
        return (
            class_names_of_sample(self.prompts) if self.prompts in SAMPLE_NAMES else class_names_beside(self.prompts)
        )


def _imagenet_names(labels: list[str] | None) -> ClassNames:
    """ImageNet's names in the order of the labels, which may be WordNet ids, numbers sorted as texts, or some classes."""
    known = imagenet_class_names()
    if labels is None or (len(labels) == NUM_CLASSES and not are_unnamed(labels)):
        return known  # names of all classes, in the order of ImageNet's ids as every copy on the Hub has them
    wordnet_ids = labels if len(labels) == NUM_CLASSES and not labels[0].isdecimal() else None
    numbers = imagenet_labels(labels, wnids=wordnet_ids)
    if IGNORE_INDEX in numbers:
        raise ValueError(
            f"The label {labels[numbers.index(IGNORE_INDEX)]!r} is no class of ImageNet; leave its images out."
        )
    return ClassNames(tuple(known.names[number] for number in numbers), known.templates, known.source)


@dataclass
class FeatureArguments:
    """The model that is evaluated, and how its features are computed."""

    output_dir: str = field(metadata={"help": "folder of the results, and of the features in its folder cache"})
    checkpoint: str = field(
        metadata={"help": "Hub id, folder or weight file of any format that is read, or emoji-clip or fashion-mae"}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "images per forward pass"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    bf16: bool = field(default=False, metadata={"help": "compute features of images under bfloat16 autocast"})
    on_bad_image: str = field(default="error", metadata={"help": "error, or skip: such images are left out"})
    use_cpu: bool = field(default=False, metadata={"help": "do not use a GPU"})


@dataclass(frozen=True, eq=False)
class FeatureModel:
    """A model on its device; several processes share the work, and all get all of the result.

    Args:
        args: as given.
        loaded: the model with its preprocessing and tokenizer.
        state: of the processes.
    """

    args: FeatureArguments
    loaded: SuiteModel
    state: PartialState

    @classmethod
    def load(cls, args: FeatureArguments, smoke: bool) -> "FeatureModel":
        """Load the checkpoint; in a smoke run the small CLIP that ships."""
        state = PartialState(cpu=args.use_cpu)
        checkpoint = SMOKE_CHECKPOINT if smoke else args.checkpoint
        return cls(args, load_suite_model(checkpoint, device=state.device), state)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that fits, draws and writes."""
        return self.state.is_main_process

    @property
    def device(self) -> torch.device:
        """What is computed on."""
        return self.state.device

    @property
    def default_pooling(self) -> str:
        """What stands for an image where nothing else is asked for (`probe_pooling`)."""
        return probe_pooling(self.loaded.model)

    @property
    def _shared(self) -> dict:
        group = dist.group.WORLD if self.state.num_processes > 1 else None
        return {"cache_dir": Path(self.args.output_dir) / CACHE, "group": group}

    def features(self, rows: "Dataset", pooling: str | None = None) -> tuple[Tensor, Tensor]:
        """Features and labels of all rows with a label, on the CPU; computed once, then read from the cache.

        Args:
            rows: with `image` and `label`.
            pooling: of `extract_features`; None: `default_pooling`.
        """
        features, labels = extract_features(
            self.loaded.model,
            rows,
            self.loaded.transform,
            self.args.per_device_eval_batch_size,
            pooling or self.default_pooling,
            dtype=torch.bfloat16 if self.args.bf16 else None,
            num_workers=self.args.dataloader_num_workers,
            on_bad_image=self.args.on_bad_image,
            **self._shared,
        )
        if labels.ndim > 1:
            return features, labels
        is_known = labels != IGNORE_INDEX  # not so images that were skipped
        return features[is_known], labels[is_known]

    def build_classifier(self, names: ClassNames) -> ZeroShotClassifier:
        """A zero-shot classifier of the model.

        Raises:
            ValueError: if the model embeds no texts.
        """
        if not self.loaded.has_texts:
            raise ValueError(
                f"{self.args.checkpoint!r} embeds no texts, so it cannot classify by names. Give a CLIP as `checkpoint`, "
                "or leave `prompts` out."
            )
        return ZeroShotClassifier.build(
            self.loaded.model, self.loaded.tokenizer, names.names, names.templates, source=names.source, **self._shared
        )

    def describe_features(self, pooling: str | None, features: Tensor) -> dict:
        """What the results say of features (rows, dim)."""
        return {"pooling": pooling or self.default_pooling, "dim": features.shape[1]}

    def describe(self) -> dict:
        """What the results say of the model."""
        return {
            "name": self.loaded.name,
            "class": type(self.loaded.model).__name__,
            "precision": "bfloat16 autocast" if self.args.bf16 else self.loaded.dtype,
        }


def write_result(recipe: str, argv: Sequence[str], output_dir: str, result: dict) -> dict:
    """Write a recipe's numbers with the command that gave them, without private paths.

    Args:
        recipe: path of the script from the root of the repository; its stem names the JSON file.
        argv: its command line.
        output_dir: folder of the file, made if need be.
        result: the numbers, and what they were measured on.

    Returns:
        What the file holds.
    """
    command = redact_command(shlex.join(["python", recipe, *argv]))
    record = {"recipe": recipe, **redact({"config": argv[0]}), "command": command, **redact(result)}
    file = Path(output_dir) / f"{Path(recipe).stem}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record
