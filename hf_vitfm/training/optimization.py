"""Parameter groups: what is decayed, and layer-wise learning rates, for any image classifier."""

from collections import defaultdict
from collections.abc import Sequence

from torch import nn


# Last components of the names of parameters that are not decayed although they have more than one dimension.
NO_DECAY_NAMES = (
    "cls_token",
    "distillation_token",
    "register_tokens",
    "mask_token",
    "position_embeddings",
    "position_embedding",
    "relative_position_bias_table",
    "class_embedding",
)


def is_decayed(name: str, parameter: nn.Parameter, no_decay_names: Sequence[str] = NO_DECAY_NAMES) -> bool:
    """Whether weight decay applies: not to biases, norms, scales (one dimension), tokens and positions.

    `no_decay_names` holds whole names, or the last components of names.
    """
    return parameter.ndim > 1 and not {name, name.rsplit(".", 1)[-1]} & set(no_decay_names)


def layer_ids(model: nn.Module) -> tuple[dict[str, int], int]:
    """Number the parameters by depth: 0 = embeddings, 1 to n = layers, n + 1 = final norm and head (MAE, lr_decay.py).

    A layer is an element of the model's innermost `nn.ModuleList`s, in the order in which they are defined, so that
    hierarchical models (Swin, ResNet) have their blocks or stages numbered too. What stands between two layers belongs
    to the earlier one.

    Returns:
        The number of every parameter by name, and the highest number.

    Raises:
        ValueError: if the model has no `nn.ModuleList` to take layers from.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    innermost = [name for name in lists if not any(other.startswith(f"{name}.") for other in lists)]
    layers = [f"{name}.{i}." for name in innermost for i in range(len(lists[name]))]
    if not layers:
        raise ValueError(
            f"`layer_decay` needs a model with its layers in an nn.ModuleList; {type(model).__name__} has none. "
            "Set `layer_decay=1`."
        )
    ids, current = {}, 0
    last_stack = _outermost_list(innermost[-1], lists)
    for name, _ in model.named_parameters():
        inside = next((i for i, layer in enumerate(layers, start=1) if name.startswith(layer)), None)
        if inside is not None:
            current = inside
            ids[name] = inside
        elif current == len(layers) and not name.startswith(f"{last_stack}."):
            ids[name] = len(layers) + 1
        else:
            ids[name] = current
    return ids, len(layers) + 1


def _outermost_list(name: str, lists: dict) -> str:
    """The outermost module list that the list `name` lies in (itself, where it is not nested)."""
    return min((other for other in lists if name == other or name.startswith(f"{other}.")), key=len)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    no_decay_names: Sequence[str] = NO_DECAY_NAMES,
) -> list[dict]:
    """Groups for a torch optimizer: by layer and by whether they are decayed, the head first.

    Args:
        model: any model; parameters that need no gradient are left out.
        learning_rate: peak learning rate of the head.
        weight_decay: for the decayed parameters (`is_decayed`), 0 for the others.
        layer_decay: a layer's learning rate is the head's times this, to the power of its distance from the head.
        no_decay_names: names, or last components of names, of parameters of more than one dimension that are not
            decayed.
    """
    if layer_decay == 1.0:
        ids, last = defaultdict(int), 0
    else:
        ids, last = layer_ids(model)
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((-ids[name], not is_decayed(name, parameter, no_decay_names)), []).append(parameter)
    return [
        {
            "params": members,
            "lr": learning_rate * layer_decay ** (last + negative),
            "weight_decay": 0.0 if undecayed else weight_decay,
        }
        for (negative, undecayed), members in sorted(groups.items(), key=lambda item: item[0])
    ]
