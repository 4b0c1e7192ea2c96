"""ImageNet's relatives: ReaL labels, V2, A, R and Sketch, whose folders are named in different ways.

A classifier of ImageNet-1k numbers its 1,000 classes in the order of their sorted WordNet ids ("n01440764" is 0).
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.datasets import label_names
from ..data.labels import column
from ..models.modeling_losses import IGNORE_INDEX
from .data_files import find_data_file


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

NUM_CLASSES = 1000
REAL_FILE = "real.json"
_WNID = re.compile(r"n\d{8}(?!\d)")
_VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})")
_WHERE_WNIDS_ARE = (
    "Name a folder with ImageNet's 1,000 class folders (of train, validation or Sketch) or a file that lists their WordNet "
    "ids, such as LOC_synset_mapping.txt; or `pip install timm`, which has the list."
)


def imagenet_wnids(source: str | Path | Sequence[str] | None = None) -> tuple[str, ...]:
    """Find the WordNet ids of ImageNet-1k's classes, in the order of a classifier's outputs.

    Args:
        source: a folder that has the 1,000 class folders, itself or in its train, val or validation; a text or JSON file
            that names the ids; or the ids or folder names themselves. None: those of timm, where it is installed.

    Returns:
        1,000 ids, sorted.

    Raises:
        FileNotFoundError: if the source does not exist.
        ImportError: if there is no source and no timm.
        ValueError: if it does not hold 1,000 ids.
    """
    if source is None:
        try:
            from timm.data import ImageNetInfo
        except ImportError as error:
            raise ImportError(f"The WordNet ids of ImageNet's classes are needed. {_WHERE_WNIDS_ARE}") from error
        source = ImageNetInfo().label_names()
    if isinstance(source, str | Path):
        found, where = _wnids_at(Path(source).expanduser()), str(source)
    else:
        found, where = set(_WNID.findall("\n".join(source))), "the list"
    if len(found) != NUM_CLASSES:
        raise ValueError(f"ImageNet has 1,000 WordNet ids; found {len(found)} in {where}. {_WHERE_WNIDS_ARE}")
    return tuple(sorted(found))


def _wnids_at(path: Path) -> set[str]:
    if path.is_file():
        return set(_WNID.findall(path.read_text(encoding="utf-8-sig")))
    if not path.is_dir():
        raise FileNotFoundError(f"There is nothing at {str(path)!r}. {_WHERE_WNIDS_ARE}")
    found: set[str] = set()
    for folder in (path, path / "train", path / "val", path / "validation"):
        if not found and folder.is_dir():
            names = (entry.name for entry in folder.iterdir() if entry.is_dir())
            found = {match[0] for match in map(_WNID.match, names) if match}
    return found


def imagenet_labels(
    folders: Sequence[str],
    wnids: str | Path | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> list[int]:
    """Find which of ImageNet-1k's classes folders are, for `class_ids` and `restrict_to` of `evaluate_classification`.

    Folders may be called by WordNet ids ("n01440764", also with more after it; V2's sorted copies, A, R, Sketch), by the
    numbers 0 to 999 (V2), whatever their order, or by class names.

    Args:
        folders: names, such as `label_names` of what `load_images` opened; it sorts them as texts: 0, 1, 10, 100, 101.
        wnids: the 1,000 ids, or where `imagenet_wnids` finds them, in case folders are called by them.
        names: 1,000 class names in the order of the outputs, if folders are called by them; synonyms stand behind commas.
            Default: torchvision's.
        num_classes: how many classes the data set has, such as 200 of A and R. Where it is to be compared among these
            alone, a folder that is lacking would make the answer easier.

    Returns:
        For each folder 0 to 999, or -100 if it is none of ImageNet's classes, which is logged.

    Raises:
        ValueError: if no folder is a class, two are the same one, numbers do not count from 0, or there are not
            `num_classes`.
        ImportError: if WordNet ids are needed, not given, and timm is not installed.
    """
    folders = [str(folder).strip() for folder in folders]
    digits = sum(folder.isascii() and folder.isdigit() for folder in folders)
    if any(map(_WNID.match, folders)):
        ids = {wnid: number for number, wnid in enumerate(imagenet_wnids(wnids))}
        labels = [ids.get(match[0], IGNORE_INDEX) if match else IGNORE_INDEX for match in map(_WNID.match, folders)]
    elif digits * 2 > len(folders):
        labels = _labels_of_numbers(folders)
    else:
        labels = _labels_of_names(folders, names)
    _check_labels(folders, labels, num_classes)
    return labels


def _labels_of_numbers(folders: list[str]) -> list[int]:
    numbers = [int(folder) if folder.isascii() and folder.isdigit() else IGNORE_INDEX for folder in folders]
    if max(numbers) >= NUM_CLASSES:
        raise ValueError(
            f"Folders that are numbers must be 0 to 999, ImageNet's classes in the order of their WordNet ids; got "
            f"{max(numbers)}. If they count from 1, as ILSVRC's own ids do, these are in another order: name the folders by "
            "their WordNet ids."
        )
    return numbers


def _labels_of_names(folders: list[str], names: Sequence[str] | None) -> list[int]:
    if names is None:
        from torchvision.models import ViT_B_16_Weights

        names = ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]
    if len(names) != NUM_CLASSES:
        raise ValueError(f"`names` must be 1,000 class names in the order of the outputs; got {len(names)}.")
    # From the strictest on: ImageNet has a "Cardigan", a dog, and a "cardigan".
    tables: list[dict[str, set[int]]] = [{}, {}, {}]
    for number, name in enumerate(names):
        tables[0].setdefault(spaced(name), set()).add(number)
        tables[1].setdefault(spaced(name).casefold(), set()).add(number)
        for synonym in name.split(","):
            tables[2].setdefault(spaced(synonym).casefold(), set()).add(number)
    labels = []
    for folder in folders:
        keys = (spaced(folder), spaced(folder).casefold(), spaced(folder).casefold())
        found = next((table[key] for table, key in zip(tables, keys, strict=True) if key in table), {IGNORE_INDEX})
        if len(found) > 1:
            raise ValueError(
                f"The folder {folder!r} may be any of the classes {', '.join(map(str, sorted(found)))}. Name it by its "
                "WordNet id."
            )
        labels.append(min(found))
    return labels


def spaced(name: str) -> str:
    """A name with spaces where folders have other signs."""
    return " ".join(re.split(r"[\s_-]+", name.strip()))


def _check_labels(folders: list[str], labels: list[int], num_classes: int | None) -> None:
    first: dict[int, str] = {}
    strangers = []
    for folder, label in zip(folders, labels, strict=True):
        if label == IGNORE_INDEX:
            strangers.append(folder)
        elif label in first:
            raise ValueError(
                f"The folders {first[label]!r} and {folder!r} are both ImageNet's class {label}. Keep one."
            )
        else:
            first[label] = folder
    shown = ", ".join(map(repr, strangers[:5]))
    if not first:
        raise ValueError(
            f"None of the {len(folders)} folders is a class of ImageNet: {shown}. They must be WordNet ids, numbers from 0 "
            "to 999, or class names (`names`)."
        )
    if strangers:
        logger.warning(
            "%d folders are no classes of ImageNet, and their images are left out: %s.", len(strangers), shown
        )
    if num_classes is not None and len(first) != num_classes:
        raise ValueError(
            f"The data set must have {num_classes} of ImageNet's classes; found {len(first)}. If some are left out on "
            "purpose, leave `num_classes` out and say so with the result."
        )


def relabel(dataset: "Dataset", class_ids: Sequence[int]) -> "Dataset":
    """Number the labels of a data set as ImageNet does, for what takes no `class_ids`, such as `evaluate_zero_shot`.

    Args:
        dataset: as `load_images` opens it.
        class_ids: for each of its labels another, as `imagenet_labels` finds them; rows of -100 are left out of metrics.

    Returns:
        The same rows with labels that are plain numbers.

    Raises:
        ValueError: if the labels have no names, or not as many as `class_ids`.
    """
    names = label_names(dataset)
    if names is None:
        raise ValueError("The labels of the data set have no names. Open it with `load_images`.")
    if len(names) != len(class_ids):
        raise ValueError(
            f"`class_ids` must hold one for each of the data set's {len(names)} labels; got {len(class_ids)}."
        )
    labels = [
        IGNORE_INDEX if label is None or label < 0 else class_ids[label]
        for label in column(dataset, "label").to_pylist()
    ]
    return dataset.remove_columns("label").add_column("label", labels)


def read_real_labels(source: str | Path | None = None, revision: str | None = None) -> list[list[int]]:
    """Read the reassessed labels of ImageNet's validation images (Beyer et al. 2020, "Are we done with ImageNet?").

    Args:
        source: the file real.json of google-research/reassessed-imagenet, a folder or data set on the Hub that holds it;
            None: the copy of timm, where it is installed.
        revision: branch, tag or commit on the Hub.

    Returns:
        The classes of each image, in the order of the file names, ILSVRC2012_val_00000001 first; none for an image that is
        not to be counted.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else.
    """
    if source is None:
        file = _timms_real_labels()
    else:
        file = Path(source).expanduser()
        file = file if file.is_file() else find_data_file(source, REAL_FILE, revision)
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} must be a JSON file: {error}.") from error
    is_fit = isinstance(labels, list) and all(isinstance(row, list) for row in labels)
    if not is_fit or not all(isinstance(i, int) and 0 <= i < NUM_CLASSES for row in labels for i in row):
        raise ValueError(f"{file.name} must hold a list of class ids in 0..999 for each image, as real.json does.")
    return labels


def _timms_real_labels() -> Path:
    try:
        import timm.data
    except ImportError:
        timm = None
    file = timm and Path(timm.data.__file__).parent / "_info" / "imagenet_real_labels.json"
    if file is None or not file.is_file():
        raise FileNotFoundError(
            "The ReaL labels are needed: name the file real.json of github.com/google-research/reassessed-imagenet, or `pip "
            "install timm`, which has a copy."
        )
    return file


def real_accuracy(
    predictions: Tensor, real_labels: Sequence[Sequence[int]], files: Sequence[str | Path] | None = None
) -> dict[str, float]:
    """Score predictions by ReaL labels: right if the predicted class is one of the image's. Images without any are left out.

    Args:
        predictions: (rows,) classes 0 to 999, -1 where an image could not be read, as `Classified.predictions`; or
            (rows, 1000) logits.
        real_labels: as `read_real_labels` gives them.
        files: name of each row's image, such as `image_files` finds; the number in ILSVRC2012_val_00000001 counts, in
            whatever folder and order. None: the rows are all images in the order of their numbers.

    Returns:
        `real_top1` in 0..1, `rows` that it was computed of, and rows `left_out`.

    Raises:
        ValueError: if there are not as many files as predictions, a file has no such number or is there twice, or no image
            is left.
    """
    predictions = torch.as_tensor(predictions).cpu()
    predictions = predictions.argmax(dim=1) if predictions.ndim == 2 else predictions
    if predictions.ndim != 1 or predictions.is_floating_point():
        raise ValueError(
            f"`predictions` must be one class per row, or logits (rows, 1000); got {predictions.dtype} of shape "
            f"{tuple(predictions.shape)}."
        )
    numbers = range(len(real_labels)) if files is None else _file_numbers(files, len(real_labels))
    if len(numbers) != len(predictions):
        raise ValueError(
            f"There are {len(predictions)} predictions for {len(numbers)} images. Pass the `files` of the rows."
        )
    rows = zip(predictions.tolist(), numbers, strict=True)
    right = [guess in real_labels[number] for guess, number in rows if guess >= 0 and real_labels[number]]
    if not right:
        raise ValueError("No image has a ReaL label; at least one is needed.")
    return {"real_top1": float(np.mean(right)), "rows": len(right), "left_out": len(predictions) - len(right)}


def _file_numbers(files: Sequence[str | Path], count: int) -> list[int]:
    """Places in the list of ReaL labels."""
    numbers, seen = [], set()
    for file in files:
        match = _VALIDATION_FILE.search(Path(file).name)
        number = int(match[1]) - 1 if match else -1
        if not 0 <= number < count:
            raise ValueError(
                f"ReaL labels are for ImageNet's validation images, ILSVRC2012_val_00000001 to {count:08d}; got "
                f"{str(file)!r}."
            )
        if number in seen:
            raise ValueError(f"The image {Path(file).name!r} is there twice.")
        seen.add(number)
        numbers.append(number)
    return numbers


def image_files(dataset: Any) -> list[str]:
    """The paths of a data set's images, none of them read.

    Args:
        dataset: as `load_images` opens it.

    Raises:
        ValueError: if the images have no paths.
    """
    import pyarrow.compute  # datasets depends on it

    paths = pyarrow.compute.struct_field(column(dataset, "image"), "path").to_pylist()
    if None in paths:
        raise ValueError(f"Row {paths.index(None)} has an image without a path, so that its file name is not known.")
    return paths
