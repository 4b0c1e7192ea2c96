"""Augmentation does what timm's does, and draws from torch's global generator alone."""

import random
from collections import Counter

import numpy as np
import pytest
import timm.data.auto_augment as timm_augment
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from timm.data.random_erasing import RandomErasing as TimmRandomErasing
from torchvision.transforms import ColorJitter as TorchvisionColorJitter
from torchvision.transforms import InterpolationMode
from transformers import ViTImageProcessor

from hf_vitfm.data.augment import _ARGUMENTS, _INCREASING, ColorJitter, RandAugment, RandomErasing
from hf_vitfm.data.transforms import build_transform


FILL = (124, 116, 104)
HEIGHT, WIDTH = 37, 53
INCREASING_IN_TIMM = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}
EXACT = {
    "AutoContrast": [0],
    "Equalize": [0],
    "Invert": [0],
    "Posterize": [1, 2, 4, 8],
    "Solarize": [0, 26, 128, 255, 256],
    "SolarizeAdd": [0, 33, 99, 110],
}
MAGNITUDES = [0, 0.5, 2.3, 5, 8.7, 9, 9.99, 10]


def name_in_timm(name, increasing):
    if name.startswith("Translate"):
        return f"{name}Rel"
    return f"{name}Increasing" if increasing and name in INCREASING_IN_TIMM else name


def picture(kind="photo"):
    """Smooth colours; "photo" has noise on top, "dull" has few grey levels and a channel of only one."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(rows / 9 + k) * np.cos(columns / (7 + k)) for k in range(3)]
    pixels = 128 + 90 * np.stack(waves, axis=-1)
    if kind == "photo":
        pixels += np.random.default_rng(0).normal(scale=25, size=pixels.shape)
    if kind == "dull":
        pixels = pixels * [0.1, 0.0, 0.3] + 60
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)


def p_value(ours, theirs):
    """Of the hypothesis that both samples come from one distribution."""
    return ks_2samp(ours, theirs, method="asymp").pvalue


def differences(name, argument, image, resample=Image.Resampling.BILINEAR, mode=InterpolationMode.BILINEAR):
    """Grey levels between our operation and timm's on Pillow."""
    fill = FILL if image.mode == "RGB" else FILL[:1]
    ours = RandAugment(fill=fill, interpolation=mode)._apply(name, argument, as_tensor(image))
    arguments = [argument] if argument is not None else []
    fillcolor = fill if image.mode == "RGB" else fill[0]
    operation = timm_augment.NAME_TO_OP[name_in_timm(name, False)]
    theirs = operation(image, *arguments, fillcolor=fillcolor, resample=resample)
    assert ours.dtype == torch.uint8
    return (ours.int() - as_tensor(theirs).int()).abs()


@pytest.mark.parametrize("increasing", [False, True])
def test_operations_and_their_ranges_are_those_of_timm(increasing, monkeypatch):
    ours = _INCREASING if increasing else _ARGUMENTS
    expected = timm_augment.rand_augment_choices("", increasing)
    assert [name_in_timm(name, increasing) for name in ours] == expected
    for sign, draw in ((1, 0.2), (-1, 0.8)):
        monkeypatch.setattr(timm_augment.random, "random", lambda draw=draw: draw)
        for name, argument in ours.items():
            level_to_argument = timm_augment.LEVEL_TO_ARG[name_in_timm(name, increasing)]
            if level_to_argument is not None:
                for magnitude in MAGNITUDES:
                    assert (argument(magnitude / 10, sign),) == level_to_argument(magnitude, {}), (name, magnitude)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["photo", "dull"])
@pytest.mark.parametrize("name", EXACT)
def test_tables_of_grey_levels_agree_bit_for_bit(name, kind, mode):
    image = picture(kind).convert(mode)
    for argument in EXACT[name]:
        given = None if name in ("AutoContrast", "Equalize", "Invert") else argument
        assert differences(name, given, image).max() == 0, argument


def test_no_bits_left_is_black():
    # Increasing policies get there at magnitude 10. Older versions of Pillow give black too, newer ones an error.
    for bits in (0, -2):
        assert RandAugment()._apply("Posterize", bits, as_tensor(picture())).max() == 0


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancements_agree_to_a_grey_level(name, mode):
    for factor in (0.1, 0.6, 1.0, 1.3, 1.9):
        assert differences(name, factor, picture().convert(mode)).max() <= (2 if factor > 1 else 1), factor


