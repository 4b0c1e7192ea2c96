"""What is measured on a data set of a suite, one function per task; all calls of features and probes are here."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.modeling_losses import IGNORE_INDEX
from .class_names import ClassNames, check_label_names
from .classification import Classified, classify_images, output_names
from .features import extract_features
from .few_shot import few_shot
from .imagenet import image_files, read_real_labels, real_accuracy
from .linear_probe import METRICS, linear_probe
from .neighbours import knn_accuracy
from .predict import problem_type
from .suite_classes import MatchedClasses, match_classes
from .suite_data import SuiteData
from .suite_models import SuiteModel
from .zero_shot import ZeroShotClassifier, zero_shot_metrics


NEIGHBOURS = 20
SHOTS, SEEDS, FEW_SHOT_METHOD = (1, 2, 4, 8, 16), (0, 1, 2), "logistic"  # CLIP, Figure 6
HELD_OUT = 0.2  # share of the training images that the probe's regularisation is chosen on, where there is no split


class NotApplicable(Exception):
    """A task that a model or data set does not have; the message is the reason, for a table."""


@dataclass(frozen=True)
class FeatureOptions:
    """How features are computed.

    Args:
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this one.
        cache_dir: where features are kept between runs; None keeps none.
    """

    batch_size: int = 64
    num_workers: int = 0
    cache_dir: str | os.PathLike | None = None


@dataclass
class Bench:
    """One model on one data set; features are computed once for all tasks.

    Args:
        model: with its preprocessing.
        data: an opened data set.
        options: of the features.
        prompts: the names of the classes; None where nothing asks for them.
        classified: what the model's head says of the images that it was last asked about, under a key of them; one
            dictionary for all data sets of a model lets those that share their images share the pass.
    """

    model: SuiteModel
    data: SuiteData
    options: FeatureOptions
    prompts: ClassNames | None = None
    classified: dict[tuple, Classified] = field(default_factory=dict)
    _known: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def features(self, split: str, pooling: str) -> tuple[Tensor, Tensor]:
        """Features (rows, D) and labels of a split."""
        if (split, pooling) not in self._known:
            self._known[split, pooling] = extract_features(
                self.model.model,
                self.data.splits[split],
                self.model.transform,
                self.options.batch_size,
                pooling,
                num_workers=self.options.num_workers,
                cache_dir=self.options.cache_dir,
            )
        return self._known[split, pooling]

    def probe_features(self, *splits: str) -> list[Tensor]:
        """Features and labels of splits, one after the other, as probes take them."""
        return [part for split in splits for part in self.features(split, probe_pooling(self.model.model))]

    def classify(self, matched: MatchedClasses) -> Classified:
        """What the model's head says of the test images."""
        key = (self.data.fingerprints["test"], matched.class_ids, matched.outputs)
        if key not in self.classified:
            self.classified.clear()
            self.classified[key] = classify_images(
                self.model.model,
                self.data.splits["test"],
                self.model.transform,
                self.options.batch_size,
                class_ids=matched.class_ids,
                restrict_to=matched.outputs,
                num_workers=self.options.num_workers,
            )
        return self.classified[key]


@dataclass(frozen=True)
class Measured:
    """What a task found.

    Args:
        score: the number that stands for it, in 0..1.
        metric: what the score is.
        metrics: all numbers.
        assumptions: what was taken for granted that the numbers depend on.
    """

    score: float
    metric: str
    metrics: dict[str, Any]
    assumptions: tuple[str, ...] = ()


def probe_pooling(model: Any) -> str:
    """What stands for an image: of image-text models the features before the projection (CLIP, appendix A.3)."""
    if hasattr(model, "get_image_features"):
        return "pre_projection"
    config = getattr(model, "base_model", model).config
    has_token = getattr(config, "patch_size", None) is not None and getattr(config, "use_class_token", True)
    # Swin has patches and merges them, a network of convolutions has none; both are averaged.
    merges = hasattr(config, "depths")
    return "cls" if has_token and not merges and getattr(config, "pooling", "cls") != "mean" else "mean"


def zero_shot(bench: Bench) -> Measured:
    """Classify by the names of the classes."""
    row, names = bench.data.row, bench.prompts
    if not bench.model.has_texts:
        raise NotApplicable("the model embeds no texts")
    if not row.reassessed and len(names.names) != bench.data.num_classes:
        raise ValueError(
            f"{row.name} has {bench.data.num_classes} classes and {len(names.names)} names ({names.source}); there must "
            "be one name per class."
        )
    if not row.reassessed:
        check_label_names(bench.data.label_names, names.names)
    model, cache = bench.model, bench.options.cache_dir
    classifier = ZeroShotClassifier.build(
        model.model, model.tokenizer, names.names, names.templates, cache_dir=cache, source=names.source
    )
    embeds, labels = bench.features("test", "projected")
    if row.reassessed:
        metrics = real_accuracy(classifier(embeds), *reassessed_labels(bench.data))
        return Measured(metrics["real_top1"], row.metric, metrics)
    score = METRICS[row.metric](classifier(embeds), labels)
    if row.task == "multi_label":
        return Measured(score, row.metric, {row.metric: score})
    found = zero_shot_metrics(classifier, embeds, labels)
    return Measured(score, row.metric, {name: found[name] for name in ("top1", "top5", "mean_per_class")})


