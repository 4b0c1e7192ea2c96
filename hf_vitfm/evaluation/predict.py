"""What an image classifier says of image files, in batches; a file that cannot be read is an answer too."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..conversion.files import check_source
from ..data.decode import decode_image
from ..data.sources.splits import IMAGE_SUFFIXES
from ..data.sources.walk import walk_files
from ..data.transforms import build_transform


@dataclass(frozen=True)
class Prediction:
    """The answer for one file: scores, or the reason why there are none.

    Args:
        file: path as it was given.
        scores: (outputs,) float32: probabilities in 0..1, or the numbers of a regression. None if there is an error.
        error: why the file has no scores.
    """

    file: str
    scores: Tensor | None = None
    error: str | None = None


def find_images(sources: Sequence[str | Path]) -> list[str]:
    """List image files: files that are named, and those below folders by their suffix, sorted within each folder.

    Hidden files and folders are left out. Every file comes once.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if no image is found, or a source is a pipe, a socket or a device.
    """
    found: dict[str, None] = {}
    for source in map(Path, sources):
        if source.is_file():
            found[str(source)] = None
        elif source.is_dir():
            images = (str(file) for file in walk_files(source) if file.suffix.lower() in IMAGE_SUFFIXES)
            found.update(dict.fromkeys(sorted(images)))
        elif source.exists():
            raise ValueError(f"{str(source)!r} is neither a file nor a folder. Name image files or folders of them.")
        else:
            raise FileNotFoundError(f"{str(source)!r} does not exist. Name image files or folders of them.")
    if not found:
        raise ValueError(
            f"No images in {', '.join(map(str, sources))}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}, in subfolders "
            "too."
        )
    return list(found)


def problem_type(config: Any) -> str:
    """The configured kind of targets; where none is, one output is regression and several are one class per image."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


def scores_of(logits: Tensor, kind: str) -> Tensor:
    """Turn logits (rows, outputs) into float32 scores: softmax, sigmoid, or the numbers themselves for regression."""
    logits = logits.float()
    if kind == "single_label_classification":
        return logits.softmax(dim=-1)
    return logits.sigmoid() if kind == "multi_label_classification" else logits


def load_classifier(source: str | Path, **options: Any) -> torch.nn.Module:
    """Load any image classifier, ours or transformers', in evaluation mode.

    Args:
        source: Hub id or folder.
        **options: of `from_pretrained`: `dtype`, `revision`, ...

    Raises:
        FileNotFoundError: if the source is a path that does not exist.
        ValueError: if the checkpoint lacks weights, as one without a trained head does: its answers would be random.
    """
    from transformers import AutoModelForImageClassification

    check_source(source)
    model, info = AutoModelForImageClassification.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if missing:
        raise ValueError(
            f"{str(source)!r} lacks {len(missing)} weights of {type(model).__name__}: {', '.join(missing[:5])}. Its "
            "answers would be random: fine-tune it first, or name a checkpoint that was trained to classify."
        )
    return model.eval()


def evaluation_transform(image_processor: Any) -> Callable[[Image.Image], Tensor]:
    """PIL image -> float tensor (channels, height, width), by `build_transform` where it can follow the processor."""
    try:
        return build_transform(image_processor)
    except ValueError:
        return _Processed(image_processor)


@dataclass(frozen=True)
class _Processed:
    """Calls an image processor that does more than `build_transform` knows."""

    image_processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.image_processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return torch.as_tensor(pixels)[0]


@torch.inference_mode()
def predict_images(
    model: torch.nn.Module,
    files: Sequence[str],
    transform: Callable[[Image.Image], Tensor],
    *,
    batch_size: int = 32,
    num_workers: int = 0,
) -> Iterator[Prediction]:
    """Predict image files, in their order, as the batches are done.

    A file that cannot be decoded or transformed, or whose scores are not finite, gets an error in place of scores; the
    others of its batch are not touched by it.

    Args:
        model: an image classifier in evaluation mode; batches go to its device and dtype.
        files: paths.
        transform: PIL image -> float tensor (channels, height, width).
        batch_size: files per forward pass.
        num_workers: processes that decode; 0 decodes in this one.

    Yields:
        One `Prediction` per file.
    """
    kind = problem_type(model.config)
    device, dtype = model.device, model.dtype
    loader = DataLoader(
        _Files(files, transform),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    for errors, groups in loader:
        answers = {i: Prediction(files[i], error=reason) for i, reason in errors}
        for rows, pixels in groups:
            logits = model(pixel_values=pixels.to(device, dtype, non_blocking=True)).logits
            for i, scores in zip(rows, scores_of(logits, kind).cpu(), strict=True):
                finite = bool(scores.isfinite().all())
                answers[i] = Prediction(files[i], *((scores, None) if finite else (None, "its scores are not finite")))
        yield from (answers[i] for i in sorted(answers))


class _Files(Dataset):
    """Files as tensors, or as the reason why they are none."""

    def __init__(self, files: Sequence[str], transform: Callable[[Image.Image], Tensor]):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        file = self.files[index]
        try:
            return index, self.transform(decode_image(file))
        except Exception as error:  # one file of thousands must not end the run, whatever is wrong with it
            reason = str(error).removeprefix(f"{file} ")  # the answer names the file already
            return index, " ".join(reason.split()) or type(error).__name__


def _collate(rows: list[tuple[int, Tensor | str]]) -> tuple[list[tuple[int, str]], list[tuple[list[int], Tensor]]]:
    """Errors by index, and one batch for each shape, since some processors keep an image's proportions."""
    errors, shapes = [], {}
    for index, result in rows:
        if isinstance(result, str):
            errors.append((index, result))
        else:
            shapes.setdefault(tuple(result.shape), []).append((index, result))
    return errors, [([i for i, _ in group], torch.stack([pixels for _, pixels in group])) for group in shapes.values()]
