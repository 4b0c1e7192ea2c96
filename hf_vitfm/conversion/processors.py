"""The image processor and the tokenizer that belong to a checkpoint."""

from transformers import AutoImageProcessor, AutoTokenizer

from .files import check_source


def load_image_processor(source, image_size=None, **kwargs):
    """Load transformers' image processor of a checkpoint.

    Args:
        source: folder or Hub id, in any format that `from_pretrained` reads.
        image_size: pixels, one number or (height, width): set the processor to this size, as for a model that is
            loaded with the same `image_size`. A resize of the short side before a centre crop keeps its proportion.
        **kwargs: passed on (`revision`, `token`, `subfolder`, ...).

    Raises:
        FileNotFoundError: if the source is a path that does not exist.
        OSError: if the source has no preprocessor_config.json.
    """
    check_source(source)
    try:
        processor = AutoImageProcessor.from_pretrained(source, **kwargs)
    except OSError as error:
        raise OSError(
            f"{str(source)!r} has no readable preprocessor_config.json. Save the processor beside the model "
            "(`processor.save_pretrained(folder)`), or build one, such as transformers' `ViTImageProcessor(size=...)`."
        ) from error
    if image_size is not None:
        _set_size(processor, image_size)
    return processor


def load_tokenizer(source, **kwargs):
    """Load transformers' tokenizer of a checkpoint.

    Args:
        source: folder or Hub id, in any format that `from_pretrained` reads.
        **kwargs: passed on (`revision`, `token`, `subfolder`, ...).

    Raises:
        FileNotFoundError: if the source is a path that does not exist.
        OSError: if the source has no files of a tokenizer, or they cannot be read.
    """
    check_source(source)
    advice = (
        "Save the tokenizer beside the model (`tokenizer.save_pretrained(folder)`); where there is none, "
        "`hf_vitfm.data.tokenizers.train_tokenizer` makes one from captions."
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
    except Exception as error:  # damaged files end in AttributeError, KeyError, and errors of no class of their own
        raise OSError(f"{str(source)!r} has no tokenizer that can be read: {error} {advice}") from error
    # Where files lack, transformers builds the class that config.json calls for, with special tokens and nothing else.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise OSError(f"{str(source)!r} has no files of a tokenizer. {advice}")
    return tokenizer


def _set_size(processor, image_size) -> None:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    short = processor.size.get("shortest_edge")
    if short and getattr(processor, "do_center_crop", False):
        old = min(processor.crop_size["height"], processor.crop_size["width"])
        processor.size = type(processor.size)(shortest_edge=round(short * min(height, width) / old))
        processor.crop_size = type(processor.crop_size)(height=height, width=width)
    elif short and height == width:
        processor.size = type(processor.size)(shortest_edge=height)
    else:
        processor.size = type(processor.size)(height=height, width=width)
