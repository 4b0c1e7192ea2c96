"""Folders of image files, with a subfolder per class or without classes."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .splits import SPLITS


if TYPE_CHECKING:
    from datasets import Dataset


def open_image_folder(datasets: Any, root: Path, files: list[Path], labels: bool) -> dict[str, "Dataset"]:
    """Open image files, given relative to `root`, in split folders or not.

    datasets' own image folder reader goes by words anywhere in a path and asks the network.

    Args:
        datasets: the library.
        root: the folder.
        files: the images in it.
        labels: the folder of an image is its class. False: rows have `file_name`, the path below `root`, and no label.

    Raises:
        ValueError: if split folders are not clear, or with `labels` an image lies in no class folder.
    """
    depth = 1 if _has_split_folders(root, files) else 0
    rows = defaultdict(list)
    for file in files:
        rows[SPLITS[file.parts[0].lower()] if depth else "train"].append(file)
        if labels and len(file.parts) < depth + 2:
            raise ValueError(
                f"image {root / file} lies in no class folder, so it has no label. Put the images of "
                f"{root / file.parent} into one subfolder per class, or open them without labels (`labels=False`)."
            )
    if labels:
        names = sorted({file.parts[depth] for file in files})
        ids = {name: i for i, name in enumerate(names)}
        column, feature, value_of = "label", datasets.ClassLabel(names=names), lambda file: ids[file.parts[depth]]
    else:
        column, feature, value_of = "file_name", datasets.Value("string"), str
    features = datasets.Features({"image": datasets.Image(), column: feature})
    return {
        split: datasets.Dataset.from_dict(
            {"image": [str(root.absolute() / file) for file in rows[split]], column: list(map(value_of, rows[split]))},
            features=features,
            split=datasets.Split(split),
        )
        for split in dict.fromkeys(SPLITS.values())
        if split in rows
    }


def _has_split_folders(root: Path, files: list[Path]) -> bool:
    """Tell split folders from classes; a class may be called "train", but then images lie directly inside it."""
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    splits = {name for name in folders if name.lower() in SPLITS}
    if splits != folders:
        flat = {file.parts[0] for file in files if len(file.parts) == 2}
        if splits - flat:
            raise ValueError(
                f"{root} holds split folders ({', '.join(sorted(splits - flat))}) beside other folders with images "
                f"({', '.join(sorted(folders - splits))}). Move one of the two elsewhere."
            )
        return False
    meanings = [SPLITS[name.lower()] for name in splits]
    if len(set(meanings)) < len(meanings):
        raise ValueError(f"{root} has more than one folder for the same split: {', '.join(sorted(splits))}. Keep one.")
    return bool(splits)
