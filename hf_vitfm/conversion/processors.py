"""The image processor and the tokenizer that belong to a checkpoint."""

import math

from transformers import AutoImageProcessor, AutoTokenizer

from ..models.configuration_base import as_pair
from .center_crop import PROCESSORS
from .detect import Detected, detect
from .hide_tokens import hide_tokens
from .source import WHERE, Source


_MAX_SIDE = 2**16  # pixels
_NO_CODE = {"trust_remote_code": False}  # left open, transformers asks at the terminal whether to run it


def load_image_processor(source, image_size=None, source_format: str | None = None, **kwargs):
    """Load transformers' image processor of a checkpoint.

    Args:
        source: folder, weight file or Hub id, in any format that `from_pretrained` reads.
        image_size: pixels, one number or (height, width): set the processor to this size, as for a model that is
            loaded with the same `image_size`. A resize before a centre crop keeps its proportion to it.
        source_format: as in `from_pretrained`, for a source that has several.
        **kwargs: passed on (`revision`, `token`, `subfolder`, ...).

    Raises:
        FileNotFoundError: if the source is a path that does not exist.
        OSError: if the source has no preprocessor_config.json and is of a format that needs one.
        ValueError: if it says nothing of preprocessing in any format that is known.
    """
    place, rest = _split(source, kwargs)
    is_ours = source_format is None and any(map(place.find, ("preprocessor_config.json", "processor_config.json")))
    found = None if is_ours else _detected(place, source_format)
    if found is not None and found.format.image_processor is not None:
        processor = _built(place, found, rest)
    else:
        processor = _transformers_image_processor(place, kwargs)
    _check_sound(place, processor)
    if image_size is not None:
        _set_size(processor, image_size)
    return processor


def load_tokenizer(source, source_format: str | None = None, **kwargs):
    """Load transformers' tokenizer of a checkpoint.

    Args:
        source: folder, weight file or Hub id, in any format that `from_pretrained` reads.
        source_format: as in `from_pretrained`, for a source that has several.
        **kwargs: passed on (`revision`, `token`, `subfolder`, ...).

    Raises:
        FileNotFoundError: if the source is a path that does not exist.
        OSError: if the source has no files of a tokenizer, or they cannot be read.
    """
    place, _ = _split(source, kwargs)
    has_files = source_format is None and any(
        map(place.find, ("tokenizer_config.json", "tokenizer.json", "vocab.json"))
    )
    found = None if has_files else _detected(place, source_format)
    if found is not None and found.format.tokenizer is not None:
        elsewhere = {name: value for name, value in place.where.items() if name not in ("revision", "subfolder")}
        return found.format.tokenizer(found.candidate.config, **elsewhere)  # its files are in another repository
    return _transformers_tokenizer(place, kwargs)


def _split(source, kwargs: dict) -> tuple[Source, dict]:
    """(the source, the arguments that do not say where it is)."""
    if kwargs.get("trust_remote_code"):
        raise ValueError(
            "`trust_remote_code=True` is not taken here: no code of a checkpoint is run. For a class of its own use "
            "transformers' `AutoImageProcessor` or `AutoTokenizer`, which run it when told to."
        )
    where = {name: kwargs[name] for name in WHERE if name in kwargs}
    return Source(source, **where), {name: value for name, value in kwargs.items() if name not in where}


def _detected(place: Source, source_format: str | None) -> Detected | None:
    try:
        return detect(place, source_format)
    except (OSError, ValueError):
        if source_format is not None:
            raise
        return None  # a processor may lie alone; what is missing is said by transformers' loader


def _built(place: Source, found: Detected, rest: dict):
    """The image processor that a format's own configuration describes.

    Raises:
        ValueError: if that is damaged.
    """
    try:
        return found.format.image_processor(found.candidate.config, found.candidate.shapes, **rest)
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:  # what a wrong value raises depends on who uses it first
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The preprocessing that {place.name!r} describes is damaged ({type(error).__name__}: {reason})."
        ) from error