GEOMETRIC = [("Rotate", 30.0), ("ShearX", 0.3), ("ShearY", 0.3), ("TranslateX", 0.45), ("TranslateY", 0.45)]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("name", "largest"), GEOMETRIC)
def test_changes_of_place_agree_to_a_grey_level_inside_and_outside(name, largest, mode):
    for share in (-1, -0.71, -0.13, 0.37, 0.93):
        assert differences(name, share * largest, picture().convert(mode)).max() <= 1, share


@pytest.mark.parametrize(("name", "largest"), GEOMETRIC)
def test_bicubic_changes_of_place_agree_on_smooth_images(name, largest):
    for share in (-0.71, 0.93):
        levels = differences(
            name, share * largest, picture("smooth"), Image.Resampling.BICUBIC, InterpolationMode.BICUBIC
        )
        assert levels.float().mean() < 0.7 and levels.max() <= 4, share


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m7-n9-p0.8-mstd101", "rand-m12-mmax14-mstd1-p1"])
def test_draws_are_distributed_as_timms(text):
    theirs = timm_augment.rand_augment_transform(text, {"img_mean": FILL})
    recorded = []
    for operation in theirs.ops:
        operation.aug_fn = lambda image, *arguments, name=operation.name, **_: recorded.append((name, *arguments))
    counts = [0]
    for _ in range(3000):
        theirs(None)
        counts.append(len(recorded))
    policy = RandAugment.parse(text)
    ours = [policy.draw() for _ in range(3000)]
    assert p_value([len(drawn) for drawn in ours], np.diff(counts)) > 1e-3
    drawn = [
        (name_in_timm(name, policy.increasing), argument)
        for drawn_of_image in ours
        for name, argument in drawn_of_image
    ]
    frequency = Counter(name for name, _ in drawn)
    assert frequency.keys() == {name for name, *_ in recorded}
    assert chisquare(list(frequency.values())).pvalue > 1e-3
    for name in frequency:
        arguments = [float(rest[0]) for other, *rest in recorded if other == name and rest]
        if arguments:
            assert p_value([argument for other, argument in drawn if other == name], arguments) > 1e-4, name


def test_policy_is_read_as_timm_reads_it():
    for text in ("rand", "rand-m9-mstd0.5-inc1", "rand-inc1-n3-m6", "rand-p0.25-mmax30-m15", "rand-mstd101-inc0"):
        ours, theirs = RandAugment.parse(text), timm_augment.rand_augment_transform(text, {"img_mean": FILL})
        operation = theirs.ops[0]
        assert ours.num_layers == theirs.num_layers
        assert (ours.magnitude, ours.probability) == (operation.magnitude, operation.prob)
        assert ours.max_magnitude == (operation.magnitude_max or 10)
        assert (ours.magnitude_std > 100) == (operation.magnitude_std == float("inf"))
        assert ours.magnitude_std > 100 or ours.magnitude_std == operation.magnitude_std
        assert ours.increasing == any(op.name == "PosterizeIncreasing" for op in theirs.ops)
    assert RandAugment.parse("rand-mstdinf").magnitude_std == float("inf")


@pytest.mark.parametrize(
    "text",
    ["", "v0", "rand-", "rand-9", "rand-m9-m9", "rand-m9.5", "rand-minf", "rand-n0", "rand-p2", "rand-pinf", "rand-inc2",
     "rand-tweights", "Rand-m9", "rand-m-9", "rand-mmax0", 9],
)  # fmt: skip
def test_unknown_policies_are_refused(text):
    with pytest.raises(ValueError, match="`auto_augment` must be .*'rand-m9-mstd0.5-inc1'.* got"):
        RandAugment.parse(text)


