"""Random changes of an image after its crop: RandAugment, colour jitter, random erasing.

Randomness comes from torch's global generator alone, so seeding it before a call fixes the result. All but random
erasing work on uint8 tensors (channels, height, width), the channels being 1 (grey) or 3.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional


_GRID_MODES = {
    InterpolationMode.NEAREST_EXACT: "nearest",
    InterpolationMode.BILINEAR: "bilinear",
    InterpolationMode.BICUBIC: "bicubic",
    InterpolationMode.LANCZOS: "bicubic",  # Lanczos is for changes of size only, in Pillow too
}


def _enhance(share: float, sign: int) -> float:
    return share * 1.8 + 0.1


def _enhance_increasing(share: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * share * 0.9)


# What magnitude 10 x share means to an operation, with a random sign where it has a direction.
# Ranges and rounding are those of timm's `rand-...` policies.
_ARGUMENTS: dict[str, Callable[[float, int], float]] = {
    "AutoContrast": lambda share, sign: 0,
    "Equalize": lambda share, sign: 0,
    "Invert": lambda share, sign: 0,
    "Rotate": lambda share, sign: sign * share * 30.0,  # degrees, against the clock
    "Posterize": lambda share, sign: int(share * 4),  # bits that stay: fewer for a *smaller* magnitude
    "Solarize": lambda share, sign: min(256, int(share * 256)),  # threshold: lower for a *smaller* magnitude
    "SolarizeAdd": lambda share, sign: min(128, int(share * 110)),  # grey levels
    "Color": _enhance,
    "Contrast": _enhance,
    "Brightness": _enhance,
    "Sharpness": _enhance,
    "ShearX": lambda share, sign: sign * share * 0.3,
    "ShearY": lambda share, sign: sign * share * 0.3,
    "TranslateX": lambda share, sign: sign * share * 0.45,  # share of the width
    "TranslateY": lambda share, sign: sign * share * 0.45,
}
# Policies with `inc1`: a larger magnitude always changes the image more.
_INCREASING = _ARGUMENTS | {
    "Posterize": lambda share, sign: 4 - int(share * 4),
    "Solarize": lambda share, sign: 256 - min(256, int(share * 256)),
    "Color": _enhance_increasing,
    "Contrast": _enhance_increasing,
    "Brightness": _enhance_increasing,
    "Sharpness": _enhance_increasing,
}


def _auto_contrast(image: Tensor) -> Tensor:
    """Stretch every channel to 0..255; in float64, where it agrees with Pillow bit for bit."""
    lowest, highest = (edge.double() for edge in image.flatten(1).aminmax(dim=1))
    flat = highest <= lowest
    scale = torch.where(flat, 1.0, 255.0 / (highest - lowest))
    offset = torch.where(flat, 0.0, -lowest * scale)
    return (image * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)).clamp_(0, 255).to(torch.uint8)


def _solarize(image: Tensor, threshold: int) -> Tensor:
    # 255 - pixel is pixel xor 255.
    return (image >= threshold).to(torch.uint8).mul_(255).bitwise_xor_(image) if threshold < 256 else image


def _sharpen(image: Tensor, factor: float) -> Tensor:
    """Move away from a 3 x 3 blur (centre 5/13, the others 1/13), in whole numbers; borders stay as they are."""
    if min(image.shape[-2:]) < 3:
        return image
    pixels = image.to(torch.int16)
    sums = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:]
    centre = pixels[..., 1:-1, 1:-1]
    blurred = (sums + 4 * centre + 6).div_(13, rounding_mode="floor")
    sharp = image.clone()
    sharp[..., 1:-1, 1:-1] = torch.lerp(blurred.float(), centre.float(), factor).clamp_(0, 255).to(torch.uint8)
    return sharp


_CHANGES_OF_COLOUR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": lambda image, _: _auto_contrast(image),
    "Equalize": lambda image, _: functional.equalize(image),
    "Invert": lambda image, _: functional.invert(image),
    "Posterize": lambda image, bits: functional.posterize(image, min(max(bits, 0), 8)),
    "Solarize": _solarize,
    "SolarizeAdd": lambda image, levels: (image < 128).to(torch.uint8).mul_(levels).add_(image),
    "Color": functional.adjust_saturation,
    "Contrast": functional.adjust_contrast,
    "Brightness": functional.adjust_brightness,
    "Sharpness": _sharpen,  # torchvision's convolution takes five times as long as Pillow
}


def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


# Argument, height, width -> (a, b, c, d, e, f): output pixel (x, y) is taken from input (ax + by + c, dx + ey + f).
_CHANGES_OF_PLACE: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    "Rotate": _rotation,
    "ShearX": lambda factor, height, width: (1, factor, 0, 0, 1, 0),
    "ShearY": lambda factor, height, width: (1, 0, 0, factor, 1, 0),
    "TranslateX": lambda share, height, width: (1, 0, share * width, 0, 1, 0),
    "TranslateY": lambda share, height, width: (1, 0, 0, 0, 1, share * height),
}


def _warp(image: Tensor, matrix: Sequence[float], fill: Sequence[int], mode: str) -> Tensor:
    """What Pillow's affine transform gives: the border is sharp, and outside of it is the fill colour."""
    height, width = image.shape[-2:]
    a, b, c, d, e, f = matrix
    columns, rows = torch.arange(width) + 0.5, torch.arange(height).unsqueeze(1) + 0.5
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    grid = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], dim=-1)
    # torchvision's own `affine` fades the border and has no bicubic interpolation.
    warped = grid_sample(image[None].float(), grid[None], mode, padding_mode="border", align_corners=False)[0]
    # A grey image gets three channels here if the fill colour is not grey.
    colour = torch.tensor(fill[:1] if len(set(fill)) == 1 else fill, dtype=torch.uint8).view(-1, 1, 1)
    return torch.where(inside, warped.round_().clamp_(0, 255).to(torch.uint8), colour)


