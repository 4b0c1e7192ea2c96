"""The README.md of what is published."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

from ..cards.bare_card import bare_card
from ..cards.hub_names import is_hub_id
from ..cards.model_card import MARKER, create_model_card
from ..cards.usage import Published
from ..version import __version__
from .contents import WEIGHTS, walk


_OF_A_RUN = ("config.json", "preprocessor_config.json", "all_results.json", "run.json")


def write_card(
    directory: Path, folder: Path | None, config: dict, parameters: int, published: Published, repo_id: str | None
) -> None:
    """Write the card: somebody's own text as it is, else from the files of the run, else what the model tells.

    Args:
        directory: what will be published, complete but for the card.
        folder: the run's or the model's folder; None for a model that has none.
        config: of the model as it is here, before it was written in other formats.
        parameters: their number.
        published: the formats that the directory holds, and whether there is code.
        repo_id: as the user named it.

    Raises:
        ValueError: if somebody's own text is not UTF-8, or the files of the run make no card.
    """
    repo_id = repo_id if is_hub_id(repo_id) else None
    card = None if folder is None else folder / "README.md"
    if card is not None and card.is_file() and MARKER not in _text(card):
        shutil.copyfile(card, directory / "README.md")
        return
    if folder is not None and all((folder / name).is_file() for name in _OF_A_RUN):
        text = _card_of_run(folder, published, repo_id)
    else:
        versions = {"hf_vitfm": __version__, "transformers": transformers.__version__, "torch": torch.__version__}
        text = bare_card(config, _image_processor(directory), parameters, versions, published, repo_id)
    (directory / "README.md").write_text(text, encoding="utf-8")


def _card_of_run(folder: Path, published: Published, repo_id: str | None) -> str:
    formats, remote_code = published.formats, published.remote_code
    with tempfile.TemporaryDirectory() as copy:
        for path, reason in walk(folder):
            if reason is None and not WEIGHTS.fullmatch(path) and path != "README.md":
                shutil.copyfile(folder / path, Path(copy, path))
        try:
            card = create_model_card(copy, repo_id=repo_id, formats=formats, remote_code=remote_code)
        except ValueError as error:  # which names files of the copy
            raise ValueError(str(error).replace(copy, str(folder))) from error
        return card.read_text(encoding="utf-8")


def _text(card: Path) -> str:
    try:
        return card.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{card.name} must be UTF-8, as the Hub reads it; got {error}. Save it as UTF-8.") from None


def _image_processor(directory: Path) -> dict | None:
    """Its configuration, by itself or inside that of a processor."""
    by_itself = _read(directory / "preprocessor_config.json")
    return by_itself or (_read(directory / "processor_config.json") or {}).get("image_processor")


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
