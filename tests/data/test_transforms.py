import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    ConvNextImageProcessor,
    ConvNextImageProcessorPil,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    LevitImageProcessor,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from hf_vitfm.data.transforms import build_transform


NEAREST, BILINEAR, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
SIZES = [(24, 24), (57, 41), (30, 90), (11, 13)]  # width, height
SQUASH = {"height": 24, "width": 24}
PROCESSORS = {
    "vit": lambda **options: ViTImageProcessor(size=SQUASH, do_convert_rgb=True, **options),
    "vit oblong": lambda **options: ViTImageProcessor(
        size={"height": 20, "width": 32}, do_convert_rgb=True, **options
    ),
    "deit": lambda **options: DeiTImageProcessor(
        size={"height": 28, "width": 28}, crop_size=SQUASH, do_convert_rgb=True, **options
    ),
    "clip": lambda **options: CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=SQUASH, **options),
    "clip, crop larger": lambda **options: CLIPImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 25, "width": 24}, **options
    ),
    "bit": lambda **options: BitImageProcessor(size={"shortest_edge": 26}, crop_size=SQUASH, **options),
    "convnext": lambda **options: ConvNextImageProcessor(size={"shortest_edge": 24}, do_convert_rgb=True, **options),
    "convnext crop_pct": lambda **options: ConvNextImageProcessor(
        size={"shortest_edge": 24}, crop_pct=0.7, do_convert_rgb=True, **options
    ),
    "no crop": lambda **options: ViTImageProcessor(size={"shortest_edge": 24}, do_convert_rgb=True, **options),
    "no resize": lambda **options: ViTImageProcessor(do_resize=False, do_convert_rgb=True, **options),
    "no mean": lambda **options: ViTImageProcessor(size=SQUASH, do_convert_rgb=True, do_normalize=False, **options),
    "no rescale": lambda **options: ViTImageProcessor(size=SQUASH, do_convert_rgb=True, do_rescale=False, **options),
    "factor": lambda **options: ViTImageProcessor(
        size=SQUASH, do_convert_rgb=True, rescale_factor=1 / 127.5, **options
    ),
    "factor alone": lambda **options: ViTImageProcessor(
        size=SQUASH, do_convert_rgb=True, do_normalize=False, rescale_factor=1 / 127.5, **options
    ),
}


def noise(size, mode="RGB"):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, shape, dtype=np.uint8))


def reference(processor, image):
    return processor(images=image, return_tensors="pt").pixel_values[0]


@pytest.mark.parametrize("resample", [NEAREST, BILINEAR, BICUBIC])
@pytest.mark.parametrize("name", PROCESSORS)
def test_evaluation_gives_the_processors_pixels(name, resample):
    processor = PROCESSORS[name](resample=resample)
    transform = build_transform(processor)
    for size in SIZES:
        for mode in ("RGB", "L"):
            image = noise(size, mode)
            pixels = transform(image)
            assert pixels.dtype == torch.float32
            assert pixels.is_contiguous()
            torch.testing.assert_close(pixels, reference(processor, image).float(), rtol=0, atol=1e-6)


