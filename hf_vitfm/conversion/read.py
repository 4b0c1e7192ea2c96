"""Reading a checkpoint of any format as one of our models."""

import logging
from collections.abc import Mapping

from torch import Tensor

from .adapters import warn_of_adapters
from .detect import detect
from .limits import check_config, check_size, count_values, refuse_whole_numbers
from .source import Candidate, Source


logger = logging.getLogger(__name__)

UNTOLD = ("num_attention_heads", "decoder_num_attention_heads")  # fields that no tensor's shape depends on


def read_checkpoint(
    model_class: type, source, source_format: str | None = None, given: Mapping | None = None, **where
) -> tuple[dict, dict[str, Tensor]]:
    """Read a checkpoint that is not a folder or repository of this class's own format.

    Args:
        model_class: our class that is to be built.
        source: folder, weight file or Hub id.
        source_format: name of the format, where the source has several or is not recognised.
        given: fields of our configuration that replace what the source says, for those that it does not say.
        **where: `revision`, `token`, `subfolder`, ... as `from_pretrained` takes them.

    Returns:
        Fields of our configuration, and weights under our names.

    Raises:
        ValueError: if the format is not known, the weights do not match their configuration, or are no numbers with
            a fraction.
        OSError: if files are missing or cannot be reached.
    """
    place = Source(source, **where)
    found = detect(place, source_format, model_class)
    warn_of_adapters(place)
    saved = found.candidate.config
    opened = found.candidate.state_dict()
    check_config(saved, len(opened))
    try:
        config, state_dict = found.format.reader(model_class)(model_class, saved, dict(opened))
    except ValueError:
        raise
    except Exception as error:
        # A reader takes files to be as their library writes them; the ways in which they can be damaged have no end.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{str(source)!r} looks like {found.format.name}'s format, and its configuration or weights are not as that "
            f"has them ({type(error).__name__}: {reason}). The files are damaged or of another kind."
        ) from error
    if all(file.endswith(".safetensors") for file in found.candidate.weights().files):
        state_dict = _mapped_anew(state_dict, opened, found.candidate)
    config = filled_in(config, given or {})
    refuse_whole_numbers(source, [name for name, tensor in state_dict.items() if not tensor.is_floating_point()])
    dtype = saved.get("dtype") or saved.get("torch_dtype")  # what to load as, which the file's own may not be
    config = {**config, "dtype": dtype} if dtype else config
    architectures = saved.get("architectures")
    if isinstance(architectures, list) and model_class.__name__ in architectures:  # then a head belongs to it
        config = {**config, "architectures": [model_class.__name__]}
    check_size(model_class, config, count_values({name: tensor.shape for name, tensor in state_dict.items()}))
    return config, state_dict


def _mapped_anew(state_dict: dict[str, Tensor], opened: dict[str, Tensor], candidate: Candidate) -> dict[str, Tensor]:
    """The same weights, without the parts of their files that were read only to be copied.

    Safetensors files are mapped into memory, where what was read stays as long as any tensor of the map lives: fused
    weights would be held twice. In a new map nothing has been read yet.

    Args:
        state_dict: weights under our names, new ones and some of `opened`.
        opened: the tensors of the files.
        candidate: what they were read from.
    """
    whole = {(tensor.data_ptr(), tensor.numel()): name for name, tensor in opened.items() if tensor.is_contiguous()}
    memory = {tensor.untyped_storage().data_ptr() for tensor in opened.values()}
    again = candidate.state_dict()
    kept = {}
    for name, tensor in state_dict.items():
        theirs = whole.get((tensor.data_ptr(), tensor.numel()))
        if theirs in again and tensor.is_contiguous() and tensor.dtype == again[theirs].dtype:
            tensor = again[theirs].view(tensor.shape)
        elif tensor.untyped_storage().data_ptr() in memory:  # a part, or turned: a token, a transposed projection
            tensor = tensor.clone()
        kept[name] = tensor
    return kept


def filled_in(config: dict, given: Mapping) -> dict:
    """A configuration with what weights alone do not tell: no shape depends on the number of heads.

    Args:
        config: fields of our configuration; None stands for a number that is not known.
        given: fields that the caller gave.

    Raises:
        ValueError: if a number is neither known nor given.
    """
    for name in UNTOLD:
        if name in config and config[name] is None:
            if given.get(name) is None:
                raise ValueError(
                    f"The weights do not tell `{name}`, and no published model has their width. Pass it: "
                    f"`from_pretrained(..., {name}=...)`."
                )
            config = {**config, name: given[name]}
    return config
