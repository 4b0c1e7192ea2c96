"""What the names of folders and files say: which split they belong to, and whether they are images."""

import re


SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def split_of(path: str) -> str:
    """The split that a word of a path names; train if none does.

    Raises:
        ValueError: if the path names more than one.
    """
    splits = {SPLITS[word] for word in re.split(r"[\W_]+", path.lower()) if word in SPLITS}
    if len(splits) > 1:
        raise ValueError(f"the path of {path} names more than one split: {', '.join(sorted(splits))}. Rename it.")
    return splits.pop() if splits else "train"
