"""Which format a source has, and its conversion to ours."""

from torch import Tensor

from . import transformers_vit
from .files import read_state_dict


READERS = {transformers_vit.MODEL_TYPE: transformers_vit.read}


def read_checkpoint(model_class: type, source, saved: dict, **where) -> tuple[dict, dict[str, Tensor]]:
    """Read a checkpoint that this library did not write.

    Args:
        model_class: our class that is to be built.
        source: folder or Hub id.
        saved: its config.json, {} if it has none.
        **where: `revision`, `token`, `subfolder`, ... as `from_pretrained` takes them.

    Returns:
        Fields of our configuration, and weights under our names.

    Raises:
        ValueError: if the format is not known, or the weights do not match their configuration.
    """
    model_type = saved.get("model_type")
    if model_type not in READERS:
        found = f"`model_type` {model_type!r}" if model_type else "no config.json with a `model_type`"
        raise ValueError(
            f"{model_class.__name__} cannot read {str(source)!r}: {found}. Readable are folders and Hub repositories "
            f"that this library saved ({model_class.config_class.model_type!r}) or with `model_type` "
            f"{', '.join(repr(name) for name in READERS)} (transformers)."
        )
    return READERS[model_type](model_class, saved, read_state_dict(source, **where))
