"""Classification without a training set: images are compared with texts that name the classes (Radford et al. 2021, 3.1).

Shapes: K classes, E width of the space that images and texts share.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ..cards.hub_names import is_hub_id
from ..models.modeling_losses import IGNORE_INDEX
from .feature_cache import CacheFile, precision_of, recall, write_whole
from .features import extract_features
from .fingerprint import fingerprint_model, fingerprint_values
from .metrics import PREDICTION, classification_metrics, confusion_matrix, summarize_logits
from .prompts import embed_prompts, repeated_names, tokenize_prompts, write_prompts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOGIT_SCALE = 100.0  # the most that CLIP trains with; any other ranks the classes alike
_CHUNK = 1 << 24  # logits held at a time
_IMAGE_PARTS = ("vision_model.", "visual_projection.", "logit_scale", "logit_bias")  # what texts do not depend on
_NOTES = "zero_shot_classifier"  # name of the metadata in a file


@dataclass(frozen=True, eq=False)
class ZeroShotClassifier:
    """A linear classifier of image embeddings, made of embeddings of texts.

    Args:
        weights: (E, K), columns of unit length, in float32 (float64 of a float64 model).
        classnames: one per column.
        templates: texts with "{}" for the name; a column is their mean.
        provenance: what it was made of: `source`, where names and templates come from, if that was said; `model`, its
            class and, from the Hub, its id; `model_fingerprint` of the text tower's weights; `tokenizer`, likewise; and
            `tokens_fingerprint` of what that made of the prompts.
    """

    weights: Tensor
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def build(  # noqa: PLR0913 - the public signature
        cls,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        classnames: Sequence[str],
        templates: Sequence[str],
        batch_size: int = 256,
        group: dist.ProcessGroup | None = None,
        *,
        cache_dir: str | Path | None = None,
        source: str | None = None,
    ) -> "ZeroShotClassifier":
        """Embed every class name in every template; a class is the mean of its embeddings, all of unit length.

        Prompts are tokenised once, equal ones embedded once, and no padding is computed (`embed_prompts`).

        Args:
            model: `CLIPModel` or any other with `get_text_features`. It is used on its device and in its dtype, in
                evaluation mode, and left as it was.
            tokenizer: of the model. Prompts that are longer than the text tower takes are cut; their end token stays.
            classnames: in the order of the class ids.
            templates: each with one "{}" for the name.
            batch_size: prompts per forward pass.
            group: processes that share the prompts, each of which calls this and gets the whole classifier; None = this
                process alone.
            cache_dir: folder that keeps the weights under a key of the text tower, the prompts' tokens and classes, the
                precision and the versions of the libraries: the same request is then read from there.
            source: where names and templates come from. With it or `cache_dir` the classifier's provenance has
                fingerprints of the text tower's weights and of the tokens too.

        Raises:
            ValueError: if a name or a template is not as it should be (`write_prompts`), the model has no text features,
                the tokenizer does not fit it, or an embedding is not finite.
        """
        prompts = write_prompts(classnames, templates)
        inputs, owners = tokenize_prompts(model, tokenizer, list(prompts)), list(prompts.values())
        provenance = _provenance(model, tokenizer, source)
        if (
            source is not None or cache_dir is not None
        ):  # not in training: to gather and hash the weights takes a while
            provenance["model_fingerprint"] = fingerprint_model(model, _IMAGE_PARTS)
            provenance["tokens_fingerprint"] = fingerprint_values(inputs)
        weight = next(model.parameters())
        file = None
        if cache_dir is not None:
            made_of = {name: text for name, text in provenance.items() if name.endswith("fingerprint")}
            made_of |= {"owners": fingerprint_values(owners), "precision": precision_of(weight.device, weight.dtype)}
            file = CacheFile(cache_dir, "classifier", made_of)
        compute = partial(_average, model, inputs, owners, classnames, batch_size, group)
        weights = recall(file, compute, weight.device, group)["weights"].to(weight.device)
        return cls(weights, tuple(classnames), tuple(templates), provenance)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with the weights, the names, the templates and the provenance.

        Args:
            path: of the file; what is there is replaced. Folders are made.

        Returns:
            The path.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {name: getattr(self, name) for name in ("classnames", "templates", "provenance")}
        write_whole(path, {"weights": self.weights.detach().cpu().contiguous()}, {_NOTES: json.dumps(fields)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "ZeroShotClassifier":
        """Read what `save` wrote; the weights come on the CPU.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no classifier, or damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"file {path} does not exist.")
        try:
            with safe_open(path, framework="pt") as file:
                fields = json.loads(file.metadata()[_NOTES])
                weights = file.get_tensor("weights").clone()
            names, templates, provenance = (fields[name] for name in ("classnames", "templates", "provenance"))
        except (KeyError, SafetensorError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no zero-shot classifier, or damaged: {error!r}. Write one by `ZeroShotClassifier.save`."
            ) from error
        if weights.ndim != 2 or weights.shape[1] != len(names):
            raise ValueError(f"{path} is damaged: weights of {tuple(weights.shape)} for {len(names)} classes.")
        return cls(weights, tuple(names), tuple(templates), provenance)

    def __call__(self, image_embeds: Tensor) -> Tensor:
        """Classify embeddings of images.

        Args:
            image_embeds: (images, E) of any length, on any device.

        Returns:
            (images, K) 100 x cosine, on that device; computed in float32 at least, under autocast too. Classes of the same
            name have exactly the same.

        Raises:
            ValueError: if the width is another one.
        """
        if image_embeds.ndim != 2 or image_embeds.shape[1] != len(self.weights):
            raise ValueError(
                f"`image_embeds` must be (images, {len(self.weights)}), as the model that the classifier was built with "
                f"embeds images; got {tuple(image_embeds.shape)}."
            )
        dtype, device = torch.promote_types(image_embeds.dtype, self.weights.dtype), image_embeds.device
        with torch.autocast(device.type, enabled=False):
            logits = LOGIT_SCALE * F.normalize(image_embeds.to(dtype), dim=1) @ self.weights.to(device, dtype)
        repeats = repeated_names(self.classnames)
        if repeats:
            # Equal columns may be rounded differently, by their place; as it is, the first of them wins every tie.
            logits[:, list(repeats)] = logits[:, list(repeats.values())]
        return logits


