"""An image classifier on labelled images: accuracy, loss and calibration, over all its classes or some of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.collators import collate_labelled
from ..data.datasets import label_names
from ..data.order import ImageView
from ..models.modeling_losses import IGNORE_INDEX
from .features import SILENT_SECONDS, check_rows
from .metrics import PREDICTION, classification_metrics, summarize_logits
from .modes import evaluating
from .predict import problem_type


logger = logging.getLogger(__name__)

NO_PREDICTION = -1


@dataclass(frozen=True, eq=False)
class Classified:
    """What a classifier says of the rows of a data set, in their order; on the CPU.

    Args:
        summary: (rows, 4) as `summarize_logits` gives it, over `outputs`; of no use for a row without a prediction.
        labels: (rows,) places in `outputs`; -100 for rows that are left out.
        predictions: (rows,) outputs of the model; -1 for an image that cannot be read.
        outputs: the outputs of the model that were compared.
        names: of these outputs.
    """

    summary: Tensor
    labels: Tensor
    predictions: Tensor
    outputs: tuple[int, ...]
    names: tuple[str, ...]

    def metrics(self) -> dict:
        """As `evaluate_classification`."""
        is_known = self.labels != IGNORE_INDEX
        labels = self.labels[is_known]
        if not len(labels):
            raise ValueError("No image has a class of the model; at least one is needed. Check the labels.")
        without = (torch.bincount(labels, minlength=len(self.names)) == 0).nonzero().flatten().tolist()
        if without:
            first = ", ".join(repr(self.names[place]) for place in without[:3])
            logger.warning("%d of %d classes have no image, such as %s.", len(without), len(self.names), first)
        return {
            **classification_metrics(self.summary[is_known], labels, self.names),
            "rows": len(labels),
            "left_out": len(is_known) - len(labels),
            "classes": len(self.names),
            "classes_without_images": len(without),
        }


def evaluate_classification(  # noqa: PLR0913 - the public signature
    model: nn.Module,
    dataset: Sequence[dict],
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    *,
    class_ids: Sequence[int] | None = None,
    restrict_to: Sequence[int] | None = None,
    on_bad_image: str = "error",
    num_workers: int = 0,
    group: dist.ProcessGroup | None = None,
) -> dict:
    """Measure an image classifier on labelled images.

    Args:
        model: any `AutoModelForImageClassification` with one class per image. It is used on its device and in its dtype,
            in evaluation mode, and left as it was.
        dataset: rows with `image` and `label`, as `load_images` gives them, or with `pixel_values` and `label`. Those with
            the label -100 are left out.
        transform: image -> float tensor (channels, height, width), such as `evaluation_transform` makes of the model's
            image processor. Not needed for rows with `pixel_values`.
        batch_size: images per forward pass.
        class_ids: for each label of the data set the output of the model that it is, such as `imagenet_labels` finds; -100
            leaves the rows of a label out. Default: they are the same, or go by name where the data set holds the
            model's class names in another order.
        restrict_to: the outputs that are compared, all others left aside before the softmax, as ImageNet-A and -R, which
            have 200 of ImageNet's classes, are measured; rows of other classes are left out. Default: all.
        on_bad_image: "error", or "skip" to leave an image out that cannot be read.
        num_workers: processes that decode images; 0 decodes in this one.
        group: processes that share the images, all of which call this with the same data and get the same numbers, those
            of one process; None = this process alone.

    Returns:
        `loss`, `top1`, `top5` (with more than 5 classes), `mean_per_class`, `calibration_error` and `per_class`, as
        `classification_metrics` gives them; `rows` that they were computed of and rows `left_out`; `classes` that were
        compared, and `classes_without_images`, which `mean_per_class` leaves out.

    Raises:
        ValueError: if there are no rows, labels and outputs do not fit, or the transform is missing.
        BadImageError: if an image cannot be read; it names the row.
    """
    return classify_images(
        model,
        dataset,
        transform,
        batch_size,
        class_ids=class_ids,
        restrict_to=restrict_to,
        on_bad_image=on_bad_image,
        num_workers=num_workers,
        group=group,
    ).metrics()


@torch.no_grad()
def classify_images(  # noqa: PLR0913 - the public signature
    model: nn.Module,
    dataset: Sequence[dict],
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    *,
    class_ids: Sequence[int] | None = None,
    restrict_to: Sequence[int] | None = None,
    on_bad_image: str = "error",
    num_workers: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Classified:
    """Classify every row; the arguments and errors are those of `evaluate_classification`. Labels may be missing."""
    check_rows(dataset, batch_size)
    names = output_names(model.config)
    outputs = _check_outputs(restrict_to, len(names))
    places = torch.tensor(_places(dataset, names, class_ids, outputs))
    view = ImageView(dataset, transform, on_bad_image=on_bad_image)
    device, dtype = (getattr(next(model.parameters()), name) for name in ("device", "dtype"))
    shares = _deal_batches(len(dataset), batch_size, group)
    loader = DataLoader(
        view,
        batch_sampler=[rows for rows, _ in shares],
        num_workers=num_workers,
        collate_fn=collate_labelled,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # for the workers' seeds, which would be drawn from the global one
    )
    summary, labels = torch.zeros(len(dataset), 4), torch.zeros(len(dataset), dtype=torch.int64)
    is_own = torch.zeros(len(dataset), dtype=torch.bool)
    is_silent = group is not None and dist.get_rank(group) > 0
    progress = tqdm(loader, "classify", unit="batch", delay=SILENT_SECONDS, disable=is_silent or None, leave=False)
    with evaluating(model):
        for (rows, counts), batch in zip(shares, progress, strict=True):
            logits = model(pixel_values=batch["pixel_values"].to(device, dtype, non_blocking=True)).logits
            if logits.shape != (len(rows), len(names)):
                raise ValueError(
                    f"The model must give {len(names)} logits for each image, as its configuration has labels; got the "
                    f"shape {tuple(logits.shape)} for {len(rows)} images."
                )
            if counts:
                is_own[rows], labels[rows] = True, _to_places(batch.get("labels"), places, rows)
                known = labels[rows].clamp(min=0).to(device)
                summary[rows] = summarize_logits(restrict_logits(logits, outputs), known).cpu()
    is_bad = torch.zeros_like(is_own)
    is_bad[view.bad_indices()] = True
    summary[is_own & is_bad, PREDICTION] = NO_PREDICTION
    if group is not None:
        summary, labels = _add_up(summary, device, group), _add_up(labels, device, group)
    found = summary[:, PREDICTION].long()
    predictions = torch.where(found < 0, NO_PREDICTION, torch.tensor(outputs)[found])
    return Classified(summary, labels, predictions, outputs, tuple(names[output] for output in outputs))


def _deal_batches(count: int, batch_size: int, group: dist.ProcessGroup | None) -> list[tuple[list[int], bool]]:
    """The batches of this process, and whether they count; all processes have equally many.

    Whole batches are dealt out, so that each is computed as one process would, to the last bit. Models may be shared too:
    who has no batch left runs the last one with the others, and drops it.
    """
    rank, processes = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    batches = torch.arange(count).split(batch_size)
    turns = range(rank, rank + len(batches), processes)
    return [(batches[min(turn, len(batches) - 1)].tolist(), turn < len(batches)) for turn in turns]


def restrict_logits(logits: Tensor, outputs: Sequence[int]) -> Tensor:
    """Keep the logits of some classes.

    Args:
        logits: (rows, classes).
        outputs: classes, each once.

    Returns:
        (rows, len(outputs)) in the order of `outputs`.

    Raises:
        ValueError: if an output does not exist or comes twice, or there are none.
    """
    outputs = _check_outputs(outputs, logits.shape[1])
    is_all = outputs == tuple(range(logits.shape[1]))
    return logits if is_all else logits[:, torch.tensor(outputs, device=logits.device)]


def _check_outputs(outputs: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if outputs is None:
        return tuple(range(count))
    outputs = tuple(int(output) for output in outputs)
    if not outputs or min(outputs) < 0 or max(outputs) >= count or len(set(outputs)) < len(outputs):
        shown = ", ".join(map(str, outputs[:5])) + (", ..." if len(outputs) > 5 else "")
        raise ValueError(
            f"`restrict_to` must name some of the {count} outputs, 0 to {count - 1}, each once; got {len(outputs)}: {shown}."
        )
    return outputs


def output_names(config: Any) -> list[str]:
    """What a classifier's configuration calls its outputs.

    Raises:
        ValueError: if it does not give one class per image.
    """
    kind = problem_type(config)
    if kind != "single_label_classification":
        raise ValueError(
            f"The model must give one class per image; its `problem_type` is {kind!r} with {config.num_labels} outputs. "
            "Use the metrics of that kind."
        )
    return [str(config.id2label[output]) for output in range(config.num_labels)]


def _places(dataset: Any, names: list[str], class_ids: Sequence[int] | None, outputs: tuple[int, ...]) -> list[int]:
    """For each label of the data set its place in `outputs`, or -100."""
    class_ids = _match_names(dataset, names) if class_ids is None else [int(output) for output in class_ids]
    own = label_names(dataset)
    if own is not None and len(own) != len(class_ids):
        raise ValueError(
            f"`class_ids` must hold an output for each of the data set's {len(own)} labels; got {len(class_ids)}."
        )
    wrong = [output for output in class_ids if not 0 <= output < len(names) and output != IGNORE_INDEX]
    if wrong:
        raise ValueError(
            f"`class_ids` must be outputs of the model, 0 to {len(names) - 1}, or -100 for labels to leave out; got "
            f"{wrong[0]}."
        )
    place_of = {output: place for place, output in enumerate(outputs)}
    places = [place_of.get(output, IGNORE_INDEX) for output in class_ids]
    if max(places, default=IGNORE_INDEX) < 0:
        raise ValueError(
            "None of the data set's labels is an output that is compared. Check `class_ids` and `restrict_to`."
        )
    return places


def _match_names(dataset: Any, names: list[str]) -> list[int]:
    """The output of each label where nobody says it: that of the same number, or of the same name in another order."""
    own = label_names(dataset)
    if own is None:
        return list(range(len(names)))
    for spell in (str, str.casefold):  # ImageNet has a "Cardigan", a dog, and a "cardigan"
        outputs = {spell(name): output for output, name in enumerate(names)}
        if len(outputs) == len(names) and all(spell(name) in outputs for name in own):
            return [outputs[spell(name)] for name in own]
    numbers = [int(name) for name in own if name.isascii() and name.isdigit()]
    is_shuffled = len(numbers) == len(own) and numbers != sorted(numbers)
    if len(own) != len(names) or is_shuffled:
        about = "numbers in the order of the alphabet" if is_shuffled else f"{len(own)} classes"
        raise ValueError(
            f"The data set has {about}, such as {own[0]!r} and {own[-1]!r}, and the model {len(names)}, such as {names[0]!r}. "
            "Pass `class_ids`, the model's output for each of them (`imagenet_labels` finds ImageNet's)."
        )
    return list(range(len(names)))


def _to_places(labels: Tensor | None, places: Tensor, rows: list[int]) -> Tensor:
    """Labels of a batch as places of outputs; -100 without."""
    if labels is None:
        return torch.full((len(rows),), IGNORE_INDEX)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"Labels must be one class id per image; got {labels.dtype} of shape {tuple(labels.shape)} for {len(rows)} images."
        )
    is_known = labels != IGNORE_INDEX
    bad = (is_known & ((labels < 0) | (labels >= len(places)))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"Labels must be class ids in 0..{len(places) - 1}, or -100 for rows to leave out; row {rows[bad[0]]} has "
            f"{labels[bad[0]].item()}."
        )
    return torch.where(is_known, places[labels.clamp(min=0)], IGNORE_INDEX)


def _add_up(rows: Tensor, device: torch.device, group: dist.ProcessGroup) -> Tensor:
    """Rows of which each process has some and zeros elsewhere; adding zeros changes none of them."""
    total = rows.to(device)
    dist.all_reduce(total, group=group)
    return total.cpu()
