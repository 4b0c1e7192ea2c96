"""Which prompts a data set of a suite is evaluated with; where they come from stands in every result."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace

from ..models.modeling_losses import IGNORE_INDEX
from .class_names import (
    ClassNames,
    class_names_beside,
    class_names_of_labels,
    class_names_of_sample,
    imagenet_class_names,
    read_class_names,
)
from .imagenet import NUM_CLASSES, imagenet_labels
from .suite_data import SuiteData


_LABEL_TEMPLATE = ("a photo of a {}.",)
_WORDNET_ID = re.compile(r"n\d{8}")


def find_class_names(
    data: SuiteData,
    classnames: str | os.PathLike | None = None,
    templates: str | os.PathLike | None = None,
) -> ClassNames:
    """Take the files given, or else what lies beside the data set, or else what its labels are called.

    Args:
        data: an opened data set.
        classnames: a file of names, in the order of the class ids.
        templates: a file of texts with "{}" or "{c}" for the name.

    Raises:
        ValueError: if only one file is given, or the classes have no names anywhere.
    """
    if (classnames is None) != (templates is None):
        raise ValueError(f"{data.row.name} must have both, --classnames and --templates; got one of them.")
    if classnames is not None:
        return read_class_names(classnames, templates, data.row.name)
    if data.source == data.row.sample:
        return class_names_of_sample(data.row.sample)
    try:
        return class_names_beside(data.source)
    except (FileNotFoundError, ConnectionError):
        pass  # most data sets have none
    if are_unnamed(data.label_names) or data.row.reassessed:
        return _imagenet_names(data)
    return class_names_of_labels(data.splits["test"], _LABEL_TEMPLATE)


def are_unnamed(names: list[str] | None) -> bool:
    """Whether labels are numbers or WordNet ids, which are no words."""
    return not names or all(name.isdecimal() or _WORDNET_ID.fullmatch(name) for name in names)


def pick(files: Mapping[str, str], name: str) -> str | None:
    """The file given for a data set, or the one given for all, under the name ""."""
    return files.get(name, files.get(""))


def _imagenet_names(data: SuiteData) -> ClassNames:
    """ImageNet's names for its own classes, or for those that the folders of a data set are."""
    names = data.label_names
    if data.row.reassessed:  # these labels may be any of the classes
        return imagenet_class_names()
    if not names or names[0].isdecimal():
        if len(names or range(data.row.num_classes)) == NUM_CLASSES:
            return imagenet_class_names()
        raise ValueError(
            f"The classes of {data.row.name} have no names. Put classnames.txt and zeroshot_classification_templates.txt "
            f"beside the data, or give --classnames {data.row.name}=FILE and --templates {data.row.name}=FILE."
        )
    numbers = imagenet_labels(names, wnids=names if len(names) == NUM_CLASSES else None)
    if IGNORE_INDEX in numbers:
        raise ValueError(f"Folder {names[numbers.index(IGNORE_INDEX)]} of {data.row.name} is no class of ImageNet.")
    known = imagenet_class_names()
    return replace(known, names=tuple(known.names[number] for number in numbers))