def _average(
    model: nn.Module,
    inputs: dict[str, Tensor],
    owners: Sequence[Sequence[int]],
    classnames: Sequence[str],
    batch_size: int,
    group: dist.ProcessGroup | None,
) -> dict[str, Tensor]:
    """The mean direction of every class's prompts, `weights` (E, K); `owners` are the classes of each prompt."""
    sums, dtype = None, torch.float32
    for rows, embeds in embed_prompts(model, inputs, batch_size, group):
        dtype, device = torch.promote_types(dtype, embeds.dtype), embeds.device
        # Float64 on the CPU: neither the order of batches nor the number of processes shows in the sum.
        embeds = F.normalize(embeds.cpu().double(), dim=1)
        if sums is None:
            sums = embeds.new_zeros(len(classnames), embeds.shape[1])
        places = [place for place, row in enumerate(rows) for _ in owners[row]]
        numbers = [number for row in rows for number in owners[row]]
        sums.index_add_(0, torch.tensor(numbers, dtype=torch.int64), embeds[places])
    if group is not None:
        sums = sums.to(device)
        dist.all_reduce(sums, group=group)
    bad = (~sums.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"The texts of {len(bad)} classes have embeddings that are NaN or infinite, the first {classnames[bad[0]]!r}. "
            "Check the model and the dtype it ran in."
        )
    return {"weights": F.normalize(sums, dim=1).T.contiguous().to(dtype)}


def _provenance(model: nn.Module, tokenizer: "PreTrainedTokenizerBase", source: str | None) -> dict[str, str]:
    given = {} if source is None else {"source": source}
    return given | {
        "model": _name(model, getattr(model.config, "name_or_path", None)),
        "tokenizer": _name(tokenizer, getattr(tokenizer, "name_or_path", None)),
    }


def _name(thing: Any, origin: str | None) -> str:
    """Class and, from the Hub, repository; never a path, which is the business of one machine."""
    return (
        f"{type(thing).__name__} {origin}" if is_hub_id(origin) and not Path(origin).exists() else type(thing).__name__
    )