def reassessed_labels(data: SuiteData) -> tuple[list[list[int]], list[str]]:
    """The labels that replace a data set's own, and the names of its files, which say whose they are."""
    real = read_real_labels(Path(data.source) / data.row.reassessed)
    return real, [Path(file).name for file in image_files(data.splits["test"])]


def classification(bench: Bench) -> Measured:
    """Classify by the model's own head, where its classes are those of the data set."""
    row, model = bench.data.row, bench.model
    if not model.has_head:
        raise NotApplicable("the model has no head that classifies")
    _check_single(bench)
    kind = problem_type(model.model.config)
    if kind != "single_label_classification":
        raise NotApplicable(f"the model's head is for {kind}")
    try:
        matched = match_classes(bench.data, output_names(model.model.config))
    except ValueError as error:
        raise NotApplicable(str(error)) from error
    found = bench.classify(matched)
    metrics = {name: value for name, value in found.metrics().items() if name != "per_class"}
    if row.reassessed:
        classes = torch.tensor([*matched.classes, IGNORE_INDEX])[found.predictions]
        scored = real_accuracy(classes, *reassessed_labels(bench.data))
        metrics |= {"real_top1": scored["real_top1"], "real_rows": scored["rows"], "real_left_out": scored["left_out"]}
        return Measured(metrics["real_top1"], row.metric, metrics, matched.assumptions)
    scores = {
        "accuracy": metrics["top1"],
        "mean_per_class": metrics["mean_per_class"],
        "mean_top1_top5": (metrics["top1"] + metrics.get("top5", 1.0)) / 2,
    }
    if row.metric not in scores:
        raise NotApplicable(f"the metric {row.metric} is not made of classes")
    return Measured(scores[row.metric], row.metric, metrics, matched.assumptions)


def linear_probe_task(bench: Bench) -> Measured:
    """Logistic regression on frozen features, its regularisation chosen on held-out images (CLIP, appendix A.3)."""
    _check_train(bench)
    train, test = bench.probe_features("train"), bench.probe_features("test")
    validation = tuple(bench.probe_features("validation")) if "validation" in bench.data.splits else HELD_OUT
    found = linear_probe(*train, *test, validation=validation, metric=bench.data.row.metric)
    return Measured(found.score, bench.data.row.metric, {"accuracy": found.accuracy, "C": found.C})


def few_shot_task(bench: Bench) -> Measured:
    """Logistic regression on a few images of every class; the score is that of the most."""
    _check_train(bench)
    _check_single(bench)
    found = few_shot(*bench.probe_features("train", "test"), shots=SHOTS, seeds=SEEDS, method=FEW_SHOT_METHOD)
    smallest = int(bench.probe_features("train")[1].unique(return_counts=True)[1].min())
    means = {shots: sum(values) / len(values) for shots, values in found.items()}
    return Measured(means[max(means)], "accuracy", {"shots": found, "smallest_class": smallest})


def knn_task(bench: Bench) -> Measured:
    """Cosine neighbours among the training images."""
    _check_train(bench)
    _check_single(bench)
    train, test = bench.probe_features("train"), bench.probe_features("test")
    k = min(NEIGHBOURS, len(train[0]))
    return Measured(accuracy := knn_accuracy(*train, *test, k=k), "accuracy", {"top1": accuracy, "k": k})


TASKS: Mapping[str, Callable[[Bench], Measured]] = {
    "zero_shot": zero_shot,
    "classification": classification,
    "linear_probe": linear_probe_task,
    "few_shot": few_shot_task,
    "knn": knn_task,
}

# These train nothing.
TEST_ONLY = ("zero_shot", "classification")

# What the key of a stored result has of a task's own settings.
SETTINGS = {
    "zero_shot": {},
    "classification": {},
    "linear_probe": {"held_out": HELD_OUT},
    "few_shot": {"shots": SHOTS, "seeds": SEEDS, "method": FEW_SHOT_METHOD},
    "knn": {"k": NEIGHBOURS},
}


def _check_train(bench: Bench) -> None:
    if "train" not in bench.data.splits:
        raise NotApplicable("there are no training images")
    if bench.data.row.reassessed:
        raise NotApplicable("these labels are for images to test on")


def _check_single(bench: Bench) -> None:
    if bench.data.row.task != "single_label":
        raise NotApplicable("several labels per image")