def test_steps_come_in_timms_order_with_the_mean_as_fill():
    processor = ViTImageProcessor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    transform = build_transform(processor, train=True, auto_augment="rand-m9", random_erasing=0.25)
    names = [type(step).__name__ for step in transform.steps]
    assert names == ["_ToTensor", "_RandomResizedCrop", "_RandomFlip", "RandAugment", "_Normalize", "RandomErasing"]
    assert transform.steps[3].fill == FILL  # what timm makes of this mean
    assert transform.steps[3].interpolation == InterpolationMode.BILINEAR
    assert build_transform(ViTImageProcessor(), train=True, auto_augment="rand").steps[3].fill == (128, 128, 128)
    raw = ViTImageProcessor(do_normalize=False)
    assert build_transform(raw, train=True, auto_augment="rand").steps[3].fill == (128,)
    jittered = build_transform(processor, train=True, color_jitter=0.4)
    assert [type(step).__name__ for step in jittered.steps][3:] == ["ColorJitter", "_Normalize"]


def test_nothing_is_added_where_nothing_is_on():
    transform = build_transform(ViTImageProcessor(), train=True, color_jitter=0.0, horizontal_flip=0.0)
    assert [type(step).__name__ for step in transform.steps] == ["_ToTensor", "_RandomResizedCrop", "_Normalize"]


def test_a_grey_image_is_augmented_like_its_rgb_copy():
    processor = ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.485, 0.456, 0.406])
    transform = build_transform(processor, train=True, auto_augment="rand-m9-n1-p1-inc1")
    grey = picture().convert("L")
    for seed in range(80):
        views = []
        for image in (grey, grey.convert("RGB")):
            torch.manual_seed(seed)
            views.append(transform(image))
        assert views[0].shape == views[1].shape == (3, 24, 24)
        # In grey levels; torchvision takes the luma of RGB up to one too low.
        assert ((views[0] - views[1]) * 127.5).abs().max() < 2.5


def test_randomness_comes_from_torchs_global_generator_alone(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a foreign generator was used")

    image = picture()
    for module, name in ((random, "random"), (random, "randint"), (np.random, "rand"), (np.random, "default_rng")):
        monkeypatch.setattr(module, name, forbidden)
    processor = ViTImageProcessor(size={"height": 24, "width": 24})
    for options in ({"auto_augment": "rand-n4-mstd2-p1", "random_erasing": 1.0}, {"color_jitter": 0.5}):
        transform = build_transform(processor, train=True, **options)
        for seed in range(20):
            views = []
            for _ in range(2):
                torch.manual_seed(seed)
                views.append(transform(image))
            assert torch.equal(*views)
            assert not torch.equal(transform(image), views[0])


def test_jitter_is_distributed_as_torchvisions():
    image = Image.fromarray(np.array([[[200, 90, 60], [30, 60, 80]], [[120, 110, 130], [10, 20, 10]]], dtype=np.uint8))
    ours, theirs = ColorJitter(0.4), TorchvisionColorJitter(0.4, 0.4, 0.4)
    pixels = [torch.stack([draw().float().flatten() for _ in range(2500)])
              for draw in (lambda: ours(as_tensor(image)), lambda: as_tensor(theirs(image)))]  # fmt: skip
    spread = pixels[0].std(0)
    assert spread.max() > 20
    assert ((pixels[0].mean(0) - pixels[1].mean(0)).abs() < 0.1 * spread + 1.5).all()
    assert ((spread / pixels[1].std(0)).log().abs() < 0.1).all()


def test_erased_boxes_are_distributed_as_timms():
    steps = (RandomErasing(0.6), TimmRandomErasing(0.6, mode="pixel", device="cpu"))
    boxes = []
    for step in steps:
        found = []
        for _ in range(2000):
            rows, columns = step(torch.zeros(1, 48, 64))[0].nonzero(as_tuple=True)
            if len(rows):
                top, left = int(rows.min()), int(columns.min())
                found.append((top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left))
        assert abs(len(found) / 2000 - 0.6) < 0.04
        boxes.append(np.array(found).T)
    assert all(p_value(*pair) > 1e-3 for pair in zip(*boxes, strict=True))
    assert p_value(*(sizes[2] * sizes[3] for sizes in boxes)) > 1e-3


def test_erased_pixels_are_normal_noise_and_the_others_stay():
    noise = []
    for _ in range(200):
        image = torch.full((3, 24, 24), 7.0)
        erased = RandomErasing(1.0)(image.clone())
        inside = (erased != image).all(0)
        assert torch.equal(erased[:, ~inside], image[:, ~inside])
        noise.append(erased[:, inside].flatten())
    noise = torch.cat(noise)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(RandomErasing(1.0)(torch.ones(3, 1, 300)), torch.ones(3, 1, 300))
