"""Building, in a folder of its own, exactly the files that will be published."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from transformers import CLIPProcessor, PreTrainedModel

from ..cards.usage import Published
from ..conversion import export_checkpoint, load_image_processor, load_tokenizer
from ..conversion.describe import describe
from ..conversion.export import written_formats
from ..conversion.formats import OURS, TRANSFORMERS
from ..models.modeling_base import VitfmPreTrainedModel
from ..models.modeling_clip import CLIPModel
from ..models.modeling_clip_towers import CLIPTextPreTrainedModel
from .card import write_card
from .checks import check_folder
from .contents import WEIGHTS, is_root_file, walk
from .remote_code import write_remote_code
from .weights import check_weights


@dataclass(frozen=True)
class Staged:
    """What will be published.

    Attributes:
        directory: holds these files and no others.
        source: the folder that they come from; None for a model that has none.
        left_out: files and folders of the source that stay behind, each with the reason.
    """

    directory: Path
    source: Path | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, int]:
        """Sizes in bytes by path, sorted."""
        found = {
            path.relative_to(self.directory).as_posix(): path.stat().st_size
            for path in self.directory.rglob("*")
            if path.is_file()
        }
        return dict(sorted(found.items()))


@dataclass
class _Origin:
    """What somebody wants to publish: a folder, a model, or both; each is made of the other when it is needed."""

    folder: Path | None
    model: PreTrainedModel | None
    processing_class: object

    def load(self) -> PreTrainedModel:
        """The model, read from the folder by our class that takes most of it.

        Raises:
            ValueError: if none does.
        """
        if self.model is None:
            try:
                self.model = type(describe(self.folder).model).from_pretrained(self.folder)
            except ValueError as error:
                if _saved_format(self.folder) != TRANSFORMERS:
                    raise
                remedy = f"As transformers saved it, it is published with `formats=({TRANSFORMERS!r},)`."
                raise ValueError(f"{error} {remedy}") from error
        return self.model

    def config(self) -> dict:
        """The model's configuration, as config.json has it."""
        if self.model is None:
            return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return {**self.model.config.to_dict(), "architectures": [type(self.model).__name__]}

    def num_parameters(self) -> int:
        """Their number; of a folder that is not loaded, by its files, which hold a few numbers more at times."""
        if self.model is not None:
            return self.model.num_parameters()
        count = 0
        for path in sorted(self.folder.glob("model*.safetensors")):
            with safe_open(path, framework="pt") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        return count

    def processor(self):
        """Image processor, tokenizer, or both as one; None if there are none."""
        if self.processing_class is None and self.folder is not None:
            self.processing_class = _load_processor(self.folder, self.load())
        return self.processing_class


def stage(
    source,
    directory: str | Path,
    *,
    processing_class=None,
    formats: Sequence[str] = (OURS,),
    remote_code: bool = False,
    repo_id: str | None = None,
    tokens: Sequence[str] = (),
) -> Staged:
    """Write the files that `push_to_hub` publishes; nothing is sent, and the source stays as it is.

    Args:
        source: a folder of a finished run or of a saved model, or a model.
        directory: an empty folder.
        processing_class: image processor, tokenizer or processor of both; by default what the folder has.
        formats: the first at the root, others in folders of their names.
        remote_code: whether code goes along.
        repo_id: owner and name, for the code on the card.
        tokens: secrets that the folder must not hold.

    Raises:
        ValueError: if a format cannot hold the model, the folder holds what must not be published, or weights are damaged.
        FileNotFoundError: if the folder holds no model.
    """
    formats = check_formats(formats, remote_code)
    directory = Path(directory)
    origin = _origin(source, processing_class)
    if origin.folder is not None:
        check_folder(origin.folder, tokens)
    _write_root(origin, directory, formats[0])
    for name in formats[1:]:
        _export(origin, directory / name, name)
    if origin.folder is not None:
        _place_records(origin.folder, directory)
    if remote_code:
        write_remote_code(directory, type(origin.load()))
    check_weights(directory)
    published = Published(formats, remote_code)
    write_card(directory, origin.folder, origin.config(), origin.num_parameters(), published, repo_id)
    left_out = {path: reason for path, reason in walk(origin.folder) if reason} if origin.folder is not None else {}
    return Staged(directory, origin.folder, left_out)


