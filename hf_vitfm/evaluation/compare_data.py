"""The images that models are compared on: what is learnt from, what is tested on, and what the classes are called."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.datasets import load_images, split_off
from ..data.labels import count_unlabelled
from ..data.order import ImageView
from ..data.samples import SAMPLE_NAMES
from .class_names import (
    NAMES_FILE,
    TEMPLATES_FILE,
    ClassNames,
    class_names_beside,
    class_names_of_labels,
    class_names_of_sample,
)
from .fingerprint import fingerprint_rows
from .prompts import check_template


if TYPE_CHECKING:
    from datasets import Dataset

TEST_SHARE = 0.25  # of every class, where the data has one split alone
TEMPLATE = "a photo of a {}."
_EVALUATED = ("test", "validation")


@dataclass(frozen=True, eq=False)
class ComparisonData:
    """Images with one class each.

    Args:
        source: what they were opened from.
        train: rows to learn from.
        test: rows to test on.
        validation: rows to choose settings on; None: a part of those to learn from.
        names: of the classes, in the order of their ids.
        split: how train and test came about, in words.
        recipe: fields of a fine-tuning recipe that opens the same rows.
    """

    source: str
    train: "Dataset"
    test: "Dataset"
    validation: "Dataset | None"
    names: tuple[str, ...]
    split: str
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, "Dataset"]:
        """The splits that there are, by what they are used for."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in parts.items() if rows is not None}


def open_comparison(
    source: str | Path, splits: Sequence[str] | None = None, label_column: str | None = None, seed: int = 0
) -> ComparisonData:
    """Open labelled images and decide what is tested on.

    Tested on is the split test, or else validation, or else a quarter of every class of the only split, chosen by a
    seed. A validation split beside a test split serves to choose settings.

    Args:
        source: what `load_images` opens.
        splits: names of the split to learn from and the one to test on, where they are others.
        label_column: of the class, where it is not clear.
        seed: chooses the quarter.

    Raises:
        FileNotFoundError: if there is no such data.
        ValueError: if the splits are not clear, the labels are not one class for each image, or there are no two classes.
    """
    found = load_images(source, label_column=label_column)
    found = {name: rows for name, rows in found.items() if count_unlabelled(rows) < len(rows)}
    feature = next(iter(found.values())).features["label"]
    if getattr(feature, "names", None) is None:
        raise ValueError(f"Models are compared on images of one class each; the labels of {source} are {feature}.")
    if len(feature.names) < 2:
        raise ValueError(f"{source} has one class, {feature.names[0]!r}; there is nothing to tell apart.")
    recipe = {"dataset": str(source), **({"label_column": label_column} if label_column else {})}
    names = tuple(map(str, feature.names))
    if splits is None and len(found) == 1:
        ((name, rows),) = found.items()
        train, test = split_off(rows, TEST_SHARE, seed)
        split = f"{100 * TEST_SHARE:g} % of every class of {name!r} held out by seed {seed}"
        recipe |= {"train_split": name, "holdout": TEST_SHARE, "seed": seed}
        return ComparisonData(str(source), train, test, None, names, split, recipe)
    train, test = _choose(source, list(found), splits)
    validation = "validation" if "validation" in found and "validation" not in (train, test) else None
    split = f"splits {train!r} and {test!r} of the data"
    recipe |= {"train_split": train, "eval_split": test}
    return ComparisonData(str(source), found[train], found[test], found.get(validation), names, split, recipe)


def _choose(source: str | Path, found: list[str], given: Sequence[str] | None) -> tuple[str, str]:
    """The split to learn from and the one to test on."""
    if given is not None:
        train, test = given
        unknown = [name for name in given if name not in found]
        if unknown or train == test:
            raise ValueError(f"`splits` must be two of {', '.join(found)}; got {train!r} and {test!r}.")
        return train, test
    test = next((name for name in _EVALUATED if name in found), None)
    if "train" not in found or test is None:
        raise ValueError(
            f"{source} has the labelled splits {', '.join(found)}. Name the one to learn from and the one to test on: "
            f"`splits=({found[0]!r}, {found[-1]!r})`, or --splits {found[0]} {found[-1]}."
        )
    return "train", test


def count_repeated(data: ComparisonData) -> int:
    """Test images that stand, byte for byte, among those to learn from or to choose settings on: they flatter a model."""
    parts = {name: ImageView(rows, None).rows for name, rows in data.parts.items()}  # images undecoded
    contents = {
        name: [fingerprint_rows([rows[index]], ("image",)) for index in range(len(rows))]
        for name, rows in parts.items()
    }
    tested = contents.pop("test")
    learnt = set(chain.from_iterable(contents.values()))
    return sum(content in learnt for content in tested)


def comparison_prompts(data: ComparisonData, templates: Sequence[str] | None = None) -> ClassNames:
    """The texts that zero-shot classification is given.

    The names are those of classnames.txt in the data's folder, this library's own for a set that ships, or those of the
    labels. The templates are those given, or what comes with the names, or else "a photo of a {}.".

    Args:
        data: with the names of its labels.
        templates: each with one "{}" for the name.

    Raises:
        ValueError: if a template has no place for the name, or there is not one name for each class.
    """
    prompts = _find_prompts(data, templates)
    if len(prompts.names) != len(data.names):
        raise ValueError(f"There are {len(prompts.names)} names ({prompts.source}) for {len(data.names)} classes.")
    if templates is None:
        return prompts
    for template in templates:
        check_template(template)
    return ClassNames(prompts.names, tuple(templates), f"{prompts.source}; {len(templates)} given templates")


def _find_prompts(data: ComparisonData, templates: Sequence[str] | None) -> ClassNames:
    if data.source in SAMPLE_NAMES:
        prompts = class_names_of_sample(data.source)
        if len(prompts.names) == len(data.names):
            return prompts
    folder = Path(data.source).expanduser()
    if (folder / NAMES_FILE).is_file() and (folder / TEMPLATES_FILE).is_file():
        return class_names_beside(folder)
    labels = class_names_of_labels(data.test, templates or (TEMPLATE,))
    return ClassNames(
        labels.names,
        labels.templates,
        "the names of the labels" + ("" if templates else f"; the one template {TEMPLATE!r}, no ensemble"),
    )