def _check_sound(place: Source, processor) -> None:
    """Refuse numbers that no image can be prepared by, or that would make each of its pixels infinite.

    Raises:
        ValueError: if there are any.
    """
    found = {name: getattr(processor, name, None) for name in ("image_mean", "image_std", "rescale_factor")}
    if getattr(processor, "do_resize", False):
        found["size"] = getattr(processor, "size", None)
    if getattr(processor, "do_center_crop", False):
        found["crop_size"] = getattr(processor, "crop_size", None)
    for name, value in found.items():
        try:
            is_sound = value is None or _IS_SOUND[name](value)
        except (TypeError, ValueError):  # no number at all
            is_sound = False
        if not is_sound:
            raise ValueError(
                f"The preprocessing that {place.name!r} describes is damaged: `{name}` is {str(value)[:200]}. Fetch its files "
                "again, or build a processor, such as transformers' `ViTImageProcessor(size=...)`."
            )


def _is_size(size) -> bool:
    sides = {name: side for name, side in dict(size).items() if side is not None}
    largest = {name: _MAX_SIDE**2 if name.endswith("_pixels") else _MAX_SIDE for name in sides}
    return bool(sides) and all(0 < side <= largest[name] for name, side in sides.items())


def _numbers(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


_IS_SOUND = {
    "image_mean": lambda value: all(map(math.isfinite, _numbers(value))),
    "image_std": lambda value: all(0 < number < math.inf for number in _numbers(value)),
    "rescale_factor": lambda value: 0 < value < math.inf,
    "size": _is_size,
    "crop_size": _is_size,
}


def _transformers_image_processor(place: Source, kwargs: dict):
    try:
        processor = AutoImageProcessor.from_pretrained(place.folder, **{**kwargs, **_NO_CODE, **place.cache_only()})
    except (OSError, TypeError, ValueError) as error:
        reason = "" if isinstance(error, OSError) else f" ({_short(error, kwargs)})"
        raise OSError(
            place.why_absent()
            or f"{place.name!r} has no readable preprocessor_config.json{reason}. Save the processor beside the model "
            "(`processor.save_pretrained(folder)`), or build one, such as transformers' `ViTImageProcessor(size=...)`."
        ) from error
    if getattr(processor, "rounds_center_crop", False) is not True:
        return processor
    own = next((own for own in PROCESSORS.values() if issubclass(own, type(processor))), None)
    return own.from_dict(processor.to_dict()) if own else processor


def _transformers_tokenizer(place: Source, kwargs: dict):
    advice = (
        "Save the tokenizer beside the model (`tokenizer.save_pretrained(folder)`); where there is none, "
        "`hf_vitfm.data.tokenizers.train_tokenizer` makes one from captions."
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.folder, **{**kwargs, **_NO_CODE, **place.cache_only()})
    except Exception as error:  # damaged files end in AttributeError, KeyError, and errors of no class of their own
        short = _short(error, kwargs)
        reason = place.why_absent() or f"{place.name!r} has no tokenizer that can be read: {short} {advice}"
        raise OSError(reason) from error
    # Where files lack, transformers builds the class that config.json calls for, with special tokens and nothing else.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise OSError(f"{place.name!r} has no files of a tokenizer. {advice}")
    return tokenizer


def _short(error: Exception, kwargs: dict) -> str:
    """The beginning of an error's text, for some list all classes there are, without the token."""
    return hide_tokens(next(iter(str(error).splitlines()), type(error).__name__)[:200], kwargs.get("token"))


def _set_size(processor, image_size) -> None:
    height, width = as_pair(image_size)
    old, make = processor.size, type(processor.size)
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else None
    if crop is not None:
        processor.crop_size = make(height=height, width=width)
    short = old.get("shortest_edge")
    if short and crop is not None:
        short = round(short * min(height, width) / min(crop["height"], crop["width"]))
        processor.size = make(shortest_edge=short)
    elif short and height == width:
        processor.size = make(shortest_edge=height)
    elif crop is not None and old.get("height"):  # squashed to more than the crop
        scaled = round(old["height"] * height / crop["height"]), round(old["width"] * width / crop["width"])
        processor.size = make(height=scaled[0], width=scaled[1])
    else:
        processor.size = make(height=height, width=width)