def test_evaluation_at_full_size_gives_the_processors_pixels():
    image = noise((500, 375))
    for processor in (ViTImageProcessor(), CLIPImageProcessor(), ConvNextImageProcessor(), DeiTImageProcessor()):
        torch.testing.assert_close(build_transform(processor)(image), reference(processor, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("resample", [NEAREST, BILINEAR, BICUBIC])
@pytest.mark.parametrize(
    "processor",
    [
        lambda **options: ViTImageProcessorPil(size=SQUASH, do_convert_rgb=True, **options),
        lambda **options: CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUASH, **options),
        lambda **options: ConvNextImageProcessorPil(size={"shortest_edge": 24}, do_convert_rgb=True, **options),
    ],
)
def test_evaluation_is_within_a_grey_level_of_the_pil_backend(processor, resample):
    processor = processor(resample=resample)
    transform = build_transform(processor)
    level = 1 / 255 / torch.tensor(processor.image_std).view(3, 1, 1)
    for size in SIZES:
        for mode in ("RGB", "L"):
            # Away from black and white, since bicubic overshoot is clipped between two passes in different order.
            image = noise(size, mode).point(lambda grey: 64 + grey // 2)
            difference = (transform(image) - torch.as_tensor(reference(processor, image))).abs() / level
            if resample == NEAREST:  # pixels on a tie go to either neighbour
                assert (difference > 1.01).float().mean() < 0.1
            else:
                assert difference.max() < 2.01
                assert (difference > 1.01).float().mean() < 0.005


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1", "YCbCr"])
def test_every_mode_becomes_rgb_as_the_processor_makes_it(mode):
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=SQUASH)
    image = noise((40, 30)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(noise((40, 30), "L"))
    torch.testing.assert_close(build_transform(processor)(image), reference(processor, image), rtol=0, atol=1e-6)


def test_transparent_palette_colour_becomes_white():
    image = Image.new("P", (24, 24), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    transform = build_transform(ViTImageProcessor(size=SQUASH))
    assert transform(image)[:, 0, 0].tolist() == [1, -1, -1]
    image.info["transparency"] = 0
    assert transform(image).min() == 1


def test_rgb_is_made_also_where_the_processor_leaves_the_mode():
    processor = ViTImageProcessor(size=SQUASH)  # do_convert_rgb is None: it fails on grey images
    asked = ViTImageProcessor(size=SQUASH, do_convert_rgb=True)
    for mode in ("L", "P", "RGBA"):
        image = noise((40, 30)).convert(mode)
        torch.testing.assert_close(build_transform(processor)(image), reference(asked, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_16_bit_images_are_scaled_and_not_clipped(dtype):
    levels = np.repeat(np.arange(256, dtype=np.int64)[:, None], 24, axis=1)
    image = Image.fromarray((levels * 257).astype(dtype))
    assert image.mode.startswith("I")
    processor = ViTImageProcessor(do_resize=False, do_convert_rgb=True)
    expected = reference(processor, Image.fromarray(levels.astype(np.uint8)))
    torch.testing.assert_close(build_transform(processor)(image), expected, rtol=0, atol=1e-6)


def test_processor_with_one_channel_gets_grey_images():
    processor = ViTImageProcessor(size=SQUASH, image_mean=[0.3], image_std=[0.2])
    transform = build_transform(processor)
    grey = noise((40, 30), "L")
    torch.testing.assert_close(transform(grey), reference(processor, grey), rtol=0, atol=1e-6)
    assert transform(noise((40, 30))).shape == (1, 24, 24)
    assert transform(torch.zeros(4, 30, 40, dtype=torch.uint8)).shape == (1, 24, 24)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensors_give_the_processors_pixels(channels):
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=SQUASH)
    image = torch.randint(0, 256, (channels, 30, 40), dtype=torch.uint8)
    torch.testing.assert_close(build_transform(processor)(image), reference(processor, image), rtol=0, atol=1e-6)


def test_tensor_and_image_give_the_same_training_view():
    transform = build_transform(ViTImageProcessor(size=SQUASH), train=True)
    image = noise((40, 30))
    views = []
    for given in (image, torch.from_numpy(np.array(image)).permute(2, 0, 1)):
        torch.manual_seed(5)
        views.append(transform(given))
    assert torch.equal(*views)


TRAINING = [
    {},
    {"crop_padding": 2},
    {"crop_padding": 30},
    {"crop_padding": 0},
    {"crop_scale": (0.2, 1.0), "interpolation": "bicubic"},
    {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5},
    {"color_jitter": 0.4},
]


@pytest.mark.parametrize("options", TRAINING)
@pytest.mark.parametrize("name", PROCESSORS)
def test_training_view_is_addressed_by_the_global_seed(name, options):
    transform = build_transform(PROCESSORS[name](), train=True, **options)
    image = noise((57, 41))
    views, again = [], []
    for views_of_round in (views, again):
        for seed in range(8):
            torch.manual_seed(seed)
            views_of_round.append(transform(image))
    assert all(torch.equal(*pair) for pair in zip(views, again, strict=True))
    assert any(not torch.equal(views[0], view) for view in views[1:])
    evaluation = build_transform(PROCESSORS[name]())(image)
    if name != "no crop" or "crop_padding" in options:
        assert views[0].shape == evaluation.shape
    else:
        assert views[0].shape == (3, 24, 24)
    assert views[0].dtype == torch.float32


def test_resized_crop_of_everything_is_the_squashed_image():
    processor = ViTImageProcessor(size=SQUASH)
    transform = build_transform(processor, train=True, crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip=0)
    image = noise((40, 40))
    torch.testing.assert_close(transform(image), reference(processor, image), rtol=0, atol=1e-6)


def test_resized_crop_can_leave_out_antialiasing():
    processor = ViTImageProcessor(size=SQUASH, do_normalize=False, do_rescale=False)
    options = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "horizontal_flip": 0}
    image = noise((40, 40))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    rough = torch.nn.functional.interpolate(pixels, size=(24, 24), mode="bilinear", antialias=False)[0]
    for antialias in (True, False):
        view = build_transform(processor, train=True, crop_antialias=antialias, **options)(image)
        assert ((view - rough).abs().max() <= 1) == (not antialias)


def test_resized_crop_takes_area_and_ratio_from_the_ranges():
    crop = build_transform(ViTImageProcessor(), train=True, crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0)).steps[1]
    boxes = [crop._draw_box(300, 400) for _ in range(2000)]
    tops, lefts, heights, widths = np.array(boxes).T
    assert (tops >= 0).all() and (lefts >= 0).all()
    assert (tops + heights).max() == 300 and (lefts + widths).max() == 400
    areas, ratios = heights * widths / 120_000, np.log(widths / heights)
    assert 0.245 < areas.min() < 0.26 and 0.49 < areas.max() < 0.505
    assert -0.7 < ratios.min() < -0.67 and 0.67 < ratios.max() < 0.7
    assert abs(areas.mean() - 0.375) < 0.01 and abs(ratios.mean()) < 0.05


@pytest.mark.parametrize(("size", "box"), [((4, 100), (0, 47, 4, 5)), ((100, 4), (47, 0, 5, 4))])
def test_resized_crop_of_a_very_long_image_takes_its_middle(size, box):
    crop = build_transform(ViTImageProcessor(), train=True, crop_scale=(1, 1)).steps[1]
    assert crop._draw_box(*size) == box


def test_shift_moves_the_image_over_black():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=False, do_rescale=False)
    transform = build_transform(processor, train=True, crop_padding=2, horizontal_flip=0)
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8)
    framed = np.pad(image[0].numpy(), 2)
    allowed = {framed[i : i + 8, j : j + 8].tobytes() for i in range(5) for j in range(5)}
    seen = {transform(image)[0].to(torch.uint8).numpy().tobytes() for _ in range(400)}
    assert seen == allowed


