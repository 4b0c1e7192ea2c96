"""The README.md of what is published."""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from huggingface_hub import ModelCard

from ..cards.bare_card import bare_card
from ..cards.format_snippets import formats_section
from ..cards.hub_names import is_hub_id
from ..cards.model_card import MARKER, create_model_card
from ..version import __version__
from .contents import WEIGHTS, walk


_OF_A_RUN = ("config.json", "preprocessor_config.json", "all_results.json", "run.json")


def write_card(
    directory: Path, folder: Path | None, config: dict, parameters: int, formats: Sequence[str], repo_id: str | None
) -> None:
    """Write the card: somebody's own text as it is, else from the files of the run, else what the model tells.

    Args:
        directory: what will be published, complete but for the card.
        folder: the run's or the model's folder; None for a model that has none.
        config: of the model as it is here, before it was written in other formats.
        parameters: their number.
        formats: what the directory holds, the root's first.
        repo_id: as the user named it.
    """
    repo_id = repo_id if is_hub_id(repo_id) else None
    card = None if folder is None else folder / "README.md"
    if card is not None and card.is_file() and MARKER not in card.read_text(encoding="utf-8", errors="replace"):
        shutil.copyfile(card, directory / "README.md")
        return
    if folder is not None and all((folder / name).is_file() for name in _OF_A_RUN):
        text = _card_of_run(folder, repo_id)
    else:
        versions = {"hf_vitfm": __version__, "transformers": transformers.__version__, "torch": torch.__version__}
        text = bare_card(config, _image_processor(directory), parameters, versions, repo_id)
    classes = {name: _class_name(directory, name, place, config) for place, name in enumerate(formats)}
    text = _with_section(text, formats_section(classes, repo_id, _auto_class(directory)))
    if formats[0] in ("transformers", "dinov2"):
        text = _for_transformers(text)
    (directory / "README.md").write_text(text, encoding="utf-8")


def _card_of_run(folder: Path, repo_id: str | None) -> str:
    with tempfile.TemporaryDirectory() as copy:
        for path, reason in walk(folder):
            if reason is None and not WEIGHTS.fullmatch(path) and path != "README.md":
                shutil.copyfile(folder / path, Path(copy, path))
        return create_model_card(copy, repo_id=repo_id).read_text(encoding="utf-8")


def _image_processor(directory: Path) -> dict | None:
    """Its configuration, by itself or inside that of a processor."""
    by_itself = _read(directory / "preprocessor_config.json")
    return by_itself or (_read(directory / "processor_config.json") or {}).get("image_processor")


def _class_name(directory: Path, name: str, place: int, config: dict) -> str:
    """The class that loads a format: the one that its configuration names, else ours."""
    saved = _read((directory / name if place else directory) / "config.json") or {}
    return (saved.get("architectures") or config.get("architectures") or ["AutoModel"])[0]


def _auto_class(directory: Path) -> str | None:
    """The Auto class of the model's own class, where code lies beside the weights."""
    config = _read(directory / "config.json") or {}
    names = {reference.rpartition(".")[2]: auto for auto, reference in (config.get("auto_map") or {}).items()}
    return names.get((config.get("architectures") or [""])[0], "AutoModel") if names else None


def _with_section(text: str, section: str) -> str:
    """With a section after the one on how to use the model."""
    if not section:
        return text
    begin = text.find("\n## How to use it")
    end = text.find("\n## ", begin + 1) if begin >= 0 else -1
    return f"{text}\n{section}\n" if end < 0 else f"{text[:end]}\n{section}\n{text[end:]}"


def _for_transformers(text: str) -> str:
    """The card of a root that transformers opens alone: its code needs no import that registers our classes."""
    card = ModelCard(re.sub(r"^import hf_vitfm\b.*\n", "", text, flags=re.MULTILINE))
    card.data.library_name = "transformers"
    return str(card).rstrip("\n") + "\n"


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
