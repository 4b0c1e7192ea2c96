"""What models are compared by: which test images each way of classifying with their features gets right.

All calls of the classifiers are here. Each gives one answer per test image, since intervals and paired differences are
made of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .few_shot import draw_few, predict_from_few
from .linear_probe import linear_probe
from .neighbours import knn_predict
from .zero_shot import ZeroShotClassifier


TASKS = {
    "linear_probe": "linear probe",
    "few_shot": "few-shot",
    "knn": "k-NN",
    "zero_shot": "zero-shot",
}
SHOTS = (1, 5, 10, 25)  # the ViT paper's
NEIGHBOURS = 20
TOLERANCE = 1e-4  # of the probe's gradient, as scikit-learn's default; less changes hardly any prediction
HELD_OUT = 0.2  # share of the training images that the probe's regularisation is chosen on, where there is no split


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """The images of a comparison as a model's features.

    Args:
        train: features (rows, D) and class ids (rows,) to learn from.
        test: to test on.
        validation: to choose settings on; None: a part of `train`.
        joint: (test rows, E), the test images in the space of the texts; None of a model without texts.
        classifier: of the names of the classes, in that space.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None = None
    joint: Tensor | None = None
    classifier: ZeroShotClassifier | None = None


class Answers(NamedTuple):
    """What one way of classifying got right.

    Args:
        correct: (seeds, test rows) bool.
        settings: what it was done with, for tables.
    """

    correct: np.ndarray
    settings: dict


def usable_shots(labels: Tensor, shots: Sequence[int] | None = None) -> list[int]:
    """The numbers of images per class that the smallest class allows; at least the smallest number.

    Args:
        labels: (rows,) class ids to learn from.
        shots: numbers that are wanted, which are then taken as they are; None tries 1, 5, 10 and 25.
    """
    if shots is not None:
        return sorted(set(shots))
    smallest = int(labels.unique(return_counts=True)[1].min())
    return [count for count in SHOTS if count <= smallest] or [SHOTS[0]]


def classify(images: EncodedImages, shots: Sequence[int], seeds: Sequence[int]) -> dict[str, Answers]:
    """Classify the test images in every way that there is.

    Args:
        images: of one model.
        shots: of few-shot classification, in rising order; the score that stands for it is that of the most.
        seeds: of the draws of the few.

    Returns:
        By the names of `TASKS`, and by "few_shot_1" and so on for every number of shots. Zero-shot only where there are
        texts.
    """
    found = {"linear_probe": _linear_probe(images), "knn": _knn(images)}
    for count in shots:
        found[f"few_shot_{count}"] = _few_shot(images, count, seeds)
    found["few_shot"] = found[f"few_shot_{max(shots)}"]
    if images.classifier is not None:
        predicted = images.classifier(images.joint).argmax(dim=1)
        found["zero_shot"] = _answers(predicted[None], images, templates=list(images.classifier.templates))
    return found


def _few_shot(images: EncodedImages, shots: int, seeds: Sequence[int]) -> Answers:
    features, labels = images.train
    draws = [draw_few(labels, shots, seed) for seed in seeds]
    predicted = [predict_from_few(features[few], labels[few], images.test[0]) for few in draws]
    return _answers(torch.stack(predicted), images, shots=shots, method="ridge", seeds=list(seeds))


def _knn(images: EncodedImages) -> Answers:
    k = min(NEIGHBOURS, len(images.train[0]))
    return _answers(knn_predict(*images.train, images.test[0], k=k)[None], images, k=k)


def _linear_probe(images: EncodedImages) -> Answers:
    """Logistic regression; its regularisation is chosen without the test images.

    Images of a validation split join those to learn from once it is chosen.
    """
    largest = int(images.train[1].unique(return_counts=True)[1].max())
    if images.validation is not None:
        choice = {"validation": images.validation}
    elif largest == 1:
        choice = {"C": 1.0}  # nothing to choose it on
    else:
        choice = {"validation": HELD_OUT if largest > 2 else 0.5}
    found = linear_probe(*images.train, *images.test, **choice, tol=TOLERANCE)
    scores = images.test[0].double() @ found.coefficients.T + found.intercept
    predicted = torch.tensor(found.classes)[scores.argmax(dim=1)]
    return _answers(predicted[None], images, C=found.C)


def _answers(predicted: Tensor, images: EncodedImages, **settings) -> Answers:
    """Answers from class ids (seeds, test rows)."""
    return Answers((predicted.cpu() == images.test[1]).numpy(), settings)
