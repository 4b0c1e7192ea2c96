"""Which outputs of a classifier the classes of a suite's data set are; by names, and said where it is by number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..models.modeling_losses import IGNORE_INDEX
from .class_names import class_names_beside
from .imagenet import NUM_CLASSES, imagenet_labels, spaced
from .suite_data import SuiteData


_NAMELESS = re.compile(r"LABEL_\d+")  # what a configuration of transformers calls outputs that nobody named
_WORDNET_ID = re.compile(r"n\d{8}(?!\d)")
_BACKGROUND = "background"  # the first of 1,001 outputs, of models that come from TensorFlow


@dataclass(frozen=True)
class MatchedClasses:
    """How the labels of a data set and the outputs of a model belong together.

    Args:
        class_ids: for each label of the data set an output of the model, or -100.
        outputs: that are compared.
        classes: for each output its class of ImageNet-1k, -100 for none; of ImageNet's data sets.
        assumptions: what was taken for granted, for tables.
    """

    class_ids: tuple[int, ...]
    outputs: tuple[int, ...]
    classes: tuple[int, ...] = ()
    assumptions: tuple[str, ...] = ()


def match_classes(data: SuiteData, outputs: Sequence[str]) -> MatchedClasses:
    """Find a model's outputs for the classes of a data set.

    Args:
        data: an opened data set.
        outputs: what the model calls its outputs.

    Raises:
        ValueError: if they are other classes, or nothing tells which they are.
    """
    return _match_imagenet(data, outputs) if data.row.imagenet_classes else _match_names(data, outputs)


def _match_imagenet(data: SuiteData, outputs: Sequence[str]) -> MatchedClasses:
    """By ImageNet's classes: of a head that has them all, those of the data set are compared."""
    row, assumptions = data.row, []
    classes, is_assumed = classes_of_outputs(outputs)
    if is_assumed:
        assumptions.append("the outputs have no names: taken to be ImageNet's classes in the order of WordNet ids")
    labels = data.label_names or list(map(str, range(row.num_classes)))
    if are_numbers(labels):
        if max(map(int, labels)) >= row.num_classes:
            raise ValueError(f"the labels go to {max(map(int, labels))}, and there are {row.num_classes} classes")
        known = [row.imagenet_classes[int(label)] for label in labels]
        assumptions.append(f"labels from 0 are taken to be the {row.num_classes} classes in the order of WordNet ids")
    else:
        known = _imagenet_classes(labels, row.imagenet_classes)
        if IGNORE_INDEX in known:
            raise ValueError(f"the label {labels[known.index(IGNORE_INDEX)]!r} is no class of ImageNet-1k")
    output_of = {number: output for output, number in enumerate(classes) if number != IGNORE_INDEX}
    lacking = [number for number in row.imagenet_classes if number not in output_of]
    if lacking:
        raise ValueError(f"the model has no output for {len(lacking)} of the {row.num_classes} classes")
    return MatchedClasses(
        tuple(output_of.get(number, IGNORE_INDEX) for number in known),
        tuple(output_of[number] for number in row.imagenet_classes),
        tuple(classes),
        tuple(assumptions),
    )


def classes_of_outputs(outputs: Sequence[str]) -> tuple[list[int], bool]:
    """For each output of a classifier its class of ImageNet-1k, -100 for none, and whether this is by number alone.

    Args:
        outputs: their names.

    Raises:
        ValueError: if they are other classes, or have no names and are not 1,000.
    """
    if len(outputs) == NUM_CLASSES + 1 and outputs[0].casefold() == _BACKGROUND:
        return [IGNORE_INDEX, *_imagenet_classes(outputs[1:], range(NUM_CLASSES))], False
    if all(map(_NAMELESS.fullmatch, outputs)) or are_numbers(outputs):
        if len(outputs) != NUM_CLASSES:
            raise ValueError(f"the model's {len(outputs):,} outputs have no names, so that nothing says what they are")
        numbers = [int(name.removeprefix("LABEL_")) for name in outputs]
        if sorted(numbers) != list(range(NUM_CLASSES)):
            raise ValueError("the model's outputs are numbers, but not 0 to 999")
        return numbers, True
    try:
        return _imagenet_classes(outputs, range(NUM_CLASSES)), False
    except ValueError as error:
        what = f"the model's {len(outputs):,} outputs, such as {outputs[0]!r}, are not ImageNet's classes"
        raise ValueError(what) from error


def _imagenet_classes(names: Sequence[str], expected: Sequence[int]) -> list[int]:
    """For each name its class of ImageNet-1k, -100 for none.

    Lists of ImageNet's names differ in many words. That most names are those of the expected classes, each in its place,
    shows that all are, since in another order next to none would be.
    """
    if len(names) == len(expected):
        from torchvision.models import ViT_B_16_Weights

        known = ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]
        synonyms = ({spaced(part).casefold() for part in name.split(",")} for name in names)
        agreeing = sum(spaced(known[number]).casefold() in own for number, own in zip(expected, synonyms, strict=True))
        if 2 * agreeing > len(names):
            return list(expected)
    wnids = names if len(names) == NUM_CLASSES and all(map(_WORDNET_ID.match, names)) else None
    return imagenet_labels(names, wnids)


def _match_names(data: SuiteData, outputs: Sequence[str]) -> MatchedClasses:
    """By name, where both have the same."""
    labels, names = _names_of(data)
    for spell in (str, str.casefold, lambda name: spaced(name).casefold()):
        output_of = {spell(name): output for output, name in enumerate(outputs)}
        if len(output_of) == len(outputs) and sorted(map(spell, names)) == sorted(output_of):
            class_ids = tuple(output_of[spell(label)] for label in labels)
            assumed = ("classes are called by numbers, which are taken to be the same ones",) * are_numbers(names)
            return MatchedClasses(class_ids, tuple(range(len(outputs))), assumptions=assumed)
    raise ValueError(
        f"the model's {len(outputs):,} classes, such as {outputs[0]!r}, are not the data set's {len(names):,}, such as "
        f"{names[0]!r}"
    )


def _names_of(data: SuiteData) -> tuple[list[str], list[str]]:
    """What the labels of the data set as it was opened are called, and all its classes."""
    labels = data.label_names or list(map(str, range(data.num_classes)))
    if not are_numbers(labels) or data.source == data.row.sample:
        return labels, labels
    try:
        names = list(class_names_beside(data.source).names)
    except (FileNotFoundError, ConnectionError):
        return labels, labels
    if max(map(int, labels)) >= len(names):
        raise ValueError(f"the labels go to {max(map(int, labels))}, and there are names of {len(names)} classes")
    return [names[int(label)] for label in labels], names


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all are written in digits."""
    return all(name.isascii() and name.isdigit() for name in names)