# Key in the text: (field of RandAugment, type, smallest value).
_SECTIONS = {
    "m": ("magnitude", int, 0),
    "n": ("num_layers", int, 1),
    "p": ("probability", float, 0),
    "mstd": ("magnitude_std", float, 0),
    "mmax": ("max_magnitude", int, 1),
    "inc": ("increasing", int, 0),
}


@dataclass(frozen=True)
class RandAugment:
    """Apply operations drawn at random, all of one magnitude (Cubuk et al. 2019), as timm's `rand-...` policies do.

    Two details differ from timm: interpolated values are rounded (Pillow cuts them off), and bicubic interpolation
    has the coefficient -0.75 (Pillow's transforms: -1).

    Args:
        magnitude: at least 0; 10 is the end of most ranges.
        num_layers: operations per image, drawn with replacement.
        probability: of each of them, in [0, 1].
        magnitude_std: standard deviation of the magnitude; above 100 it is uniform between 0 and `magnitude`.
        max_magnitude: upper bound of the magnitude drawn.
        increasing: whether to use the operations that all grow with the magnitude.
        fill: colour from outside the image, one or three grey levels in 0..255.
        interpolation: of rotation, shear and translation.
    """

    magnitude: int = 10
    num_layers: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    max_magnitude: int = 10
    increasing: bool = False
    fill: tuple[int, ...] = (128,)
    interpolation: InterpolationMode = InterpolationMode.BICUBIC

    @classmethod
    def parse(
        cls, text: str, fill: tuple[int, ...] = (128,), interpolation: InterpolationMode = InterpolationMode.BICUBIC
    ) -> "RandAugment":
        """Read the notation of timm, in which papers give their policy.

        Args:
            text: such as "rand-m9-mstd0.5-inc1" (DeiT, MAE): `rand`, then in any order m (magnitude, default 10), n
                (operations per image, 2), p (probability of each, 0.5), mstd (0; inf = uniform magnitude), mmax (10)
                and inc (0 or 1, 0).
            fill: see the class.
            interpolation: see the class.

        Raises:
            ValueError: for any other text.
        """
        first, *sections = text.split("-") if isinstance(text, str) else [None]
        found = [re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)", section) for section in sections]
        values = {}
        for key, number in (match.groups() for match in found if match):
            name, kind, smallest = _SECTIONS[key]
            is_right = number.isdecimal() or (kind is float and (key == "mstd" or number != "inf"))
            if is_right and float(number) >= smallest and not (key in ("p", "inc") and float(number) > 1):
                values[name] = kind(number)
        if first != "rand" or len(values) != len(sections):
            raise ValueError(
                "`auto_augment` must be None or a text such as 'rand-m9-mstd0.5-inc1': rand, then any of m (magnitude, "
                "whole number), n (operations per image, from 1), p (probability of each, 0 to 1), mstd (standard "
                "deviation of the magnitude, or inf), mmax (largest magnitude, from 1) and inc (0 or 1), each once; "
                f"got {text!r}."
            )
        values["increasing"] = bool(values.get("increasing"))
        return cls(**values, fill=fill, interpolation=interpolation)

    def draw(self) -> list[tuple[str, float]]:
        """Draw what happens to one image: names of operations with their arguments, in order."""
        arguments = _INCREASING if self.increasing else _ARGUMENTS
        names = tuple(arguments)
        drawn = []
        for _ in range(self.num_layers):
            which, happens, direction, height = torch.rand(4).tolist()
            deviation = torch.randn(()).item()
            if happens >= self.probability:
                continue
            if self.magnitude_std > 100:
                magnitude = self.magnitude * height
            else:
                magnitude = self.magnitude + self.magnitude_std * deviation
            name = names[int(which * len(names))]
            share = min(max(magnitude, 0.0), self.max_magnitude) / 10
            drawn.append((name, arguments[name](share, -1 if direction < 0.5 else 1)))
        return drawn

    def __call__(self, image: Tensor) -> Tensor:
        for name, argument in self.draw():
            image = self._apply(name, argument, image)
        return image

    def _apply(self, name: str, argument: float, image: Tensor) -> Tensor:
        if name in _CHANGES_OF_COLOUR:
            return _CHANGES_OF_COLOUR[name](image, argument)
        matrix = _CHANGES_OF_PLACE[name](argument, *image.shape[-2:])
        return _warp(image, matrix, self.fill, _GRID_MODES[self.interpolation])


