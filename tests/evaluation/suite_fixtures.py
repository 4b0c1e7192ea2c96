"""Small data sets in the layouts that those of the suites are published in: a few images, the real names of files and columns."""

import io
import json

import numpy as np
from PIL import Image

from tests.data.images import encode, write_tar


NUM_CLASSES, IMAGES = 3, {"train": 8, "test": 3}  # images of every class
WNIDS = ("n01440764", "n01443537", "n01484850")  # ImageNet's first classes
NAMES = ("red thing", "green thing", "blue thing")


def picture(label: int, seed: int) -> Image.Image:
    """Noise with a tint of the class."""
    pixels = np.random.default_rng(seed).integers(0, 120, (16, 16, 3), dtype=np.uint8)
    pixels[..., label] += 120
    return Image.fromarray(pixels)


def rows_of(split: str, num_classes: int = NUM_CLASSES):
    """(number, class) of the images of a split; classes take turns."""
    return list(enumerate(label for _ in range(IMAGES[split]) for label in range(num_classes)))


def write_fixture(row, folder):
    """Write the data set of a suite's row, in small; returns what is given as `--data`."""
    count = min(row.num_classes, NUM_CLASSES)
    splits = ["train", "test"] if row.train_size else ["test"]
    {"webdataset": write_webdataset, "parquet": write_parquet, "folder": write_folders, "tables": write_tables}[
        row.layout
    ](row, folder, splits, count)
    return folder


def write_webdataset(row, folder, splits, count):
    """As CLIP_benchmark's webdataset_builder writes: s0000000.webp with .cls, or .npy for several labels."""
    for split in splits:
        members = {}
        for number, label in rows_of(split, count):
            members[f"s{number:07d}.webp"] = encode(picture(label, number), "webp", lossless=True)
            if row.label_column == "npy":
                buffer = io.BytesIO()
                np.save(buffer, np.eye(count, dtype=np.float32)[label])
                members[f"s{number:07d}.npy"] = buffer.getvalue()
            else:
                members[f"s{number:07d}.cls"] = str(label)
        (folder / split).mkdir(parents=True)
        write_tar(folder / split / "0.tar", members)
        (folder / split / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(NAMES[:count]) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nmany {c}s\n")


def write_parquet(row, folder, splits, count):
    """As the Hub has Birdsnap: images, and names as text; with a test split of one's own beside it."""
    import datasets

    for split in splits:
        content = rows_of(split, count)
        images = [{"bytes": encode(picture(label, number)), "path": None} for number, label in content]
        columns = {"image": images, row.label_column: [NAMES[label].title() for _, label in content]}
        features = datasets.Features({"image": datasets.Image(), row.label_column: datasets.Value("string")})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        dataset = datasets.Dataset.from_dict(columns, features=features)
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet")


def write_folders(row, folder, splits, count):
    """split/CLASS/image, with the name of the test split that the row says; ImageNet-ReaL has its labels beside it."""
    reassessed = []
    for split in splits:
        name = split if split == "train" or "test" in row.test and not row.reassessed else "val"
        for number, label in rows_of(split, count):
            stem = f"ILSVRC2012_val_{number + 1:08d}.JPEG" if row.reassessed else f"v_{number:03d}.jpg"
            place = folder / name / (WNIDS[label] if row.reassessed else NAMES[label].replace(" ", "_")) / stem
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encode(picture(label, number), "jpeg", quality=95))
            reassessed.append([] if number == 0 else [label, 7])
    if row.reassessed:
        (folder / row.reassessed).write_text(json.dumps(reassessed))


def write_tables(row, folder, splits, count):
    """As Hateful Memes comes: train.jsonl, dev.jsonl, a test.jsonl without labels, and img/."""
    (folder / "img").mkdir(parents=True)
    for split in splits:
        lines = []
        for number, label in rows_of(split, count):
            name = f"img/{split}{number:05d}.png"
            (folder / name).write_bytes(encode(picture(label, number)))
            lines.append(json.dumps({"id": number, "img": name, "label": label, "text": "what it says"}))
        (folder / {"train": "train.jsonl", "test": "dev.jsonl"}[split]).write_text("\n".join(lines) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({"id": 9, "img": "img/train00000.png", "text": "no label"}) + "\n")
