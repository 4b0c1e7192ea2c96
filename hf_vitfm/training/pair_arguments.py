"""Arguments of recipes about images with captions: what is trained and evaluated on, and what is classified zero-shot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.datasets import label_names, load_images
from ..data.labels import column, encode_labels
from ..data.pairs import load_pairs
from ..data.samples import require_datasets
from ..data.sources.stream import open_stream
from ..data.streams import StreamRows
from .recipe import EVALUATION_SPLITS, RowArguments, choose_rows, read_names
from .sources import shareable_source


SMOKE_SAMPLE, SMOKE_SPLITS, SMOKE_LABELS = "emoji", ("google", "twitter"), "category"
SMOKE_CREDIT = "emoji of Noto (Google, Apache-2.0) and Twemoji (Twitter and contributors, CC-BY 4.0)"


@dataclass
class PairArguments(RowArguments):
    """Which images with captions a recipe trains and evaluates on."""

    caption_column: str | None = field(
        default=None, metadata={"help": "column of the captions, found if not given; of tars a field of their .json"}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "another data set to evaluate on, its `eval_split`; it is never streamed"}
    )
    credit: str | None = field(
        default=None,
        metadata={"help": "whom the evaluation images are by, for pictures and card, as licences ask for"},
    )

    def describe(self) -> dict:
        """What the model card says of the data set."""
        if self.smoke:
            return {"name": "Emoji (smoke run)", "id": SMOKE_SAMPLE, "license": "apache-2.0", "credit": SMOKE_CREDIT}
        about = {"name": self.title or self.dataset, "id": self.dataset, "license": self.license}
        about |= {"train_split": self.train_split}
        return about | ({"credit": self.credit} if self.credit else {})

    def load(self, seed: int, train: bool = True):
        """Load the data: (training rows, evaluation rows, name of the evaluation split).

        Evaluated on are, the first that applies: the share `holdout` of the training rows, the split `eval_split`, the
        split validation, the split test, the share `holdout_if_missing` of the training rows; splits are those of
        `eval_dataset` if there is one. Rows keep their other columns, those of a stream aside. Without `train`, training
        rows may be None.

        Raises:
            ValueError: if there is nothing to evaluate on, or columns are not clear.
        """
        self._check_choice()
        if self.smoke:
            splits = load_pairs(SMOKE_SAMPLE)
            return self._divide_sample([splits[name] for name in SMOKE_SPLITS], SMOKE_SPLITS, seed)
        if self.eval_dataset is not None:
            return self._load_apart(train)
        if self.streaming:
            if any(mark in self.dataset for mark in "*{"):
                raise ValueError(
                    f"`dataset` {self.dataset!r} names its shards, so there is no split of it to evaluate on. Give "
                    "`eval_dataset`, or a folder whose shards say train and validation in their path."
                )
            return self._open_streams(self._open_split, EVALUATION_SPLITS)
        splits = self._load(self.dataset)
        found = next((name for name in EVALUATION_SPLITS if name in splits), None)
        train_rows, evaluation, name = self._divide(splits, seed, found, train=train)
        if evaluation is None:
            raise self._nothing_to_evaluate(splits)
        return train_rows, evaluation, name

    def _load_apart(self, with_train: bool):
        """Training rows of `dataset`, evaluation rows of `eval_dataset`."""
        if self.holdout is not None:
            raise ValueError("Give `eval_dataset` or `holdout`, not both.")
        if not with_train:
            train = None
        elif self.streaming:
            self._check_stream()
            train = self._open_split(self.train_split)
        else:
            train = self._train_rows()
        splits = self._load(self.eval_dataset)
        wanted = (self.eval_split,) if self.eval_split else (*EVALUATION_SPLITS, "train")
        name = next((name for name in wanted if name in splits), None)
        if name is None:
            raise ValueError(
                f"{self.eval_dataset!r} has no split {' or '.join(wanted)}; it has {', '.join(splits)}. Give `eval_split`."
            )
        return train, splits[name], f"{name} of {self.eval_dataset}"

    def _train_rows(self):
        rows = self._split(self._load(self.dataset), self.train_split, None)
        return rows if self.train_rows is None else choose_rows(rows, self.train_rows)

    def _load(self, source: str):
        return load_pairs(source, image_column=self.image_column, caption_column=self.caption_column)

    def _open_split(self, split: str) -> StreamRows:
        return open_stream(self.dataset, split, image_column=self.image_column, caption_column=self.caption_column)


def captions_of(rows: Sequence[dict]) -> list:
    """The captions of all rows, no image decoded; each a string, a list of strings or whatever stands there.

    Raises:
        ValueError: for a stream, which would have to be read from end to end.
    """
    if isinstance(rows, StreamRows):
        raise ValueError(
            "The captions of a stream cannot be collected without reading all of it. To train a tokenizer, leave "
            "`streaming` out; or give `tokenizer`, a Hub id or a folder."
        )
    if hasattr(rows, "select_columns"):
        return column(rows, "caption").to_pylist()
    return [row["caption"] for row in rows]


@dataclass
class ZeroShotSet:
    """The options of `zero_shot`.

    Args:
        templates: texts with "{}" for the name of the class, or the path of a text file with one per line.
        dataset: what `load_images` opens; None: the evaluation rows themselves, which have a column of labels.
        split: of `dataset`; by default validation, else test.
        image_column: of `dataset`, found if not given.
        label_column: found if not given, but named where the evaluation rows have several.
        classnames: one per class, or the path of a text file with one per line; by default those that the data holds.
    """

    templates: list[str] | str = "{}"
    dataset: str | None = None
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    classnames: list[str] | str | None = None

    def __post_init__(self):
        self.templates = self._read("templates")
        self.classnames = None if self.classnames is None else self._read("classnames")
        wrong = [text for text in self.templates if not isinstance(text, str) or "{}" not in text]
        if wrong or not self.templates:
            raise ValueError(
                f'`templates` of `zero_shot` must be texts with "{{}}" for the class; got {wrong or self.templates!r}.'
            )
        if self.dataset is None and (self.split or self.image_column):
            raise ValueError(
                "`split` and `image_column` of `zero_shot` go with its `dataset`; without one, the evaluation rows are "
                "classified. Leave them out."
            )

    def _read(self, name: str) -> list[str]:
        value = getattr(self, name)
        if isinstance(value, str):
            return [value] if "{}" in value else read_names([value], f"zero_shot.{name}")
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{name}` of `zero_shot` must be a list or the path of a text file; got {value!r}.")
        return list(value)

    def load(self, eval_rows: Sequence[dict]) -> tuple[Any, list[str], str]:
        """Rows with `image` and `label`, the names of the classes, and the name of the data set."""
        if self.dataset is None:
            rows, name = self._label_evaluation(eval_rows), "the evaluation set"
        else:
            splits = load_images(self.dataset, image_column=self.image_column, label_column=self.label_column)
            wanted = EVALUATION_SPLITS if self.split is None else (self.split,)
            split = next((split for split in wanted if split in splits), None)
            if split is None:
                raise ValueError(
                    f"{self.dataset!r} has no split {' or '.join(wanted)}; it has {', '.join(splits)}. Give `split` in "
                    "`zero_shot`."
                )
            rows, name = splits[split], f"{self.dataset} ({split})"
        found = label_names(rows) if hasattr(rows.features["label"], "names") else None
        if found is None:
            raise ValueError(
                f"Zero-shot classification needs one class per image; the labels of {name} are {rows.features['label']}."
            )
        if self.classnames is not None and len(self.classnames) != len(found):
            raise ValueError(
                f"`classnames` of `zero_shot` must name the {len(found)} classes of {name}; got {len(self.classnames)}."
            )
        return rows, self.classnames or found, name

    def _label_evaluation(self, rows: Sequence[dict]):
        """The evaluation rows with the column of labels that is named."""
        columns = getattr(rows, "column_names", [])
        if self.label_column not in columns:
            raise ValueError(
                "Without `dataset`, `zero_shot` classifies the evaluation rows by their `label_column`, one of "
                f"{', '.join(columns) or 'none that a stream could say'}; got {self.label_column!r}. Name one, give "
                "`dataset`, or leave `zero_shot` out (as an option: --zero_shot '{}')."
            )
        rows = rows.select_columns(["image", self.label_column])
        if self.label_column != "label":
            rows = rows.rename_column(self.label_column, "label")
        return encode_labels(require_datasets(), {"evaluation": rows})["evaluation"]


@dataclass
class ZeroShotArguments:
    """A labelled set that is classified by its class names in every evaluation; nothing is trained on it."""

    zero_shot: dict = field(
        default_factory=dict,
        metadata={"help": "such as {label_column: category, templates: ['{}']} for the evaluation rows themselves, or "
                  "{dataset: ..., split: ..., templates: file.txt, classnames: file.txt}"},
    )  # fmt: skip

    def source(self) -> dict:
        """What opens the same rows and names again, for run.json: `zero_shot`; empty where there is none."""
        if not self.zero_shot:
            return {}
        chosen = {name: value for name, value in asdict(ZeroShotSet(**self.zero_shot)).items() if value is not None}
        if "dataset" in chosen:
            chosen["dataset"] = shareable_source(chosen["dataset"])
        return {"zero_shot": chosen}

    def load(self, eval_rows: Sequence[dict], data: PairArguments) -> tuple[dict, dict | None]:
        """The arguments of `CLIPTrainer` for it, and what the card says of it; empty and None where there is none."""
        if not self.zero_shot:
            return {}, None
        try:
            chosen = ZeroShotSet(**self.zero_shot)
        except TypeError as error:
            known = ", ".join(ZeroShotSet.__dataclass_fields__)
            raise ValueError(f"`zero_shot` takes {known}; got {self.zero_shot}.") from error
        if data.smoke:
            chosen = ZeroShotSet(chosen.templates[:2], label_column=SMOKE_LABELS)
        rows, classnames, name = chosen.load(eval_rows)
        about = {"dataset": name, "rows": len(rows), "classes": len(classnames), "templates": chosen.templates}
        sizes = Counter(column(rows, "label").to_pylist())
        about["largest_class"] = max(sizes.values()) / len(rows)
        return {"labelled_dataset": rows, "classnames": classnames, "templates": chosen.templates}, about