_JITTERS = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation in random order, each by a factor within 1 +- `strength`."""

    strength: float

    def __call__(self, image: Tensor) -> Tensor:
        lowest, highest = max(0.0, 1 - self.strength), 1 + self.strength
        factors = (lowest + (highest - lowest) * torch.rand(3)).tolist()
        for which in torch.randperm(3).tolist():
            image = _JITTERS[which](image, factors[which])
        return image


@dataclass(frozen=True)
class RandomErasing:
    """Put normal noise in place of one rectangle (Zhong et al. 2017) of a normalised float tensor, in place.

    The rectangle takes 2% to a third of the area; height / width is between 0.3 and 1 / 0.3. Noise is drawn for every
    pixel and channel, with mean 0 and variance 1.

    Args:
        probability: that anything is erased, in [0, 1].
    """

    probability: float

    def __call__(self, image: Tensor) -> Tensor:
        if torch.rand(()).item() < self.probability:
            top, left, height, width = self._draw_box(*image.shape[-2:])
            box = image[:, top : top + height, left : left + width]
            box.copy_(torch.randn(box.shape))
        return image

    def _draw_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area, shape, down, right = torch.rand(4).tolist()
            area = height * width * (0.02 + (1 / 3 - 0.02) * area)
            ratio = math.exp(math.log(0.3) * (1 - 2 * shape))
            box_height, box_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if box_height < height and box_width < width:
                top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
                return top, left, box_height, box_width
        return 0, 0, 0, 0  # no box fits a very long image: nothing is erased
