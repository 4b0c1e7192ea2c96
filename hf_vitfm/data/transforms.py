"""Image transforms that follow a transformers image processor, one image at a time, for evaluation and for training.

A transform is a chain of small steps. They work on uint8 tensors (channels, height, width), where torchvision's
kernels are fastest, until one rescales and normalises to float32. Grey images stay one channel wide until then. EXIF
orientation is not looked at: `decode_image`, `datasets` and `transformers.image_utils.load_image` apply it when they
read a file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from .augment import ColorJitter, RandAugment, RandomErasing


# PIL's numbers, which image processors hold as `resample`. Tensors can be resized in these four ways.
_INTERPOLATIONS = {
    Image.Resampling.NEAREST: InterpolationMode.NEAREST_EXACT,  # the one of torchvision's two that PIL's agrees with
    Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
    Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    Image.Resampling.LANCZOS: InterpolationMode.LANCZOS,
}
_REQUIRED = (
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
_SIZE_KEYS = (
    "height",
    "width",
    "shortest_edge",
    "longest_edge",
    "max_height",
    "max_width",
    "min_pixels",
    "max_pixels",
)


@dataclass(frozen=True)
class TrainOptions:
    """What a training transform draws at random.

    Args:
        crop_scale: smallest and largest share of the image's area that the random resized crop takes, in (0, 1].
        crop_ratio: smallest and largest width / height of that crop, drawn log-uniformly.
        crop_padding: pixels, at least 0. Not None: no resized crop; the image is brought to size as for evaluation,
            framed by that many black pixels (what the CIFAR recipes of torchvision's users do, and what processors
            pad with in a centre crop) and cut back to size at a random place. 0 is the evaluation view.
        crop_antialias: whether that crop is smoothed where it is made smaller; the JAX code of ViT does not.
        horizontal_flip: probability of mirroring left and right, in [0, 1].
        auto_augment: policy in timm's notation, such as "rand-m9-mstd0.5-inc1" (see `RandAugment.parse`). What comes
            into view is filled with the grey level that normalises to 0.
        color_jitter: largest relative change of brightness, contrast and saturation, at least 0, such as 0.4. timm
            leaves it out beside `auto_augment`; here giving both is an error.
        random_erasing: probability of putting noise in place of a rectangle after normalising, in [0, 1].
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int | None = None
    crop_antialias: bool = True
    horizontal_flip: float = 0.5
    auto_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        for name, largest in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            pair = getattr(self, name)
            if not (isinstance(pair, Sequence) and len(pair) == 2 and 0 < pair[0] <= pair[1] <= largest):
                raise ValueError(f"`{name}` must be (smallest, largest), above 0 and up to {largest}; got {pair!r}.")
        padding = self.crop_padding
        if padding is not None and (isinstance(padding, bool) or not isinstance(padding, int) or padding < 0):
            raise ValueError(f"`crop_padding` must be None or a number of pixels, at least 0; got {padding!r}.")
        for name in ("horizontal_flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a probability in [0, 1]; got {getattr(self, name)!r}.")
        if self.color_jitter is not None and not 0 <= self.color_jitter < math.inf:
            raise ValueError(f"`color_jitter` must be None or a strength of at least 0; got {self.color_jitter!r}.")
        if self.auto_augment is not None:
            RandAugment.parse(self.auto_augment)
            if self.color_jitter:
                raise ValueError(
                    "Give `auto_augment` or `color_jitter`, not both (timm would leave the jitter out); got "
                    f"{self.auto_augment!r} and {self.color_jitter!r}."
                )


class ImageTransform:
    """A chain of steps; its `repr` names every step with its settings and is the same in every process."""

    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = tuple(steps)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image

    def __repr__(self) -> str:
        return f"ImageTransform({', '.join(map(repr, self.steps))})"


