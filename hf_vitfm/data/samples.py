"""The small data sets and checkpoints that ship with the package: they open offline, and nothing is written to any cache.

Where they come from and under which licences is in `embedded/README.md`.
"""

import difflib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import DatasetDict

EMBEDDED = Path(__file__).parent / "embedded"

_FILES = {
    "emoji": {"google": "emoji_google.parquet", "twitter": "emoji_twitter.parquet"},
    "fashion-mnist": {"train": "fashion_mnist_train.parquet", "test": "fashion_mnist_test.parquet"},
}

CHECKPOINT_NAMES = ("emoji-clip", "fashion-mae", "fashion-vit")

SAMPLE_NAMES = tuple(sorted(_FILES))


def require_datasets() -> ModuleType:
    """Return the `datasets` library, which is only imported when data is opened.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("`datasets` is needed to open data sets; install it with `pip install datasets`.") from error
    return datasets


def load_sample(name: str) -> "DatasetDict":
    """Open one of the data sets that ship with the package, from memory and without the network.

    Args:
        name: "fashion-mnist" (splits train, 4,000 rows, and test, 1,000 rows; columns image, 28 x 28 grey, and label,
            10 classes) or "emoji" (splits google and twitter, 1,906 rows each, the same things drawn by two hands;
            columns image, 32 x 32 RGB, caption, emoji, category, 9 classes, and subcategory, 98 classes).

    Returns:
        The splits; images decode to PIL images, class names are in the features.

    Raises:
        ValueError: if there is no data set of that name.
        ImportError: if `datasets` is not installed.
    """
    if name not in _FILES:
        raise ValueError(f"`name` must be one of {', '.join(SAMPLE_NAMES)}; got {name!r}.")
    datasets = require_datasets()
    import pyarrow.parquet  # datasets depends on it

    # datasets' own parquet reader copies every file into the user's cache first.
    return datasets.DatasetDict(
        {
            split: datasets.Dataset(pyarrow.parquet.read_table(EMBEDDED / file), split=datasets.Split(split))
            for split, file in _FILES[name].items()
        }
    )


def find_checkpoint(source: str) -> str:
    """What `from_pretrained` takes for a checkpoint that a recipe names: the folder of one that ships, or the same.

    Raises:
        ValueError: for a name that is nothing here and nearly that of one that ships.
    """
    if source in CHECKPOINT_NAMES:
        return str(sample_checkpoint(source))
    near = difflib.get_close_matches(source.lower(), CHECKPOINT_NAMES, n=1, cutoff=0.8)
    if near and "/" not in source and not Path(source).exists():
        raise ValueError(f"There is no {source!r} here. Did you mean {near[0]!r}, which ships?")
    return source


def sample_checkpoint(name: str) -> Path:
    """Find one of the small checkpoints that ship with the package, without the network.

    Args:
        name: "fashion-mae", a masked autoencoder pre-trained on the training images of Fashion-MNIST (28 x 28 pixels);
            "fashion-vit", its encoder fine-tuned to tell the 10 classes apart, on 4,000 images with labels;
            "emoji-clip", a CLIP trained on Google's drawings of emoji and their names (32 x 32 pixels).

    Returns:
        The folder with config.json, model.safetensors and preprocessor_config.json (and a tokenizer's files, of a CLIP),
        for `from_pretrained`; and with run.json and all_results.json, for `hf-vitfm verify`.

    Raises:
        ValueError: if there is no checkpoint of that name.
    """
    if name not in CHECKPOINT_NAMES:
        raise ValueError(f"`name` must be one of {', '.join(CHECKPOINT_NAMES)}; got {name!r}.")
    return EMBEDDED / name
