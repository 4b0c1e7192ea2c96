"""Classification without a training set: images are compared with texts that name the classes (Radford et al. 2021, 3.1).

Shapes: K classes, E width of the space that images and texts share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.modeling_losses import IGNORE_INDEX
from .features import extract_features
from .metrics import classification_metrics, summarize_logits
from .prompts import embed_prompts, repeated_names, write_prompts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOGIT_SCALE = 100.0  # the most that CLIP trains with; any other ranks the classes alike
_CHUNK = 1 << 24  # logits held at a time


@dataclass(frozen=True, eq=False)
class ZeroShotClassifier:
    """A linear classifier of image embeddings, made of embeddings of texts.

    Args:
        weights: (E, K), columns of unit length, in float32 (float64 of a float64 model).
        classnames: one per column.
        templates: texts with "{}" for the name; a column is their mean.
    """

    weights: Tensor
    classnames: tuple[str, ...]
    templates: tuple[str, ...]

    @classmethod
    def build(
        cls,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        classnames: Sequence[str],
        templates: Sequence[str],
        batch_size: int = 256,
        group: dist.ProcessGroup | None = None,
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

        Raises:
            ValueError: if a name or a template is not as it should be (`write_prompts`), the model has no text features,
                the tokenizer does not fit it, or an embedding is not finite.
        """
        prompts = write_prompts(classnames, templates)
        owners = list(prompts.values())
        sums, dtype = None, torch.float32
        for rows, embeds in embed_prompts(model, tokenizer, list(prompts), batch_size, group):
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
        weights = F.normalize(sums, dim=1).T.contiguous()
        return cls(weights.to(device, dtype), tuple(classnames), tuple(templates))

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


def evaluate_zero_shot(
    model: nn.Module,
    dataset: Sequence[dict],
    classifier: ZeroShotClassifier,
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    *,
    num_workers: int = 0,
) -> dict[str, float]:
    """Classify labelled images by the names of their classes.

    Where several processes run, each of them that calls this computes all rows: nothing is exchanged.

    Args:
        model: that the classifier was built with; it has `get_image_features`. It is used on its device and in its dtype,
            in evaluation mode, and left as it was.
        dataset: rows with `image` and `label`, as `load_images` gives them, or with `pixel_values` and `label`.
        classifier: its classes are those of the labels, in the same order.
        transform: image -> float tensor (channels, height, width), such as `build_transform` makes of the model's image
            processor. Not needed for rows with `pixel_values`.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this one.

    Returns:
        As `zero_shot_metrics`.

    Raises:
        ValueError: if there are no rows, a label is none of the classes, or model and transform do not fit.
        BadImageError: if an image cannot be decoded; it names the row.
    """
    embeds, labels = extract_features(model, dataset, transform, batch_size, "projected", num_workers=num_workers)
    return zero_shot_metrics(classifier, embeds, labels)


@torch.no_grad()
def zero_shot_metrics(classifier: ZeroShotClassifier, image_embeds: Tensor, labels: Tensor) -> dict[str, float]:
    """How well embeddings of images are classified.

    Args:
        classifier: of K classes.
        image_embeds: (images, E).
        labels: (images,) class ids in 0..K-1; images with -100 are left out.

    Returns:
        `top1`, `top5` (1 where there are no more than 5 classes) and `mean_per_class` (the mean of the top-1 accuracies of
        the classes that occur), in 0..1.

    Raises:
        ValueError: if a label is none of the classes, no image has one, or the width of the embeddings is another one.
    """
    num_classes = len(classifier.classnames)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be one class id per image; got {labels.dtype} of shape {tuple(labels.shape)}."
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
    size, device = max(1, _CHUNK // num_classes), classifier.weights.device
    rows = [
        summarize_logits(classifier(embeds.to(device)), known.to(device))
        for embeds, known in zip(image_embeds.split(size), labels.split(size), strict=True)
    ]
    metrics = classification_metrics(torch.cat(rows), labels, classifier.classnames)
    return {"top1": metrics["top1"], "top5": metrics.get("top5", 1.0), "mean_per_class": metrics["mean_per_class"]}
