"""Finding the weights in what training scripts save: dictionaries in dictionaries, prefixes, and what is no tensor."""

import logging
from collections.abc import Mapping

from torch import Tensor


logger = logging.getLogger(__name__)

# Where training scripts put the weights, in the order in which they are taken; the averages only where nothing else is.
WEIGHTS = ("model", "state_dict", "model_state_dict", "module")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema")
# What wrappers put before every name: DataParallel and DDP, `torch.compile`.
PREFIXES = ("module.", "_orig_mod.")
_MAX_DEPTH = 4  # a pickled dictionary can hold itself


def unwrap(content, file_name: str) -> dict[str, Tensor]:
    """Take a model's weights out of a file's content.

    Args:
        content: what `torch.load` gave.
        file_name: for messages.

    Returns:
        Tensors by name, without the prefixes of wrappers. Entries that are no tensors (epoch, arguments) are left out.

    Raises:
        ValueError: if there are no weights in it.
    """
    outermost = content
    for _ in range(_MAX_DEPTH):
        inner = _inner(content, file_name) if isinstance(content, Mapping) else None
        if inner is None:
            break
        content = inner
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {
            name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
    if not tensors:
        raise ValueError(
            f"{file_name} holds no weights that can be found: {_describe(outermost)}. Readable is a dictionary of tensors, "
            f"alone or under {', '.join(repr(name) for name in WEIGHTS + AVERAGES)}."
        )
    dropped = [str(name) for name in content if name not in tensors]
    if dropped:
        logger.info("%s: left out what is no tensor: %s", file_name, ", ".join(dropped[:5]))
    return without_prefixes(tensors)


def without_prefixes(named: dict) -> dict:
    """By the names that tensors had before a model was wrapped: without what stands before every one of them."""
    while named and (
        prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in named)), None)
    ):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _inner(content: Mapping, file_name: str) -> Mapping | None:
    """The dictionary of weights inside another; None where there is none."""
    found = [name for name in WEIGHTS + AVERAGES if isinstance(content.get(name), Mapping) and content[name]]
    if not found:
        return None
    averages = [name for name in found if name in AVERAGES]
    if found[0] in AVERAGES:
        logger.warning("%s holds only averaged weights, under %r; they are read.", file_name, found[0])
    elif averages:
        logger.warning(
            "%s also holds averaged weights, under %r; read are those under %r.", file_name, averages[0], found[0]
        )
    return content[found[0]]


def _describe(content) -> str:
    if isinstance(content, Mapping):
        names = ", ".join(repr(str(name)) for name in list(content)[:5])
        return f"a dictionary with the keys {names}" if names else "an empty dictionary"
    return f"an object of type {type(content).__name__}"