def evaluate_zero_shot(  # noqa: PLR0913 - the public signature
    model: nn.Module,
    dataset: Sequence[dict],
    classifier: ZeroShotClassifier,
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    *,
    dtype: torch.dtype | None = None,
    num_workers: int = 0,
    on_bad_image: str = "error",
    cache_dir: str | Path | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """Classify labelled images by the names of their classes.

    Args:
        model: that the classifier was built with; it has `get_image_features`. It is used on its device, in evaluation
            mode, and left as it was.
        dataset: rows with `image` and `label`, as `load_images` gives them, or with `pixel_values` and `label`.
        classifier: its classes are those of the labels, in the same order.
        transform: image -> float tensor (channels, height, width), such as `build_transform` makes of the model's image
            processor. Not needed for rows with `pixel_values`.
        batch_size: images per forward pass.
        dtype: of the images' embedding, as `extract_features` has it.
        num_workers: processes that decode images; 0 decodes in this one.
        on_bad_image: "error", or "skip": images that cannot be decoded are not counted, and a warning says so.
        cache_dir: folder that keeps the embeddings, as `extract_features` has it.
        group: processes that share the images, each of which calls this and gets the same result; None: this process
            computes all.

    Returns:
        As `zero_shot_metrics`. For the accuracy of every class see `zero_shot_report`.

    Raises:
        ValueError: if there are no rows, a label is none of the classes, or model and transform do not fit.
        BadImageError: if an image cannot be decoded; it names the row.
    """
    options = {"dtype": dtype, "num_workers": num_workers, "on_bad_image": on_bad_image}
    embeds, labels = extract_features(
        model, dataset, transform, batch_size, "projected", cache_dir=cache_dir, group=group, **options
    )
    return zero_shot_metrics(classifier, embeds, labels)


def zero_shot_metrics(classifier: ZeroShotClassifier, image_embeds: Tensor, labels: Tensor) -> dict[str, float]:
    """How well embeddings of images are classified; arguments and errors as `zero_shot_report` has them.

    Returns:
        `top1`, `top5` (1 where there are no more than 5 classes) and `mean_per_class` (the mean of the top-1 accuracies of
        the classes that occur), in 0..1.
    """
    return zero_shot_report(classifier, image_embeds, labels).metrics


@dataclass(frozen=True, eq=False)
class ZeroShotReport:
    """How well images were classified, and which classes were taken for which.

    Args:
        metrics: as `zero_shot_metrics`.
        per_class: name -> share of its images that were classified right, None for a class without images. Names that
            occur twice carry their index.
        confusion: (K, K) int64; the row is the true class, the column the predicted one.
    """

    metrics: dict[str, float]
    per_class: dict[str, float | None]
    confusion: np.ndarray


@torch.no_grad()
def zero_shot_report(classifier: ZeroShotClassifier, image_embeds: Tensor, labels: Tensor) -> ZeroShotReport:
    """Classify embeddings of images, which `extract_features` gives with `pooling="projected"`.

    Args:
        classifier: of K classes.
        image_embeds: (images, E).
        labels: (images,) class ids in 0..K-1; images with -100 are left out.

    Raises:
        ValueError: if there is not one label for each image, a label is none of the classes, no image has one, or the
            width of the embeddings is another one.
    """
    num_classes = len(classifier.classnames)
    image_embeds, labels = _labelled(image_embeds, labels, num_classes)
    size, device = max(1, _CHUNK // num_classes), classifier.weights.device
    rows = torch.cat(
        [
            summarize_logits(classifier(embeds.to(device)), known.to(device))
            for embeds, known in zip(image_embeds.split(size), labels.split(size), strict=True)
        ]
    )
    found = classification_metrics(rows, labels, classifier.classnames)
    metrics = {"top1": found["top1"], "top5": found.get("top5", 1.0), "mean_per_class": found["mean_per_class"]}
    confusion = confusion_matrix(rows[:, PREDICTION].long(), labels, num_classes)
    return ZeroShotReport(metrics, found["per_class"], confusion)


def _labelled(image_embeds: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The images that have a label, and their labels."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be one class id per image; got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if len(labels) != len(image_embeds):
        raise ValueError(
            f"`labels` must be one class id per image; got {len(labels)} labels for {len(image_embeds)} images."
        )
    is_known = labels != IGNORE_INDEX
    image_embeds, labels = image_embeds[is_known], labels[is_known]
    if not len(labels):
        raise ValueError("No image has a label; at least one is needed. Give rows with `label`, a class id.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Labels must be class ids in 0..{num_classes - 1}, since there are {num_classes} class names; got "
            f"{labels.min().item()} to {labels.max().item()}. Build the classifier with a name for each class of the data, "
            "in the order of the ids."
        )
    return image_embeds, labels
