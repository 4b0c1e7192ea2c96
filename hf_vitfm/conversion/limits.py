"""Refusing configurations that call for far more than the weights beside them, before anything is built by them."""

import math
from collections.abc import Mapping

import torch
from transformers import initialization as init

from .source import Source


# Fields that count layers, in the configurations of all libraries.
_LAYERS = ("num_hidden_layers", "decoder_num_hidden_layers", "layers", "depth")
# A model may have this many times the numbers of its checkpoint (a new head, resized positions), and some more.
_MAX_GROWTH, _SLACK = 2, 2**25


def check_layers(config: Mapping, num_tensors: int) -> None:
    """Refuse more layers than there are tensors; a reader would look for each.

    Args:
        config: any library's configuration, towers nested in it.
        num_tensors: how many the weight files hold.

    Raises:
        ValueError: naming the field.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_layers(value, num_tensors)
        elif name in _LAYERS and isinstance(value, int | float) and not 0 < value <= num_tensors:
            raise ValueError(
                f"The configuration says `{name}={value}`, and the weight files hold {num_tensors} tensors: they do not "
                "belong together, or are damaged."
            )


def check_size(model_class: type, fields: dict, num_values: int) -> None:
    """Refuse a model that is far larger than its checkpoint.

    Args:
        model_class: our class.
        fields: of its configuration, as saved.
        num_values: how many numbers the weight files hold.

    Raises:
        ValueError: naming both sizes.
    """
    config = model_class.config_class.from_dict(fields)
    try:
        with torch.device("meta"), init.no_init_weights():
            size = sum(parameter.numel() for parameter in model_class(config).parameters())
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"No model of this configuration can be built: {error}") from error
    if size > _MAX_GROWTH * num_values + _SLACK:
        raise ValueError(
            f"The configuration describes a model of {size:,} parameters, and the weight files hold {num_values:,} numbers: "
            "they do not belong together, or are damaged."
        )


def check_checkpoint(model_class: type, source, saved: dict, **where) -> None:
    """Refuse a checkpoint of this library whose files are damaged or far smaller than its configuration says.

    Args:
        model_class: our class.
        source: folder or Hub id.
        saved: its config.json.
        **where: `revision`, `token`, `subfolder`, ... as `from_pretrained` takes them.

    Raises:
        ValueError: if so.
    """
    if saved.get("quantization_config"):
        return  # weights are packed
    try:
        shapes = Source(source, **where).candidates()[0].weights().shapes
    except FileNotFoundError:
        return  # adapters, variants: transformers knows more names of files
    check_layers(saved, len(shapes))
    check_size(model_class, saved, count_values(shapes))


def count_values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers tensors hold together."""
    return sum(math.prod(shape) for shape in shapes.values())