def test_flip_has_its_probability():
    image = noise((24, 24))
    processor = ViTImageProcessor(size=SQUASH)
    straight = build_transform(processor)(image)
    for probability in (0.0, 0.3, 1.0):
        transform = build_transform(processor, train=True, crop_padding=0, horizontal_flip=probability)
        views = [transform(image) for _ in range(400)]
        flipped = sum(torch.equal(view, straight.flip(-1)) for view in views)
        assert flipped + sum(torch.equal(view, straight) for view in views) == 400
        assert abs(flipped / 400 - probability) < 0.1


def test_interpolation_replaces_the_processors_resample():
    image = noise((57, 41))
    expected = reference(ViTImageProcessor(size=SQUASH, resample=BICUBIC), image)
    for interpolation in ("bicubic", BICUBIC, 3):
        transform = build_transform(ViTImageProcessor(size=SQUASH), interpolation=interpolation)
        torch.testing.assert_close(transform(image), expected, rtol=0, atol=1e-6)


def test_transform_survives_pickling_and_names_its_steps():
    transform = build_transform(CLIPImageProcessor(), train=True, crop_padding=4)
    copy = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(0)
    expected = transform(noise((40, 30)))
    torch.manual_seed(0)
    assert torch.equal(copy(noise((40, 30))), expected)
    assert repr(copy) == repr(transform)
    assert "padding=4" in repr(transform) and "0.48145466" in repr(transform)


