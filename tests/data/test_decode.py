"""Every kind of image file is decoded as Pillow itself reads it, or refused with its name and the reason."""

import io
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hf_vitfm.data.decode import BadImageError, decode_image
from hf_vitfm.data.transforms import _ToTensor
from tests.data.images import encode, noise


def tensor_pixels(image) -> np.ndarray:
    return _ToTensor(3)(image).permute(1, 2, 0).numpy()


def test_bytes_paths_dictionaries_and_images_give_the_same_pixels(tmp_path):
    pixels = noise()
    data = encode(pixels)
    (tmp_path / "a.png").write_bytes(data)
    sources = [
        data,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").as_uri(),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        {"bytes": data, "path": "no/such/file.png"},
        Image.open(io.BytesIO(data)),
    ]
    for source in sources:
        assert np.array_equal(np.asarray(decode_image(source)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(4, 6), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode_image(data)
    assert decoded.size == ((6, 4) if orientation < 5 else (4, 6))
    assert np.array_equal(np.asarray(decoded), np.asarray(expected))
    assert np.array_equal(np.asarray(decode_image(Image.open(io.BytesIO(data)))), np.asarray(expected))


def test_broken_exif_leaves_the_pixels():
    assert decode_image(encode(noise(4, 6), exif=b"Exif\0\0no tiff at all")).size == (6, 4)


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    decoded = decode_image(data)
    assert (tensor_pixels(decoded) == (255, 0, 0)).all()


def test_no_file_stays_open(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    (tmp_path / "a.gif").write_bytes(encode(frames[0], "gif", save_all=True, append_images=frames[1:]))
    assert decode_image(tmp_path / "a.gif").fp is None


def test_cmyk_is_converted_as_pillow_does_it():
    data = encode(Image.fromarray(noise(16, 16, channels=4), "CMYK"), "jpeg")
    decoded = decode_image(data)
    assert decoded.mode == "CMYK"
    assert np.array_equal(tensor_pixels(decoded), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65278, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(values)))
    assert decoded.mode.startswith("I")
    expected = np.rint(values.astype(np.float64) / 65535 * 255)
    assert np.array_equal(_ToTensor(3)(decoded)[0].numpy(), expected)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "L", "RGB"])
def test_what_is_transparent_is_seen_on_white(mode):
    image = Image.fromarray(noise(8, 8, channels=4), "RGBA")
    options = {}
    if mode == "P":
        image, options = image.convert("RGB").quantize(8), {"transparency": bytes([0, 100, 255, 30, 7, 200, 1, 254])}
    elif mode in ("L", "RGB"):  # one colour is transparent
        image = image.convert("RGB").quantize(4).convert(mode)
        options = {"transparency": image.getpixel((0, 0))}
    else:
        image = image.convert(mode)
    decoded = decode_image(encode(image, **options))
    assert decoded.mode == mode
    rgba = np.asarray(decoded.convert("RGBA")).astype(np.float64)
    assert rgba[..., 3].min() < 255
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(tensor_pixels(decoded) - expected).max() < 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV"])
def test_other_modes_are_converted_as_pillow_does_it(mode):
    image = Image.fromarray(noise(16, 16)).convert(mode)
    pixels = tensor_pixels(decode_image(image))
    assert np.array_equal(np.broadcast_to(pixels, (16, 16, 3)), np.asarray(image.convert("RGB")))


def truncated() -> bytes:
    return encode(noise(64, 64), "jpeg")[:1000]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>", "not an image .* begins with b'<!DOCTYPE html>"),
        (truncated(), "truncated"),
        (encode(noise(64, 64))[:-2000], "truncated|broken"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        (None, "neither bytes nor a path"),
    ],
)
def test_a_bad_image_is_named_with_the_reason(source, reason):
    with pytest.raises(BadImageError, match=f"^row 7 cannot be decoded: .*({reason})"):
        decode_image(source, "row 7")


def test_a_bad_file_is_named_by_its_path(tmp_path):
    for name, content, reason in [
        ("a.jpg", truncated(), "truncated"),
        ("b.png", b"", "empty"),
        ("c.gif", None, "not exist"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImageError, match=f"^{tmp_path / name} cannot be decoded: .*{reason}"):
            decode_image(tmp_path / name)
        with pytest.raises(BadImageError, match=rf"^row 3 \({tmp_path / name}\) cannot"):
            decode_image({"bytes": None, "path": str(tmp_path / name)}, "row 3")
    with pytest.raises(BadImageError, match="truncated"):
        decode_image(Image.open(tmp_path / "a.jpg"))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of half of them
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"])
def test_whatever_is_wrong_with_a_file_is_one_kind_of_error(kind):
    whole = encode(noise(24, 24), kind)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        data = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        for place in generator.integers(0, min(len(data), 200), 3):
            data[place] = generator.integers(0, 256)
        try:
            assert decode_image(bytes(data)).size
        except BadImageError:
            refused += 1
    assert refused > 10


def test_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="bytes, a path"):
        decode_image(3)


def test_the_limit_against_bombs_is_pillows(monkeypatch):
    data = encode(noise(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)  # it is an error from twice as much on
    with pytest.raises(BadImageError, match="larger than Pillow allows.*MAX_IMAGE_PIXELS"):
        decode_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 801)
    with pytest.warns(Image.DecompressionBombWarning):
        assert decode_image(data).size == (40, 40)


def test_an_image_of_a_hundred_megapixels_can_be_used():
    image = Image.new("L", (10_000, 10_000), 77)
    data = encode(image, "jpeg")
    del image
    with pytest.warns(Image.DecompressionBombWarning):
        pixels = _ToTensor(3)(decode_image(data))
    assert pixels.shape == (1, 10_000, 10_000)
    assert pixels[0, ::999, ::999].unique().tolist() == [77]


class BadRows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.asarray(decode_image(b"", f"row {index}"))


def test_the_error_comes_through_a_loader_worker():
    loader = torch.utils.data.DataLoader(
        BadRows(), num_workers=1, multiprocessing_context=multiprocessing.get_context("fork")
    )
    with pytest.raises(BadImageError, match="row 0 cannot be decoded: it is empty"):
        list(loader)