def build_transform(image_processor: Any, train: bool = False, **options: Any) -> ImageTransform:
    """Build the transform of one image that fits a model's image processor.

    Evaluation gives the pixels that the processor itself gives, several times faster for small images: bit for bit for
    its torchvision backend; for its PIL backend a grey level or two off, more where bicubic interpolation overshoots
    black or white. Two differences are meant: every image becomes RGB (grey if the processor's mean has one number)
    whatever `do_convert_rgb` says, where the processor may fail, and 16-bit images are scaled to 8 bits, where it
    clips them to white.

    Training replaces the processor's resize and crop by random ones to the same size. All randomness is drawn from
    torch's global generator, so seeding it before a call fixes the result.

    Args:
        image_processor: an image processor of transformers (or a processor that holds one) that does no more than
            resize, centre crop, rescale and normalise, as those of ViT, DeiT, Swin, CLIP, BiT and ConvNext do.
        train: whether to build the random training view.
        **options: `interpolation` ("nearest", "bilinear", "bicubic", "lanczos", or the number that PIL gives it;
            default the processor's `resample`) and, for training, the fields of `TrainOptions`:
            crop_scale=(0.08, 1.0), crop_ratio=(3/4, 4/3), crop_padding=None, crop_antialias=True,
            horizontal_flip=0.5, auto_augment=None, color_jitter=None, random_erasing=0.0, applied in this order.

    Returns:
        A callable: PIL image or uint8 tensor (channels, height, width) -> float32 tensor (channels, height, width).

    Raises:
        TypeError: for an unknown option, or one that only training knows.
        ValueError: for a value outside its range, or an image processor that this function cannot follow.
    """
    image_processor = getattr(image_processor, "image_processor", image_processor)
    missing = [name for name in _REQUIRED if not hasattr(image_processor, name)]
    if missing:
        raise ValueError(
            "`image_processor` must be an image processor of transformers, such as `load_image_processor` returns; "
            f"got {type(image_processor).__name__} without {', '.join(missing)}."
        )
    allowed = ["interpolation", *(option.name for option in fields(TrainOptions) if train)]
    unknown = sorted(options.keys() - set(allowed))
    if unknown:
        purpose = "training" if train else "evaluation (`train=False`)"
        raise TypeError(f"unknown option {', '.join(unknown)}; a transform for {purpose} takes {', '.join(allowed)}.")
    interpolation = options.pop("interpolation", None)
    default = _as_interpolation(image_processor.resample, "image_processor.resample")
    _check_agreement(image_processor, _evaluation_transform(image_processor, default))
    chosen = default if interpolation is None else _as_interpolation(interpolation, "interpolation")
    if not train:
        return _evaluation_transform(image_processor, chosen)
    return ImageTransform(_training_steps(image_processor, chosen, TrainOptions(**options)))


def _evaluation_transform(image_processor: Any, interpolation: InterpolationMode) -> ImageTransform:
    normalize = _Normalize.of(image_processor)
    return ImageTransform([_ToTensor(normalize.channels), *_geometry(image_processor, interpolation), normalize])


def _training_steps(
    image_processor: Any, interpolation: InterpolationMode, options: TrainOptions
) -> list[Callable[[Any], Tensor]]:
    """List the steps in their order, which is timm's; a new augmentation is one more line here."""
    geometry, normalize = _geometry(image_processor, interpolation), _Normalize.of(image_processor)
    steps = [_ToTensor(normalize.channels)]
    if options.crop_padding is None:
        size = geometry[-1].size if geometry else None
        square = (size, size) if isinstance(size, int) else size
        if interpolation is InterpolationMode.LANCZOS and not options.crop_antialias:
            raise ValueError("`crop_antialias=False` goes with bilinear or bicubic `interpolation`; got 'lanczos'.")
        scale, ratio = tuple(options.crop_scale), tuple(options.crop_ratio)
        steps.append(_RandomResizedCrop(square, scale, ratio, interpolation, options.crop_antialias))
    else:
        steps += [*geometry, _RandomShift(options.crop_padding)] if options.crop_padding else geometry
    if options.horizontal_flip:
        steps.append(_RandomFlip(options.horizontal_flip))
    if options.auto_augment is not None:
        steps.append(RandAugment.parse(options.auto_augment, normalize.zero_level, interpolation))
    if options.color_jitter:
        steps.append(ColorJitter(options.color_jitter))
    steps.append(normalize)
    if options.random_erasing:
        steps.append(RandomErasing(options.random_erasing))
    return steps


def _geometry(image_processor: Any, interpolation: InterpolationMode) -> list["_Resize | _CenterCrop"]:
    """List the processor's own resize and centre crop; the last step's `size` is the size of the output."""
    steps = []
    crop_pct = getattr(image_processor, "crop_pct", None)
    if image_processor.do_resize:
        size = _read_size(image_processor.size, "image_processor.size")
        if crop_pct is None or not isinstance(size, int):
            steps.append(_Resize(size, interpolation))
        elif size < 384:  # ConvNext: crops that share out of the middle below 384 pixels, squashes from there on
            steps += [_Resize(int(size / crop_pct), interpolation), _CenterCrop((size, size))]
        else:
            steps.append(_Resize((size, size), interpolation))
    if getattr(image_processor, "do_center_crop", None):
        crop_size = _read_size(image_processor.crop_size, "image_processor.crop_size")
        crop_size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        # Of the class: transformers' own, loaded from a file that names this, has it as an attribute and does not do it.
        steps.append(_CenterCrop(crop_size, getattr(type(image_processor), "rounds_center_crop", False)))
    return steps


