"""Refusing configurations that call for far more than the weights beside them, before anything is built by them."""

import math
from collections.abc import Mapping

import torch

from .adapters import check_adapters
from .files import WEIGHT_FILES
from .source import Source


# Fields that count layers and classes, and that name a type of numbers, in the configurations of all libraries.
_LAYERS = ("num_hidden_layers", "decoder_num_hidden_layers", "layers", "depth")
_CLASSES = ("num_labels", "num_classes")
# What is not looked into for these: any word can be the name of a class.
_DICTIONARIES = ("id2label", "label2id", "quantization_config")
_DTYPES = ("dtype", "torch_dtype")
# Many more classes than any data set has.
_MAX_CLASSES = 10**6
# A model may have this many times the numbers of its checkpoint (a new head, resized positions), and some more.
_MAX_GROWTH, _SLACK = 2, 2**25
_MAX_PACKED = 32  # weights in one number of a quantised checkpoint


def check_config(config: Mapping, num_tensors: int) -> None:
    """Refuse more layers than there are tensors (a reader would look for each), and what nobody means.

    Args:
        config: any library's configuration, towers nested in it.
        num_tensors: how many the weight files hold.

    Raises:
        ValueError: naming the field.
    """
    for name, value in config.items():
        is_number = isinstance(value, int | float)
        if name in _DICTIONARIES:
            if not isinstance(value, Mapping | None):
                raise ValueError(f"The configuration says `{name}={value!r}`, which is no dictionary; it is damaged.")
            _check_numbers(name, value or {})
        elif isinstance(value, Mapping):
            check_config(value, num_tensors)
        elif name in _LAYERS and is_number and not 0 < value <= num_tensors:
            raise ValueError(
                f"The configuration says `{name}={value}`, and the weight files hold {num_tensors} tensors: they do not "
                "belong together, or are damaged."
            )
        elif name in _CLASSES and is_number and not 0 <= value <= _MAX_CLASSES:
            raise ValueError(f"The configuration says `{name}={value}`, which no model has; it is damaged.")
        elif name in _DTYPES and value is not None and not _is_float(value):
            raise ValueError(f"The configuration says `{name}={value!r}`, which is no type of weights; it is damaged.")


def _check_numbers(name: str, value: Mapping) -> None:
    """Refuse names of classes without numbers."""
    wrong = [key for key in value if name == "id2label" and not str(key).isdecimal()]
    if wrong:
        raise ValueError(
            f"The configuration's `id2label` has the key {str(wrong[0])[:50]!r}, which is no number of a class; it is damaged."
        )


def _is_float(name) -> bool:
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def check_size(model_class: type, fields: dict, num_values: int):
    """Refuse a model that is far larger than its checkpoint, or cannot be built at all.

    Args:
        model_class: our class.
        fields: of its configuration, as saved.
        num_values: how many numbers the weight files hold.

    Returns:
        The model on the meta device.

    Raises:
        ValueError: naming both sizes, or what is wrong.
    """
    try:
        config = model_class.config_class.from_dict(fields)
        model = model_class.on_meta_device(config)
        size = sum(parameter.numel() for parameter in model.parameters())
    except ValueError:
        raise
    except Exception as error:  # what a wrong value of some field raises depends on who uses it first
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"No {model_class.__name__} can be built by this configuration ({type(error).__name__}: {reason}). It is damaged."
        ) from error
    if size > _MAX_GROWTH * num_values + _SLACK:
        raise ValueError(
            f"The configuration describes a model of {size:,} parameters, and the weight files hold {num_values:,} "
            "numbers: they do not belong together, or are damaged."
        )
    return model


def check_checkpoint(model_class: type, source, saved: dict, **where) -> bool:
    """Refuse a checkpoint of this library whose files are damaged or far smaller than its configuration says.

    Args:
        model_class: our class.
        source: folder or Hub id.
        saved: its config.json.
        **where: `revision`, `token`, `subfolder`, ... as `from_pretrained` takes them.

    Returns:
        Whether transformers finds the weights by their names: not where a wrapper's prefix stands before them.

    Raises:
        ValueError: if so.
    """
    place = Source(source, **{**where, "force_download": False})  # the loading that follows does that
    if not any(map(place.find, WEIGHT_FILES)):
        return True  # adapters, variants: transformers knows more names of files, and says it if there is none
    check_adapters(place)
    weights = place.weights(WEIGHT_FILES)
    check_config(saved, len(weights.shapes))
    is_packed = bool(saved.get("quantization_config"))
    model = check_size(model_class, saved, count_values(weights.shapes) * (_MAX_PACKED if is_packed else 1))
    if is_packed:
        return True  # in whole numbers
    if weights.is_wrapped:
        return False
    prefix = f"{model.base_model_prefix}."
    parameters = {name.removeprefix(prefix) for name, _ in model.named_parameters()}
    refuse_whole_numbers(source, [name for name in weights.whole_numbers() if name.removeprefix(prefix) in parameters])
    return True


def refuse_whole_numbers(source, names: list[str]) -> None:
    """Refuse weights that are no floating-point numbers, which loading would turn into some.

    Args:
        source: folder, file or Hub id.
        names: of such weights.

    Raises:
        ValueError: if there are any.
    """
    if names:
        raise ValueError(
            f"{len(names)} weights of {str(source)!r} are not floating-point numbers: {', '.join(sorted(names)[:5])}. The "
            "file is damaged, or quantised in a way that is not read; use the unquantised weights."
        )


def count_values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers tensors hold together."""
    return sum(math.prod(shape) for shape in shapes.values())