def check_formats(formats: Sequence[str], remote_code: bool = False) -> tuple[str, ...]:
    """The formats as a tuple.

    Raises:
        ValueError: for none, an unknown one or one that is named twice, and for code beside another format.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    known = sorted({OURS, *written_formats()})
    if not formats or len(set(formats)) < len(formats) or set(formats) - set(known):
        raise ValueError(f"`formats` must be different ones of {', '.join(known)}; got {formats!r}.")
    if remote_code and formats[0] != OURS:
        raise ValueError(
            f"`remote_code` is the code of the format {OURS}; got {formats[0]!r} at the root. Leave the code out, or "
            f"name {OURS!r} first."
        )
    return formats


def _origin(source, processing_class) -> _Origin:
    if isinstance(source, PreTrainedModel):
        if getattr(source, "_hf_peft_config_loaded", False):
            raise ValueError(
                "The model carries adapters, which would be published without what they adapt. Merge them into its "
                "weights (PEFT's `merge_and_unload`), or save them with `save_pretrained` and upload that folder."
            )
        return _Origin(_unchanged_folder(source), source, processing_class)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"`model_or_directory` must be a model of transformers or this library, or a folder; got "
            f"{type(source).__name__}. Of a wrapper pass the model inside (`.module`, `._orig_mod`), of PEFT's the whole "
            "model (`merge_and_unload()`), or publish the adapter alone with PEFT's own `push_to_hub`."
        )
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`model_or_directory` must be a model or a folder; there is no folder {str(source)!r}."
        )
    return _Origin(folder, None, processing_class)


def _unchanged_folder(model: PreTrainedModel) -> Path | None:
    """The folder that a model was loaded from, if its weights and configuration are still those of the files.

    Then the card and the results in it are this model's too.
    """
    folder = Path(model.name_or_path or "no such folder")
    weights = folder / "model.safetensors"
    if _saved_format(folder) != (OURS if isinstance(model, VitfmPreTrainedModel) else TRANSFORMERS):
        return None
    if not weights.is_file() or not _is_same_config(model.config, folder):
        return None
    state = model.state_dict()
    with safe_open(weights, framework="pt") as file:
        names = set(file.keys())
        shared = {name for name in set(state) - names if name in (model.all_tied_weights_keys or {})}
        if names - set(state) or set(state) - names - shared:
            return None
        for name in names:
            ours, saved = state[name], file.get_tensor(name)
            # A file may hold rounded weights, which the model has in its own dtype.
            if ours.is_meta or ours.shape != saved.shape or not ours.cpu().equal(saved.to(ours.dtype)):
                return None
    return folder


def _is_same_config(config, folder: Path) -> bool:
    saved, ours = type(config).from_pretrained(folder).to_dict(), config.to_dict()
    names = (saved.keys() | ours.keys()) - {"_name_or_path", "transformers_version", "architectures", "auto_map"}
    return all(saved.get(name) == ours.get(name) for name in names)


def _saved_format(folder: Path) -> str | None:
    """The format that the root of a folder has as it is: ours, transformers', or None for what has to be written anew."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not any(WEIGHTS.fullmatch(path.name) for path in folder.iterdir()):
        return None
    if str(config.get("model_type")).startswith("vitfm_"):
        return OURS
    return TRANSFORMERS if config.get("architectures") and "model_type" in config else None


def _write_root(origin: _Origin, directory: Path, name: str) -> None:
    if origin.folder is not None and _saved_format(origin.folder) == name:
        for path, reason in walk(origin.folder):
            if reason is None and is_root_file(path):
                _place(origin.folder / path, directory / path)
        _without_code(directory / "config.json")
        if origin.processing_class is not None:
            _save_processor(origin.processing_class, directory)
    elif isinstance(origin.model, PreTrainedModel) and not isinstance(origin.model, VitfmPreTrainedModel):
        if name != TRANSFORMERS:
            raise ValueError(
                f"The format {name!r} holds models of this library; got {type(origin.model).__name__}. Pass "
                f"`formats=({TRANSFORMERS!r},)`, or load it with one of hf_vitfm's classes."
            )
        origin.model.save_pretrained(directory)
        _save_processor(origin.processing_class, directory)
    elif name == OURS:
        origin.load().save_pretrained(directory)
        _save_processor(origin.processor(), directory)
    else:
        _export(origin, directory, name)
        if name == TRANSFORMERS:
            _save_processor(origin.processor(), directory)


def _export(origin: _Origin, directory: Path, name: str) -> None:
    model, processor = origin.load(), origin.processor()
    if name == OURS:
        model.save_pretrained(directory)
        _save_processor(processor, directory)
    else:
        export_checkpoint(model, directory, name, processor)


def _save_processor(processor, directory: Path) -> None:
    """Save it, and its image processor also by itself: image pipelines do not look into processor_config.json."""
    if processor is not None:
        processor.save_pretrained(directory)
        if hasattr(processor, "image_processor"):
            processor.image_processor.save_pretrained(directory)


def _load_processor(folder: Path, model):
    parts = []
    loaders = [load_image_processor] if not isinstance(model, CLIPTextPreTrainedModel) else []
    loaders += [load_tokenizer] if isinstance(model, CLIPModel | CLIPTextPreTrainedModel) else []
    for load in loaders:
        try:
            parts.append(load(folder))
        except (OSError, ValueError):  # the folder has none
            continue
    if len(parts) == 2:
        return CLIPProcessor(image_processor=parts[0], tokenizer=parts[1])
    return parts[0] if parts else None


def _place_records(source: Path, directory: Path) -> None:
    """Results, figures and texts of a folder; the card is written later."""
    for path, reason in walk(source):
        if reason is None and not is_root_file(path) and path != "README.md":
            _place(source / path, directory / path)


def _place(source: Path, target: Path) -> None:
    """Copy a file; weights, which nothing here changes, without a second copy on the disk where that is possible."""
    if WEIGHTS.fullmatch(source.name) and source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or one that knows no such links
            pass
        try:
            target.symlink_to(source.resolve())
            return
        except OSError:
            pass
    shutil.copyfile(source, target)


def _without_code(path: Path) -> None:
    """Take the names of code files out of a configuration that was published with code before."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("auto_map", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
