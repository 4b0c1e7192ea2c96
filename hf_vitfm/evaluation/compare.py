"""Which checkpoint suits some images: models compared by what simple classifiers reach with their features.

Every accuracy has a 95 % interval, and a paired difference to the best with one: by a bootstrap over the test images,
the same resamples for all models, combined with the seeds where a task draws its images (`intervals`). The best is the
best on these test images: of many alike, its accuracy is the most flattered by chance.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..conversion.hide_tokens import hide_tokens
from ..data.decode import BadImageError
from ..data.order import ImageView
from ..models.modeling_losses import IGNORE_INDEX
from .class_names import ClassNames
from .compare_data import ComparisonData, comparison_prompts, count_repeated
from .compare_tasks import TASKS, Answers, EncodedImages, classify, usable_shots
from .encoder_cost import EncoderCost, measure_encoder
from .features import extract_features
from .intervals import accuracy_interval, bootstrap_accuracies, percentile_interval
from .peak_memory import PeakMemory
from .suite_models import SuiteModel, load_suite_model, name_models
from .suite_tasks import FeatureOptions, probe_pooling
from .zero_shot import ZeroShotClassifier


logger = logging.getLogger(__name__)

METHOD = (
    "95 % intervals: bootstrap over the test images (2,000 resamples, the same for all models), of few-shot also over the "
    "seeds; Wilson's where no image or every image is right"
)
BEST, CLOSE, BELOW = "best", "close", "below"


@dataclass(frozen=True)
class CompareOptions:
    """How models are compared.

    Args:
        by: the name in `TASKS` of the score that decides.
        shots: images per class of few-shot classification; None: of 1, 5, 10 and 25 those that the smallest class has.
        seeds: of the draws of the few.
        templates: of zero-shot classification, each with one "{}"; None: as `comparison_prompts` finds them.
        features: how features are computed, and where they are kept.
        device: to compute on.
    """

    by: str = "linear_probe"
    shots: Sequence[int] | None = None
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    templates: Sequence[str] | None = None
    features: FeatureOptions = field(default_factory=FeatureOptions)
    device: Any = "cpu"


@dataclass(frozen=True)
class Score:
    """An accuracy and its difference to that of the best model, all in 0..1 or -1..0.

    Args:
        accuracy: the mean over the seeds.
        low, high: of its interval.
        difference: to the best accuracy of this task.
        difference_low, difference_high: of its interval; it holds 0 where the two are not distinguishable.
        standing: "best", "close" (not distinguishable from the best) or "below".
        settings: what it was done with.
    """

    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    standing: str
    settings: dict


@dataclass(frozen=True)
class ComparedModel:
    """What was found of one model.

    Args:
        name: in tables.
        source: what it was loaded from.
        image_size: (height, width) of the images that it is given.
        pooling: what stands for an image, as of `extract_features`.
        cost: of its image encoder.
        scores: by the names of `TASKS`, and "few_shot_1" and so on.
        seconds: that loading, measuring and computing or reading features took.
    """

    name: str
    source: str
    image_size: tuple[int, int]
    pooling: str
    cost: EncoderCost
    scores: dict[str, Score]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        data: the images.
        by: the score that decides.
        models: the best first.
        failures: models that could not be compared, with the reason.
        skipped: names of images that could not be read or fed to a model, by split; no model is scored on them.
        prompts: of zero-shot classification.
        unlearnt: classes of test images without any image to learn from.
        repeated: test images that are among those to learn from too, byte for byte.
    """

    data: ComparisonData
    by: str
    models: list[ComparedModel]
    failures: dict[str, str]
    skipped: dict[str, list[str]]
    prompts: ClassNames
    unlearnt: list[str]
    repeated: int = 0

    @property
    def winner(self) -> ComparedModel:
        """The best model by the score that decides."""
        return self.models[0]

    @property
    def rivals(self) -> list[ComparedModel]:
        """Models that are not distinguishable from the winner."""
        return [
            model for model in self.models[1:] if self.by in model.scores and model.scores[self.by].standing == CLOSE
        ]


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A model's part before anything is classified."""

    model: ComparedModel
    features: dict[str, tuple[Tensor, Tensor]]
    joint: Tensor | None
    classifier: ZeroShotClassifier | None