def _read_size(size: Any, name: str) -> tuple[int, int] | int:
    """Return (height, width), or one int for the length of the shortest edge, in pixels."""
    given = {key: size.get(key) for key in _SIZE_KEYS if size.get(key)} if hasattr(size, "get") else size
    if isinstance(given, Mapping) and given.keys() == {"height", "width"}:
        return int(given["height"]), int(given["width"])
    if isinstance(given, Mapping) and given.keys() == {"shortest_edge"}:
        return int(given["shortest_edge"])
    raise ValueError(
        f'`{name}` must be {{"height": ..., "width": ...}} or {{"shortest_edge": ...}} in pixels; got {given}. '
        "Set one of these on the image processor."
    )


def _as_interpolation(value: Any, name: str) -> InterpolationMode:
    try:
        mode = _INTERPOLATIONS[Image.Resampling(value)] if isinstance(value, int) else InterpolationMode(value)
        mode = InterpolationMode.NEAREST_EXACT if mode is InterpolationMode.NEAREST else mode
    except (KeyError, ValueError):
        mode = None
    if mode not in _INTERPOLATIONS.values():
        allowed = ", ".join(f"{resampling.name.lower()!r} ({resampling.value})" for resampling in _INTERPOLATIONS)
        raise ValueError(f"`{name}` must be one of {allowed}; got {value!r}.")
    return mode


def _check_agreement(image_processor: Any, transform: ImageTransform) -> None:
    """Compare with the processor on one image, since processors of other models do things that no attribute tells."""
    if not callable(image_processor):
        return
    channels = transform.steps[-1].channels
    # Numbers that look random without touching a generator. Odd prime sides leave no ties in nearest interpolation;
    # between 64 and 191 bicubic overshoot is not clipped, which PIL does at another moment.
    pixels = (np.arange(37 * 53 * channels, dtype=np.int64) ** 2 * 7919 % 10007 % 128 + 64).astype(np.uint8)
    image = Image.fromarray(pixels.reshape((37, 53, 3) if channels == 3 else (37, 53)))
    ours = transform(image)
    try:
        theirs = torch.as_tensor(image_processor(images=image, return_tensors="pt")["pixel_values"][0])
        if theirs.shape != ours.shape:
            difference = f"its output is {tuple(theirs.shape)}, not {tuple(ours.shape)}"
        else:
            # In grey levels; the PIL backend rounds otherwise and is up to two off.
            levels = ((ours - theirs).abs() * transform.steps[-1].divisor).max().item()
            difference = f"its output differs by up to {levels:.0f} grey levels" if levels > 2.5 else None
    except Exception as error:
        raise ValueError(f"`image_processor` {type(image_processor).__name__} failed on an image: {error}") from error
    if difference:
        raise ValueError(
            f"`image_processor` {type(image_processor).__name__} does more than resize, centre crop, rescale and "
            f"normalise: {difference}. Give the image processor of a model such as ViT, DeiT, Swin, CLIP, BiT or "
            "ConvNext, or use a transform of your own."
        )


