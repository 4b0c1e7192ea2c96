"""What a checkpoint holds, found from its configuration and the shapes of its weights, without the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from ..models.modeling_vit import ViTForImageClassification
from .detect import MODEL_CLASSES, Detected, detect
from .limits import check_config
from .read import filled_in
from .source import Source


# The classes that take most of a checkpoint first; of those that lack equally little, the first describes it.
_BY_SIZE = sorted(
    MODEL_CLASSES, key=lambda known: (known.__name__ in ("ViTModel", "MAEModel"), known.__name__[:3] != "MAE")
)
_LONGEST = 200  # characters of a licence's name


@dataclass(frozen=True)
class Description:
    """A checkpoint as one of our models.

    Attributes:
        found: its format, configuration and weights.
        model: our model on the meta device: shapes, no values.
        missing: weights of the model that the checkpoint lacks, by our names.
        unused: weights of the checkpoint that the model leaves out, by their names.
        mismatched: (our name, shape in the checkpoint, shape in the model).
        notes: how the file is known to differ from how its weights were trained.
        licence: what the README's metadata or the configuration states; None if neither does.
    """

    found: Detected
    model: PreTrainedModel
    missing: list[str]
    unused: list[str]
    mismatched: list[tuple[str, tuple, tuple]]
    notes: list[str]
    licence: str | None


def describe(source, source_format: str | None = None, given: Mapping | None = None, **where) -> Description:
    """Describe a checkpoint by the one of our classes that takes most of it.

    Args:
        source: folder, weight file or Hub id.
        source_format: as in `from_pretrained`.
        given: fields of our configuration for what the weights do not tell, such as the number of heads.
        **where: `revision`, `token`, `subfolder`, ... as `from_pretrained` takes them.

    Raises:
        ValueError: if the format is not known, or the weights do not match their configuration.
        OSError: if files are missing or cannot be reached.
    """
    place = Source(source, **where)
    found = detect(place, source_format)
    config, shapes = found.candidate.config, dict(found.candidate.shapes)
    check_config(config, len(shapes))
    readings, problems = [], []
    for model_class in sorted(found.model_classes, key=_BY_SIZE.index):
        try:
            readings.append(_read(found, model_class, shapes, given or {}))
        except Exception as error:  # readers take files to be whole; what a damaged one raises has no end
            problems.append(error)
    if not readings:
        raise ValueError(f"{str(source)!r} looks like {found.format.name}'s format and cannot be read: {problems[0]}")
    model, missing, unused, mismatched = min(readings, key=_misfit)
    notes = found.format.notes(config, shapes) if found.format.notes else []
    return Description(found, model, missing, unused, mismatched, notes, _licence(place, config))


def _read(found: Detected, model_class: type, shapes: dict[str, tuple], given: Mapping) -> tuple:
    """(model, missing, unused, mismatched) of one class, all on the meta device."""
    theirs = {name: torch.empty(shape, device="meta", requires_grad=True) for name, shape in shapes.items()}
    fields, ours = found.format.reader(model_class)(model_class, found.candidate.config, dict(theirs))
    model = model_class.on_meta_device(model_class.config_class.from_dict(filled_in(fields, given)))
    ours = _as_named_by(model, ours)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    mismatched = [
        (name, tuple(tensor.shape), expected[name])
        for name, tensor in ours.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    used = _leaves([tensor for name, tensor in ours.items() if name in expected])
    unused = [name for name, tensor in theirs.items() if id(tensor) not in used]
    return model, sorted(set(expected) - set(ours)), unused, mismatched


def _misfit(reading: tuple) -> tuple[int, bool]:
    """How many weights are missing or unused; a classifier of no classes is no classifier."""
    model, missing, unused, _ = reading
    return len(missing) + len(unused), isinstance(model, ViTForImageClassification) and model.config.num_labels == 0


def _as_named_by(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the names of a base model or of one with a head, as `from_pretrained` matches either to either."""
    prefix = f"{model.base_model_prefix}."
    is_base = model.base_model is model
    has_prefix = any(name.startswith(prefix) for name in weights)
    if is_base and has_prefix:
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if not is_base and not has_prefix:
        return {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    return weights


def _leaves(tensors: list[Tensor]) -> set[int]:
    """Which tensors others were made of: the identities of the leaves of their graph."""
    found = {id(tensor) for tensor in tensors}
    nodes, seen = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None], set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return found


def _licence(place: Source, config: dict) -> str | None:
    path = place.find("README.md")
    if path is not None:
        with open(path, encoding="utf-8", errors="replace") as file:
            parts = file.read().split("---\n", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                card = yaml.safe_load(parts[1])
            except yaml.YAMLError:
                card = None
            if isinstance(card, dict) and _one_line(card.get("license")):
                return _one_line(card.get("license_name")) or _one_line(card["license"])
    pretrained = config.get("pretrained_cfg")
    licence = pretrained.get("license") if isinstance(pretrained, dict) else None
    return _one_line(licence)


def _one_line(value) -> str | None:
    """A text, or several, as they can be shown; None for anything else: aliases in YAML nest without end."""
    texts = value if isinstance(value, list) else [value]
    if not value or not all(isinstance(text, str) for text in texts):
        return None
    text = ", ".join(texts)[:_LONGEST]
    return "".join(char if char.isprintable() else " " for char in text)
