"""open_clip's preprocessing (`preprocess_cfg`) and transformers' image processors, in both directions."""

import transformers

from ..models.configuration_base import as_pair
from .center_crop import PROCESSORS


OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_ADVICE = "Take the transform that `open_clip.create_model_and_transforms` returns."


def our_image_processor(preprocess_cfg: dict, image_size, backend: str | None = None):
    """The image processor that does what open_clip's transform for evaluation does.

    Args:
        preprocess_cfg: fields `mean`, `std`, `interpolation`, `resize_mode`; those that are not there are OpenAI's.
        image_size: pixels, one number or (height, width), of the model's images.
        backend: "torchvision" or "pil"; by default torchvision.

    Raises:
        ValueError: for a way to resize that no image processor of transformers has.
    """
    height, width = as_pair(image_size)
    given = {name: value for name, value in preprocess_cfg.items() if value is not None}
    mode, interpolation = given.get("resize_mode", "shortest"), given.get("interpolation", "bicubic")
    # "random" is for training; open_clip evaluates such models with bicubic interpolation.
    interpolation = "bicubic" if interpolation == "random" else interpolation
    if interpolation not in RESAMPLE:
        raise ValueError(f"`interpolation` must be one of bilinear, bicubic, random; got {interpolation!r}. {_ADVICE}")
    if mode == "squash":
        geometry = {"size": {"height": height, "width": width}, "do_center_crop": False}
    elif mode == "shortest" and height == width:
        geometry = {"size": {"shortest_edge": height}, "crop_size": {"height": height, "width": width}}
    else:
        raise ValueError(
            f"No image processor of transformers resizes to {height}x{width} pixels with `resize_mode={mode!r}`. {_ADVICE}"
        )
    statistics = {"image_mean": given.get("mean", OPENAI_MEAN), "image_std": given.get("std", OPENAI_STD)}
    statistics = {name: [value] * 3 if isinstance(value, float) else list(value) for name, value in statistics.items()}
    return PROCESSORS[backend or "torchvision"](**geometry, **statistics, resample=RESAMPLE[interpolation])


def their_preprocess_cfg(image_processor: transformers.BaseImageProcessor | None, image_size) -> dict:
    """open_clip's fields for an image processor; its defaults, which are OpenAI's, for None.

    Args:
        image_processor: transformers'.
        image_size: pixels of the model's images, to which the processor must bring them.

    Raises:
        ValueError: if open_clip has no such transform.
    """
    if image_processor is None:
        return {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    height, width = as_pair(image_size)
    given = image_processor.to_dict()
    size = {name: value for name, value in dict(given.get("size") or {}).items() if value}
    crop = dict(given.get("crop_size") or {}) if given.get("do_center_crop") else None
    modes = {name: number for number, name in RESAMPLE.items()}
    whole = {"height": height, "width": width}
    if height == width and size == {"shortest_edge": height} and crop == whole:
        mode = "shortest"
    else:
        mode = "squash" if size == whole and crop in (None, whole) else None
    is_plain = all(given.get(name) for name in ("do_resize", "do_rescale", "do_normalize"))
    is_plain = is_plain and abs(given["rescale_factor"] * 255 - 1) < 1e-6
    if mode is None or not is_plain or given["resample"] not in modes:
        raise ValueError(
            f"open_clip cannot prepare images as this {type(image_processor).__name__} does: it resizes them to "
            f"{height}x{width} pixels, with or without a centre crop of that size after it, by bilinear or bicubic "
            "interpolation, rescales them by 1/255 and normalises."
        )
    return {
        "mean": tuple(given["image_mean"]),
        "std": tuple(given["image_std"]),
        "interpolation": modes[given["resample"]],
        "resize_mode": mode,
    }
