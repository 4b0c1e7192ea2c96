"""timm's preprocessing, as its `pretrained_cfg` describes it, and transformers' image processors."""

import math

from PIL import Image

from ..models.configuration_base import as_pair
from ..models.configuration_vit import VitfmViTConfig
from .center_crop import PROCESSORS
from .timm_config import Shapes, parse


# What timm takes where a configuration says nothing.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP_SHARE = 0.875


def _input_size(pretrained: dict, args: dict, shapes: Shapes) -> tuple[int, int]:
    size = args.get("img_size") or list(pretrained.get("input_size") or ())[-2:]
    if size:
        return as_pair(size)
    names = {name.removeprefix("timm_model."): name for name in shapes}
    if not {"pos_embed", "patch_embed.proj.weight"} <= set(names):
        return 224, 224
    side = math.isqrt(shapes[names["pos_embed"]][1])  # the square root of one or two rows more is the same number
    height, width = shapes[names["patch_embed.proj.weight"]][2:]
    return side * height, side * width


def image_processor(config: dict, shapes: Shapes | None = None, backend: str | None = None):
    """Transformers' image processor that does what timm's evaluation transform does.

    Args:
        config: a config.json of timm, {} for weights alone: then timm's defaults (ImageNet's mean and standard
            deviation, a bicubic resize, a crop of 87.5 %).
        shapes: of the weights, for the image size where the configuration has none.
        backend: "torchvision" or "pil"; by default torchvision.

    Raises:
        ValueError: for a `crop_mode` that transformers' image processors do not have.
    """
    _, args, pretrained = parse(config)
    height, width = _input_size(pretrained, args, shapes or {})
    share = pretrained.get("crop_pct") or _CROP_SHARE
    scaled = math.floor(height / share), math.floor(width / share)
    mode = pretrained.get("crop_mode") or "center"
    if mode == "squash":
        size = {"height": scaled[0], "width": scaled[1]}
    elif mode == "center" and height == width:
        size = {"shortest_edge": scaled[0]}
    else:
        raise ValueError(
            f"timm's `crop_mode={mode!r}` for images of {height}x{width} has no counterpart among transformers' image "
            'processors (only "squash", and "center" for squares). `timm.data.create_transform` makes the transform.'
        )
    return PROCESSORS[backend or "torchvision"](
        size=size,
        crop_size={"height": height, "width": width},
        do_center_crop=mode == "center" or scaled != (height, width),
        resample=Image.Resampling[(pretrained.get("interpolation") or "bicubic").upper()],
        image_mean=list(pretrained.get("mean") or _MEAN),
        image_std=list(pretrained.get("std") or _STD),
    )


def pretrained_fields(processor, config: VitfmViTConfig) -> dict:
    """The part of timm's `pretrained_cfg` that describes an image processor.

    Args:
        processor: one of transformers' that resizes, crops, rescales to 0..1 and normalises.
        config: of the model that it belongs to.

    Raises:
        ValueError: for a processor that timm's transform cannot follow, naming the setting.
    """
    size, crop = _sides(processor.size), None
    if getattr(processor, "do_center_crop", False):
        crop = _sides(processor.crop_size)
    target = crop or size
    problems = {
        "do_resize": not processor.do_resize,
        "rescale_factor": not processor.do_rescale or not math.isclose(processor.rescale_factor, 1 / 255),
        "size": len(target) != 2
        or (len(size) == 1 and target[0] != target[1])
        or target != as_pair(config.image_size),
    }
    for name, is_wrong in problems.items():
        if is_wrong:
            raise ValueError(
                f"timm cannot hold `{name}={getattr(processor, name)!r}` of the image processor for a model of "
                f"`image_size={config.image_size!r}`: it resizes to that size, or a larger one that is cropped, and "
                "rescales to 0..1."
            )
    share = _crop_share(target, size)
    channels = config.num_channels
    return {
        "interpolation": Image.Resampling(processor.resample).name.lower(),
        "crop_pct": share,
        "crop_mode": "squash" if len(size) == 2 else "center",
        "mean": list(processor.image_mean) if processor.do_normalize else [0.0] * channels,
        "std": list(processor.image_std) if processor.do_normalize else [1.0] * channels,
    }


def _sides(size) -> tuple[int, ...]:
    """(height, width), or the short edge alone; () for a size that says neither."""
    if size.get("shortest_edge"):
        return () if size.get("longest_edge") else (size["shortest_edge"],)
    return (size["height"], size["width"]) if size.get("height") and size.get("width") else ()


def _crop_share(target: tuple[int, int], size: tuple[int, ...]) -> float:
    """The shortest decimal `crop_pct` from which timm computes the size before the crop, rounding down.

    Raises:
        ValueError: if both sides do not have the same.
    """
    pairs = list(zip(target, size, strict=False))  # of one short edge, the first is both
    largest = min(cropped / whole for cropped, whole in pairs)
    for digits in range(1, 10):
        share = math.floor(largest * 10**digits) / 10**digits
        if share > 0 and all(math.floor(cropped / share) == whole for cropped, whole in pairs):
            return share
    raise ValueError(
        f"timm cannot hold `size={size}` with `crop_size={target}`: it crops the same share of height and width."
    )
