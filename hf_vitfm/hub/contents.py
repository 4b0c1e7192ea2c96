"""Which files of a folder belong to a published model, and which a run leaves for itself."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..cards.model_card import PICTURES
from ..conversion.export import written_formats
from ..conversion.formats import OURS


WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_MODEL = re.compile(r"(generation_)?config\.json")
_PREPROCESSING = re.compile(
    r"(pre|image_|video_)?processor_config\.json|preprocessor_config\.json|tokenizer(_config)?\.json|vocab\.(json|txt)"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|(spiece|tokenizer|sentencepiece\.bpe)\.model"
    r"|chat_template\.jinja"
)
_RESULTS = re.compile(r"(\w+_results|run|log)\.json")
_PICTURES = re.compile(r"[^.].*\.(png|jpe?g|svg|webp)", re.IGNORECASE)
_TEXTS = re.compile(r"(README|CITATION|LICEN[CS]E|NOTICE)(\.\w+)?")
# What other formats have at the root, and adapters, which are read in the place of a model.
_OTHER_MODELS = re.compile(
    r"open_clip_(config\.json|model\.safetensors)|model\.(pth|npz)|adapter_(config\.json|model\.safetensors)"
)
_CODE = re.compile(r"(modeling|configuration)_\w+\.py")
# Texts whose words come from elsewhere: a vocabulary may hold anything that looks like a path.
VOCABULARIES = re.compile(r"tokenizer\.json|vocab\.(json|txt)|merges\.txt|.*\.model")

_OF_TRAINING = {
    "state of a training run": re.compile(
        r"(optimizer|scheduler|scaler|rng_state|random_states|trainer_state|run_state|ema)\b.*|pytorch_model_fsdp.*"
        r"|(optimizer|pytorch_model_fsdp|rng_state|random_states)_\d.*"
    ),
    "arguments of a training run, with paths and tokens": re.compile(r"training_args\.bin"),
}
_FOLDERS_OF_TRAINING = re.compile(
    r"checkpoint-\d+|last-checkpoint|runs|wandb|mlruns|\.(writing|deleting|export|push)-.*"
)
_FOLDERS_OF_TOOLS = re.compile(r"\.git|\.cache|\.ipynb_checkpoints|__pycache__|\.venv")


def walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """All files of a folder that could be published or could betray something, sorted.

    Folders that a run or a tool keeps for itself are not entered; each is one entry.

    Args:
        folder: the folder that somebody wants to publish.

    Yields:
        Path from the folder, "/" at the end of a folder's; and why it is left out, None if it belongs to the model.
    """
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        for name in sorted(folders):
            reason = "a link to a folder" if Path(place, name).is_symlink() else _folder_reason(name)
            if reason:
                folders.remove(name)
                yield f"{(inside / name).as_posix()}/", reason
        folders.sort()
        for name in sorted(files):
            path = inside / name
            yield path.as_posix(), _file_reason(path)


def _folder_reason(name: str) -> str | None:
    if _FOLDERS_OF_TRAINING.fullmatch(name):
        return "states of a training run"
    return "files of a tool" if _FOLDERS_OF_TOOLS.fullmatch(name) else None


def _file_reason(path: Path) -> str | None:
    for reason, pattern in _OF_TRAINING.items():
        if pattern.fullmatch(path.name):
            return reason
    if len(path.parts) > 1:
        return "not at the root; formats beside the first are written anew"
    kinds = (WEIGHTS, _MODEL, _PREPROCESSING, _RESULTS, _PICTURES, _TEXTS)
    return None if any(kind.fullmatch(path.name) for kind in kinds) else "no file of a model, its card or its results"


def is_root_file(name: str) -> bool:
    """Whether a file at the root holds weights, their configuration or their preprocessing, or code for them."""
    return any(kind.fullmatch(name) for kind in (WEIGHTS, _MODEL, _PREPROCESSING))


def is_outdated(path: str, new: set[str]) -> bool:
    """Whether a file of a repository was published with a model that others replace: it would be taken for theirs.

    Args:
        path: of the repository's file.
        new: paths of the files that are published now.
    """
    if path in new:
        return False
    folder, _, rest = path.partition("/")
    if rest:
        return folder in (OURS, *written_formats())
    known = (
        is_root_file(path)
        or _OTHER_MODELS.fullmatch(path)
        or _RESULTS.fullmatch(path)
        or _CODE.fullmatch(path)
        or path in PICTURES
    )
    return bool(known)
