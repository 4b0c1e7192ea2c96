"""Tables that map our weight names to a foreign format's, usable in both directions.

A name may hold "{i}", which stands for every layer. Our names are those of the base model, without a prefix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.modeling_vit import ViTModel


_HEADS = ("classifier.", "distillation_classifier.")


@dataclass(frozen=True)
class Rule:
    """One of our tensors and the foreign tensors that it is made of.

    Attributes:
        ours: our name.
        theirs: foreign names; several are joined along dimension 0 (fused qkv).
        optional: may be absent (heads, poolers).
    """

    ours: str
    theirs: tuple[str, ...]
    optional: bool = False


def with_bias(ours: str, *theirs: str, optional: bool = False) -> list[Rule]:
    """The rules for a module's weight and bias."""
    return [
        Rule(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), optional) for kind in ("weight", "bias")
    ]


def renamed(state_dict: Mapping, rename: Callable[[str], str]) -> dict:
    """A state dict under other names.

    Raises:
        ValueError: if two tensors get one name.
    """
    found, origins = {}, {}
    for name, tensor in state_dict.items():
        new = rename(name)
        if new in found:
            raise ValueError(f"{origins[new]!r} and {name!r} are the same weight; the file is damaged.")
        found[new], origins[new] = tensor, name
    return found


def _expand(rules: Sequence[Rule], num_layers: int) -> list[Rule]:
    expanded = []
    for rule in rules:
        layers = range(num_layers) if "{i}" in rule.ours else [0]
        for i in layers:
            theirs = tuple(name.replace("{i}", str(i)) for name in rule.theirs)
            expanded.append(Rule(rule.ours.replace("{i}", str(i)), theirs, rule.optional))
    return expanded


def to_ours(state_dict: dict[str, Tensor], rules: Sequence[Rule], num_layers: int) -> dict[str, Tensor]:
    """Convert a foreign state dict.

    Raises:
        ValueError: if weights are missing or left over (names the first five of each), or do not fit the others that
            they are joined with.
    """
    converted, used, missing = {}, set(), []
    left_out = []  # optional rules
    for rule in _expand(rules, num_layers):
        absent = [name for name in rule.theirs if name not in state_dict]
        if not absent:
            converted[rule.ours] = _joined({name: state_dict[name] for name in rule.theirs})
            used.update(rule.theirs)
        elif not rule.optional or len(absent) < len(rule.theirs):
            missing += absent
            used.update(rule.theirs)
        else:
            left_out.append(rule)
    optional = {rule.ours for rule in rules if rule.optional} & set(converted)
    begun = {name.rpartition(".")[0] for name in optional}  # modules of which a part is there
    missing += [name for rule in left_out if rule.ours.rpartition(".")[0] in begun for name in rule.theirs]
    unexpected = sorted(set(state_dict) - used)
    if missing or unexpected:
        raise ValueError(
            f"The weights do not match their configuration: {len(missing)} missing ({', '.join(missing[:5])}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:5])}). The file is damaged or of another kind."
        )
    return converted


def _joined(parts: dict[str, Tensor]) -> Tensor:
    """One tensor of several, which are alike: a sum of sizes could hide wrong ones, and whole numbers would become others."""
    (first, tensor), *others = parts.items()
    for name, other in others:
        if other.shape != tensor.shape or other.is_floating_point() != tensor.is_floating_point():
            raise ValueError(
                f"{first!r} ({tuple(tensor.shape)}, {tensor.dtype}) and {name!r} ({tuple(other.shape)}, {other.dtype}) are parts "
                "of one weight and must be alike. The file is damaged or of another kind."
            )
    return torch.cat(list(parts.values())) if others else tensor


def to_theirs(state_dict: dict[str, Tensor], rules: Sequence[Rule], num_layers: int) -> dict[str, Tensor]:
    """Convert our state dict to the foreign names.

    Raises:
        ValueError: if one of our tensors has no place in the foreign format; names the first five.
    """
    by_name = {rule.ours: rule for rule in _expand(rules, num_layers)}
    homeless = sorted(set(state_dict) - set(by_name))
    if homeless:
        raise ValueError(f"The format has no place for {len(homeless)} weights: {', '.join(homeless[:5])}.")
    converted = {}
    for name, tensor in state_dict.items():
        theirs = by_name[name].theirs
        parts = tensor.chunk(len(theirs)) if len(theirs) > 1 else (tensor,)
        converted.update({key: part.contiguous() for key, part in zip(theirs, parts, strict=True)})
    return converted


def named_for_vit(model_class: type, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a ViT as the model class names them: without heads for a base model, else with the base's prefix.

    Args:
        model_class: our class that is to be built.
        weights: by the base model's names; heads are the classifiers.
    """
    if issubclass(model_class, ViTModel):
        return {name: tensor for name, tensor in weights.items() if not name.startswith(_HEADS)}
    return {name if name.startswith(_HEADS) else f"vit.{name}": tensor for name, tensor in weights.items()}