def test_building_draws_no_random_numbers():
    before = torch.get_rng_state()
    build_transform(ViTImageProcessor(), train=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_processor_is_taken_out_of_a_multimodal_one():
    processor = CLIPImageProcessor()
    assert repr(build_transform(SimpleNamespace(image_processor=processor))) == repr(build_transform(processor))


def test_unknown_options_name_the_allowed_ones():
    with pytest.raises(
        TypeError, match="flip; .*interpolation, crop_scale, crop_ratio, crop_padding, .*horizontal_flip"
    ):
        build_transform(ViTImageProcessor(), train=True, flip=0.5)
    with pytest.raises(TypeError, match=r"crop_padding; .*`train=False`.* takes interpolation"):
        build_transform(ViTImageProcessor(), crop_padding=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": (0, 1)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_scale": 0.5}, "crop_scale"),
        ({"crop_ratio": (2, 1)}, "crop_ratio"),
        ({"crop_padding": -1}, "crop_padding"),
        ({"crop_padding": 1.5}, "crop_padding"),
        ({"horizontal_flip": 1.1}, "horizontal_flip"),
        ({"random_erasing": -0.1}, "random_erasing"),
        ({"crop_antialias": False, "interpolation": "lanczos"}, "crop_antialias"),
        ({"color_jitter": -0.4}, "color_jitter"),
        ({"auto_augment": "randaug-2-10"}, "auto_augment.*rand-m9-mstd0.5-inc1.*got 'randaug-2-10'"),
        ({"auto_augment": "rand-m9", "color_jitter": 0.4}, "not both"),
        ({"interpolation": "cubic"}, "interpolation.*'bicubic'.*got 'cubic'"),
        ({"interpolation": Image.Resampling.BOX}, "interpolation"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_transform(ViTImageProcessor(), train=True, **options)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda: object(), "image processor of transformers.* got object without do_resize, size"),
        (lambda: ViTImageProcessor(size={"longest_edge": 24}), r"image_processor.size.*got \{'longest_edge': 24\}"),
        (lambda: ViTImageProcessor(size={"shortest_edge": 24, "longest_edge": 40}), "image_processor.size"),
        (lambda: ViTImageProcessor(resample=Image.Resampling.HAMMING), "image_processor.resample"),
        (lambda: LevitImageProcessor(), "LevitImageProcessor does more than .* grey levels"),
        (lambda: EfficientNetImageProcessor(rescale_offset=True), "EfficientNetImageProcessor"),
        (lambda: ViTImageProcessor(do_pad=True, pad_size={"height": 300, "width": 300}), r"\(3, 300, 300\)"),
    ],
)
def test_processors_that_cannot_be_followed_are_refused(processor, message):
    with pytest.raises(ValueError, match=message):
        build_transform(processor())


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((24, 24, 3), dtype=np.uint8), TypeError, "got ndarray"),
        (torch.zeros(3, 24, 24), TypeError, "torch.float32"),
        (torch.zeros(24, 24, dtype=torch.uint8), ValueError, r"\(24, 24\)"),
        (torch.zeros(5, 24, 24, dtype=torch.uint8), ValueError, r"\(5, 24, 24\)"),
        (torch.zeros(3, 0, 24, dtype=torch.uint8), ValueError, r"\(3, 0, 24\)"),
        (Image.new("F", (24, 24)), ValueError, "mode F"),
    ],
)
def test_what_is_no_image_is_refused(image, error, message):
    with pytest.raises(error, match=message):
        build_transform(ViTImageProcessor(size=SQUASH))(image)