@dataclass(frozen=True)
class _ToTensor:
    """PIL image or uint8 tensor -> uint8 tensor (C, H, W), C being 1 for grey images and `channels` for others."""

    channels: int  # 1 or 3

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Image.Image):
            return self._from_pil(image)
        if not isinstance(image, Tensor) or image.dtype != torch.uint8:
            kind = f"a {image.dtype} tensor" if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"an image must be a PIL image or a uint8 tensor (channels, height, width); got {kind}.")
        if image.dim() != 3 or image.shape[0] not in (1, 3, 4) or image.numel() == 0:
            raise ValueError(
                f"an image tensor must be (channels, height, width) with 1, 3 or 4 channels; got {tuple(image.shape)}."
            )
        if image.shape[0] == 4:
            image = _on_white(image)
        return functional.rgb_to_grayscale(image) if image.shape[0] > self.channels else image

    def _from_pil(self, image: Image.Image) -> Tensor:
        if image.mode.startswith("I"):
            return torch.from_numpy(_to_8_bits(np.asarray(image))).unsqueeze(0)
        if image.mode == "F":
            raise ValueError("an image of floats (PIL mode F) has no known range; convert it to mode L or RGB first.")
        if image.mode in ("LA", "PA", "RGBA", "RGBa") or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        if self.channels == 1 or image.mode == "1":
            image = image if image.mode == "L" else image.convert("L")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        pixels = torch.from_numpy(np.array(image))
        return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)  # (H, W, C) -> (C, H, W)


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale 0..65535 to 0..255, rounding; PIL's own conversion clips at 255. Mode I holds 16-bit files in 32 bits."""
    return ((pixels.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)


def _on_white(image: Tensor) -> Tensor:
    image = functional.to_dtype(image, torch.float32, scale=True)
    return functional.to_dtype(image[:3] * image[3:] + (1 - image[3:]), torch.uint8, scale=True)


@dataclass(frozen=True)
class _Resize:
    """Resize to (height, width), or so that the shortest edge has that many pixels."""

    size: tuple[int, int] | int
    interpolation: InterpolationMode

    def __call__(self, image: Tensor) -> Tensor:
        size = self.size
        if isinstance(size, int):
            height, width = image.shape[-2:]
            # The longer edge is cut off to an int, as image processors do it; torchvision's Resize does the same.
            size = (int(size * height / width), size) if width <= height else (size, int(size * width / height))
        return _resize(image, size, self.interpolation)


def _resize(image: Tensor, size: tuple[int, int], interpolation: InterpolationMode, antialias: bool = True) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return functional.resize(image, list(size), interpolation=interpolation, antialias=antialias)


@dataclass(frozen=True)
class _CenterCrop:
    """Cut (height, width) out of the middle; smaller images are framed in black.

    Half of an odd number of pixels is cut off, as transformers does, or rounded, as torchvision does.
    """

    size: tuple[int, int]
    rounds: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        (height, width), (new_height, new_width) = image.shape[-2:], self.size
        if height < new_height or width < new_width:
            down, right = max(new_height - height, 0), max(new_width - width, 0)
            image = functional.pad(image, [right // 2, down // 2, (right + 1) // 2, (down + 1) // 2])
            height, width = image.shape[-2:]
        middle = round if self.rounds else int
        top, left = middle((height - new_height) / 2), middle((width - new_width) / 2)
        return image[..., top : top + new_height, left : left + new_width]


@dataclass(frozen=True)
class _RandomResizedCrop:
    """Cut out a box of random area and shape and resize it to `size` (None: the image's own size)."""

    size: tuple[int, int] | None
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: InterpolationMode
    antialias: bool

    def __call__(self, image: Tensor) -> Tensor:
        top, left, height, width = self._draw_box(*image.shape[-2:])
        box = image[..., top : top + height, left : left + width]
        return _resize(box, self.size or tuple(image.shape[-2:]), self.interpolation, self.antialias)

    def _draw_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        lowest, highest = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area, shape, down, right = torch.rand(4).tolist()
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
            ratio = math.exp(lowest + (highest - lowest) * shape)
            box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box_height <= height and 0 < box_width <= width:
                return (
                    int(down * (height - box_height + 1)),
                    int(right * (width - box_width + 1)),
                    box_height,
                    box_width,
                )
        # No box fits, for a very long image: the largest of an allowed shape, in the middle.
        box_width = min(width, max(round(height * self.ratio[1]), 1))
        box_height = min(height, max(round(width / self.ratio[0]), 1))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True)
class _RandomShift:
    """Move the image by up to `padding` pixels each way; what comes in from outside is black."""

    padding: int

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        down, right = (int(draw * (2 * self.padding + 1)) - self.padding for draw in torch.rand(2).tolist())
        if not (down or right):
            return image
        shifted = image.new_zeros(image.shape)
        if abs(down) < height and abs(right) < width:
            source = image[..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
            shifted[..., max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)] = source
        return shifted


@dataclass(frozen=True)
class _RandomFlip:
    """Mirror left and right."""

    probability: float

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if torch.rand(1).item() < self.probability else image


@dataclass
class _Normalize:
    """uint8 (C, H, W) -> float32 (channels, H, W): (pixel - offset) / divisor, both in grey levels."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    factor: float | None
    channels: int = field(repr=False)

    @classmethod
    def of(cls, image_processor: Any) -> "_Normalize":
        """Read what the processor does to the values."""
        mean = std = None
        if image_processor.do_normalize:
            mean, std = (
                tuple(values) if isinstance(values, Sequence) else (values,) * 3
                for values in (image_processor.image_mean, image_processor.image_std)
            )
            if len(mean) != len(std) or len(mean) not in (1, 3):
                raise ValueError(f"`image_mean` and `image_std` must have 1 or 3 numbers each; got {mean} and {std}.")
        factor = image_processor.rescale_factor if image_processor.do_rescale else None
        return cls(mean, std, factor, channels=len(mean) if mean else 3)

    @property
    def zero_level(self) -> tuple[int, ...]:
        """The pixel, in grey levels, that becomes 0; middle grey where nothing is subtracted."""
        if self.offset is None:
            return (128,)
        return tuple(min(max(round(level), 0), 255) for level in self.offset.flatten().tolist())

    def __post_init__(self) -> None:
        levels = 1.0 if self.factor is None else 1.0 / self.factor
        # As transformers folds rescaling into mean and standard deviation; in any other order the last bits differ.
        self.offset, self.divisor = (
            None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) * levels
            for values in (self.mean, self.std)
        )
        if self.divisor is None:
            self.divisor = torch.tensor(levels)

    def __call__(self, image: Tensor) -> Tensor:
        image = image.contiguous()
        if self.offset is not None:
            return (image - self.offset).div_(self.divisor)
        image = image.expand(self.channels, -1, -1)
        return image.float() if self.factor is None else image.float() * self.factor
