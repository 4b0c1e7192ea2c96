"""Reading a checkpoint of any format as one of our models."""

import logging

from torch import Tensor

from .detect import detect
from .source import Source


logger = logging.getLogger(__name__)


def read_checkpoint(
    model_class: type, source, source_format: str | None = None, **where
) -> tuple[dict, dict[str, Tensor]]:
    """Read a checkpoint that is not a folder or repository of this class's own format.

    Args:
        model_class: our class that is to be built.
        source: folder, weight file or Hub id.
        source_format: name of the format, where the source has several or is not recognised.
        **where: `revision`, `token`, `subfolder`, ... as `from_pretrained` takes them.

    Returns:
        Fields of our configuration, and weights under our names.

    Raises:
        ValueError: if the format is not known, the weights do not match their configuration, or are no numbers with
            a fraction.
        OSError: if files are missing or cannot be reached.
    """
    found = detect(Source(source, **where), source_format, model_class)
    saved = found.candidate.config
    state_dict = found.candidate.state_dict()
    try:
        config, state_dict = found.format.reader(model_class)(model_class, saved, state_dict)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        # A reader takes files to be as their library writes them; the ways in which they can be damaged have no end.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{str(source)!r} looks like {found.format.name}'s format, and its configuration or weights are not as that "
            f"has them ({type(error).__name__}: {reason}). The files are damaged or of another kind."
        ) from error
    whole = sorted(name for name, tensor in state_dict.items() if not tensor.is_floating_point())
    if whole:
        raise ValueError(
            f"{len(whole)} weights of {str(source)!r} are not floating-point numbers: {', '.join(whole[:5])}. The file is "
            "damaged, or quantised in a way that is not read; use the unquantised weights."
        )
    dtype = saved.get("dtype") or saved.get("torch_dtype")  # what to load as, which the file's own may not be
    return ({**config, "dtype": dtype} if dtype else config), state_dict
