"""What zero-shot classification calls the classes of a data set, and where that comes from.

The prompts decide as much as the model does, so their source goes with every result. None of the published lists is part
of this package: they are read from a data set, from files or from a library that has them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.datasets import label_names
from ..data.samples import SAMPLE_NAMES
from .data_files import find_data_file
from .prompts import check_template


NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
TEMPLATES = ("a photo of a {}.", "a picture that shows a {}.", "an image with a {} in it.")  # our own; CLIP has 80
NOT_CLIPS = "not CLIP's prompts"  # in the source of prompts that stand in for the published ones

# The names of the emojis' categories are headings of a menu; these, chosen on held-out drawings, say what they show.
_SAMPLE_NAMES_OF = {
    "emoji": ("smiling face", "person", "animal", "food", "place", "sport", "tool", "symbol", "flag"),
    "fashion-mnist": (
        "t-shirt",
        "pair of trousers",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
}
_SAMPLE_TEMPLATES = {"emoji": ("{}",), "fashion-mnist": TEMPLATES}


@dataclass(frozen=True)
class ClassNames:
    """The names and templates that prompts are made of.

    Args:
        names: one per class, in the order of the class ids.
        templates: each with one "{}" for the name.
        source: where they come from, in words, for tables and cards.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    source: str


def class_names_beside(source: str | Path, revision: str | None = None) -> ClassNames:
    """Read the names and templates that lie beside a data set, as those of clip-benchmark on the Hub have them.

    Args:
        source: folder, or id of a data set on the Hub, with `classnames.txt` and
            `zeroshot_classification_templates.txt`, read as `read_class_names` reads text files.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: if there is no such folder or data set, or it lacks a file.
        ConnectionError: if the Hub cannot be reached and a file is not in its cache.
        ValueError: as `read_class_names`.
    """
    files = [find_data_file(source, name, revision) for name in (NAMES_FILE, TEMPLATES_FILE)]
    at = f" at {revision}" if revision else ""
    return ClassNames(_read_names(files[0], None), _read_templates(files[1], None), f"{NAMES_FILE} of {source}{at}")


def read_class_names(names: str | Path, templates: str | Path, dataset: str | None = None) -> ClassNames:
    """Read names and templates from two files.

    Text files have one per line; spaces at its ends and blank lines at the end of the file do not count. A blank line
    between names is an empty name, as published lists have one; between templates it is left out. JSON files hold a list,
    or an object with a list for each data set. Names or templates that come twice stay: a template counts double.

    Args:
        names: file of the names, in the order of the class ids.
        templates: file of texts with one "{}" or "{c}" for the name.
        dataset: which list of an object in a JSON file; not needed if there is one.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file holds something else, a template has no place for the name.
    """
    files = Path(names).expanduser(), Path(templates).expanduser()
    lacking = [str(file) for file in files if not file.is_file()]
    if lacking:
        raise FileNotFoundError(f"There is no file {lacking[0]!r}.")
    which = f" ({dataset})" if dataset else ""
    source = f"{files[0].name} and {files[1].name}{which}"
    return ClassNames(_read_names(files[0], dataset), _read_templates(files[1], dataset), source)


def class_names_of_labels(dataset: Any, templates: Sequence[str] = TEMPLATES) -> ClassNames:
    """Take the names that the labels of a data set have; underscores become spaces, as folders have them.

    Args:
        dataset: rows with a column `label`, as `load_images` gives them.
        templates: each with one "{}" for the name.

    Raises:
        ValueError: if the labels have no names, or a template has no place for the name.
    """
    names = label_names(dataset)
    if not names:
        raise ValueError(
            "The labels of the data set have no names. Open it with `load_images`, or give files to `read_class_names`."
        )
    spaced = tuple(" ".join(name.replace("_", " ").split()) for name in names)
    own = f"the templates of this library, {NOT_CLIPS}" if tuple(templates) == TEMPLATES else "given templates"
    return ClassNames(spaced, _as_templates(templates, "`templates`"), f"the data set's label names and {own}")