def compare_models(
    sources: Sequence[str],
    data: ComparisonData,
    options: CompareOptions,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compare models on labelled images.

    A model that cannot be loaded or gives no features is named with the reason, and the others go on. Images that cannot
    be read are left out, for all models alike.

    Args:
        sources: what `load_suite_model` loads.
        data: the images.
        options: how.
        report: takes lines about the progress.

    Raises:
        ValueError: if an option is outside its range, all models failed, or none has the score that decides.
    """
    _check(sources, options)
    prompts = comparison_prompts(data, options.templates)
    encoded, failures = [], {}
    for source, name in zip(sources, name_models(sources), strict=True):
        try:
            found = _encode(source, name, data, prompts, options)
        except Exception as error:  # whatever is wrong with one model, the others are compared
            failures[name] = _reason(error)
            report(f"{name}: failed: {failures[name]}")
            continue
        encoded.append(found)
        report(
            f"{name}: {found.model.cost.images_per_second:.3g} images per second, {found.model.seconds:.1f} s in all"
        )
    _check_any(encoded, failures)
    kept, skipped = _readable_rows(encoded, data)
    images = [_select(model, kept) for model in encoded]
    shots = usable_shots(images[0].train[1], options.shots)
    classified, answers = [], []
    for found, own in zip(encoded, images, strict=True):
        name = found.model.name
        try:
            answers.append(classify(own, shots, options.seeds))
        except Exception as error:  # as above: a solver may not cope with the features of one model
            failures[name] = _reason(error)
            report(f"{name}: failed: {failures[name]}")
            continue
        classified.append(found.model)
        report(f"{name}: classified")
    _check_any(classified, failures)
    models = [replace(model, scores=own) for model, own in zip(classified, _score(answers), strict=True)]
    if not any(options.by in model.scores for model in models):
        raise ValueError(f"No model has a score for {TASKS[options.by]}: none of them embeds texts. Choose another.")
    models.sort(key=lambda model: _rank(model, options.by))
    learnt, tested = (set(labels.tolist()) for _, labels in (images[0].train, images[0].test))
    unlearnt = [data.names[label] for label in sorted(tested - learnt)]
    return Comparison(data, options.by, models, failures, skipped, prompts, unlearnt, count_repeated(data))


def _reason(error: Exception) -> str:
    logger.debug("a model failed", exc_info=error)
    return hide_tokens(" ".join(str(error).split())[:500]) or type(error).__name__


def _check_any(models: Sequence, failures: dict[str, str]) -> None:
    if not models:
        raise ValueError("No model could be compared. " + " ".join(f"{name}: {why}" for name, why in failures.items()))


def _check(sources: Sequence[str], options: CompareOptions) -> None:
    if not sources or len(set(sources)) < len(sources):
        raise ValueError(f"`sources` must be models, at least one and each once; got {', '.join(sources) or 'none'}.")
    if options.by not in TASKS:
        raise ValueError(f"`by` must be one of {', '.join(TASKS)}; got {options.by!r}.")
    if not options.seeds:
        raise ValueError("`seeds` must hold at least one number; got none.")
    if options.shots is not None and min(options.shots, default=0) < 1:
        raise ValueError(f"`shots` must hold numbers of images of at least 1; got {options.shots!r}.")


def _encode(source: str, name: str, data: ComparisonData, prompts: ClassNames, options: CompareOptions) -> _Encoded:
    """Load a model, measure it, and compute the features of all images or read them."""
    start = time.perf_counter()
    memory = PeakMemory(torch.device(options.device))
    loaded = load_suite_model(source, name, device=options.device)
    pooling = probe_pooling(loaded.model)
    pixels = _first_images(loaded, data, options.features.batch_size)
    cost = measure_encoder(loaded.model, pixels, pooling, memory)
    features = {part: _features(loaded, rows, pooling, options) for part, rows in data.parts.items()}
    joint = classifier = None
    if loaded.has_texts:
        classifier = ZeroShotClassifier.build(loaded.model, loaded.tokenizer, prompts.names, prompts.templates)
        joint, _ = _features(loaded, data.test, "projected", options)
    seconds = time.perf_counter() - start
    model = ComparedModel(name, str(source), tuple(pixels.shape[-2:]), pooling, cost, {}, seconds)
    return _Encoded(model, features, joint, classifier)


def _features(loaded: SuiteModel, rows: Any, pooling: str, options: CompareOptions) -> tuple[Tensor, Tensor]:
    features, labels = extract_features(
        loaded.model,
        rows,
        loaded.transform,
        options.features.batch_size,
        pooling,
        num_workers=options.features.num_workers,
        cache_dir=options.features.cache_dir,
        on_bad_image="skip",
    )
    if not features.isfinite().all():
        raise ValueError("Its features hold NaN or infinity. Check its weights and preprocessing.")
    return features, labels


def _first_images(loaded: SuiteModel, data: ComparisonData, count: int) -> Tensor:
    """The first test images that can be read, as the model takes them: a batch to time; repeated if they are few."""
    view, pixels = ImageView(data.test, loaded.transform), []
    for index in range(len(view)):
        try:
            pixels.append(view[index]["pixel_values"])
        except BadImageError:
            continue
        if len(pixels) == count:
            break
    if not pixels:
        raise BadImageError(f"None of the {len(view)} test images can be read.")
    return torch.stack([pixels[number % len(pixels)] for number in range(count)])


def _readable_rows(
    encoded: Sequence[_Encoded], data: ComparisonData
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The rows that every model could read, and the names of the others, by split."""
    kept, skipped = {}, {}
    for part, rows in data.parts.items():
        is_known = torch.stack([found.features[part][1] != IGNORE_INDEX for found in encoded]).all(dim=0)
        view = ImageView(rows, None)
        bad = [view.name(index) for index in (~is_known).nonzero().flatten().tolist()]
        if bad:
            skipped[part] = bad
        if not is_known.any():
            raise ValueError(f"None of the {len(rows)} images of {part} can be read by all models.")
        kept[part] = is_known
    return kept, skipped


def _select(found: _Encoded, kept: dict[str, Tensor]) -> EncodedImages:
    parts = {part: (features[kept[part]], labels[kept[part]]) for part, (features, labels) in found.features.items()}
    joint = None if found.joint is None else found.joint[kept["test"]]
    return EncodedImages(parts["train"], parts["test"], parts.get("validation"), joint, found.classifier)


def _score(answers: Sequence[dict[str, Answers]]) -> list[dict[str, Score]]:
    """Accuracies with their intervals and differences, for every model."""
    correct = {(number, task): own[task].correct for number, own in enumerate(answers) for task in own}
    resampled = bootstrap_accuracies(correct)
    accuracies = {key: float(rows.mean()) for key, rows in correct.items()}
    scores: list[dict[str, Score]] = [{} for _ in answers]
    for (number, task), accuracy in accuracies.items():
        best = max((key for key in accuracies if key[1] == task), key=accuracies.get)
        low, high = accuracy_interval(accuracy, resampled[number, task], correct[number, task].shape[1])
        ends = percentile_interval(resampled[number, task] - resampled[best])
        standing = BEST if best[0] == number else CLOSE if ends[1] >= 0 else BELOW
        scores[number][task] = Score(
            accuracy, low, high, accuracy - accuracies[best], *ends, standing, answers[number][task].settings
        )
    return scores


def _rank(model: ComparedModel, by: str) -> tuple:
    """The best first; models without the score last; of equal ones the first that was named."""
    return (by not in model.scores, -model.scores[by].accuracy if by in model.scores else 0.0)