def check_label_names(own: Sequence[str] | None, classnames: Sequence[str]) -> None:
    """Check that the classes of prompts are those of a data set's labels, as far as names tell.

    Args:
        own: the names that the labels have; None if they are plain numbers.
        classnames: one per class id. Other words than the labels' own are taken as they come.

    Raises:
        ValueError: if there are more or fewer, or they are the labels' own names in another order.
    """
    if own is None:
        return
    if len(own) != len(classnames):
        raise ValueError(
            f"There must be one class name for each of the data set's {len(own)} labels, in their order; got "
            f"{len(classnames)}."
        )
    spelled, given = ([_spelled(name) for name in names] for names in (own, classnames))
    if given != spelled and sorted(given) == sorted(spelled):
        first = next(number for number, name in enumerate(given) if name != spelled[number])
        raise ValueError(
            f"The class names are those of the data set's labels in another order: class {first} is {own[first]!r} in the "
            f"data and {classnames[first]!r} in the prompts. Give them in the order of `label_names(dataset)`."
        )


def _spelled(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def class_names_of_sample(name: str) -> ClassNames:
    """Names and templates for a data set that ships with the package.

    Args:
        name: "emoji", for the column `category`, or "fashion-mnist".

    Raises:
        ValueError: if there is no data set of that name.
    """
    if name not in SAMPLE_NAMES:
        raise ValueError(f"`name` must be one of {', '.join(SAMPLE_NAMES)}; got {name!r}.")
    return ClassNames(_SAMPLE_NAMES_OF[name], _SAMPLE_TEMPLATES[name], f"this library's names for {name}")


def imagenet_class_names() -> ClassNames:
    """The names and 80 templates that CLIP was measured with on ImageNet, where open_clip, which has them, is installed.

    Elsewhere the 1,000 names of torchvision and templates of our own, whose results are others: the source says so.
    """
    try:
        import open_clip
    except ImportError:
        from torchvision.models import ViT_B_16_Weights

        names = tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
        source = f"torchvision's names and templates of this library, {NOT_CLIPS} (`pip install hf-vitfm[clip]`)"
        return ClassNames(names, TEMPLATES, source)
    # A template is a function there. Braces can be put in for the name, since none of the texts has others.
    templates = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    source = f"open_clip {open_clip.__version__}: CLIP's names and templates for ImageNet"
    return ClassNames(tuple(open_clip.IMAGENET_CLASSNAMES), _as_templates(templates, "open_clip"), source)


def _read_names(file: Path, dataset: str | None) -> tuple[str, ...]:
    # A blank line between others is an empty name, which CLEVR's distances have: without it the later ones would move.
    return tuple(_read_texts(file, dataset))


def _read_templates(file: Path, dataset: str | None) -> tuple[str, ...]:
    return _as_templates([text for text in _read_texts(file, dataset) if text], file.name)


def _as_templates(templates: Sequence[str], where: str) -> tuple[str, ...]:
    texts = tuple(text.replace("{c}", "{}") for text in templates)
    try:
        for text in texts:
            check_template(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return texts


def _read_texts(file: Path, dataset: str | None) -> list[str]:
    """The texts of a file without spaces at their ends, inner blank ones too; at least one."""
    try:
        content = file.read_text(encoding="utf-8-sig")
        # Not `splitlines`, which also divides at characters that a name may hold.
        texts = _list_of(json.loads(content), dataset) if file.suffix == ".json" else content.rstrip().split("\n")
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file.name} must be a UTF-8 text file, or JSON if it ends in .json: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{file.name} {error}") from error
    texts = [text.strip() for text in texts]
    if not any(texts):
        raise ValueError(f"{file.name} holds no texts; at least one is needed.")
    return texts


def _list_of(content: Any, dataset: str | None) -> list[str]:
    if isinstance(content, dict):
        dataset = next(iter(content)) if dataset is None and len(content) == 1 else dataset
        if dataset not in content:
            raise ValueError(
                f"has lists for {', '.join(sorted(content))}; got `dataset` {dataset!r}. Name one of them."
            )
        content = content[dataset]
        if isinstance(content, dict):
            raise ValueError(
                f"has texts of their own for each class of {dataset!r}; only templates that all classes share are read."
            )
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise ValueError("must hold a list of texts, or an object with one for each data set.")
    return content
