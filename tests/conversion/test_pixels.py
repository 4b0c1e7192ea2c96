"""Pixels of the image processors read from every format, against each library's own evaluation transform.

The images are two real photographs and parts of them. The margins that a centre crop leaves of them are even and odd
ones: halves of odd ones are where libraries part.
"""

import json
from functools import cache
from unittest.mock import patch

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torchvision import transforms

from hf_vitfm import ViTForImageClassification, build_transform, export_checkpoint, load_image_processor
from tests.conversion.test_open_clip import HALF, save_theirs
from tests.conversion.test_openai import CFG
from tests.tiny import tiny_config


@cache
def photographs() -> dict[str, Image.Image]:
    temple, flower = (Image.fromarray(np.asarray(image)) for image in load_sample_images().images)
    turn = Image.Transpose.ROTATE_90
    return {
        "640x427": temple,
        "457x301": flower.crop((10, 20, 467, 321)),
        "301x457": temple.transpose(turn).crop((60, 70, 361, 527)),
        "333x500": flower.transpose(turn).crop((11, 100, 344, 600)),
        "square": flower.crop((101, 7, 502, 408)),
        "small": temple.crop((200, 150, 297, 211)),
    }


def resize_horizontally_first(image, size, resample=None, box=None, reducing_gap=None, *, resize=Image.Image.resize):
    """Pillow's resize in two calls."""
    return resize(resize(image, (size[0], image.height), resample), size, resample)


def assert_pixels(source, theirs):
    """Compare with a transform of PIL images: to rounding for the PIL backend, to a grey level for torchvision's.

    torchvision resizes horizontally, then vertically. Pillow does whichever first is less work; where bicubic
    interpolation overshoots black or white in between, its clipping differs. So the strict comparison makes Pillow keep
    torchvision's order, and that with Pillow left alone allows for one in a thousand values. Both round twice: one in
    fifty thousand is two levels off.
    """
    pil, default = load_image_processor(source, backend="pil"), load_image_processor(source)
    assert (pil.backend, default.backend) == ("pil", "torchvision")
    std, transform = torch.tensor(default.image_std)[:, None, None], build_transform(default)

    def levels(found, expected):
        return (torch.as_tensor(found) - expected).abs() * std * 255

    for name, image in photographs().items():
        expected = theirs(image)
        assert levels(pil(image, return_tensors="pt").pixel_values[0], expected).max() < 1e-3, name
        with patch.object(Image.Image, "resize", resize_horizontally_first):
            same_order = theirs(image)
        for found in (default(image, return_tensors="pt").pixel_values[0], transform(image)):
            difference = levels(found, same_order)
            assert difference.max() < 2.001 and (difference > 1.001).float().mean() <= 2e-5, name
            assert (levels(found, expected) > 1.001).float().mean() <= 1e-3, name


# timm

PUBLISHED = (
    "vit_base_patch16_224.augreg_in21k",  # crop of 0.9
    "deit_tiny_patch16_224.fb_in1k",
    "vit_base_patch16_384.augreg_in1k",  # crop of 1
    "vit_large_patch14_clip_336.openai",
    "vit_base_patch16_siglip_384.v2_webli",
    "vit_medium_patch16_gap_240.sw_in12k",  # crop of 0.95
    "vit_small_patch14_dinov2.lvd142m",  # 518 pixels
)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OWN = {
    "nothing said": {},
    "bilinear": {"crop_pct": 0.875, "interpolation": "bilinear"},
    "lanczos": {"input_size": [3, 112, 112], "crop_pct": 0.95, "interpolation": "lanczos", **IMAGENET},
    "odd margin": {"crop_pct": 0.95},  # 235 - 224
    "squash": {"crop_pct": 1.0, "crop_mode": "squash"},
    "squash with an odd margin": {"crop_pct": 0.95, "crop_mode": "squash"},
    "oblong squash with odd margins": {"input_size": [3, 96, 64], "crop_pct": 0.9, "crop_mode": "squash"},
}


def save_timms(folder, pretrained):
    config = {"architecture": "vit_base_patch16_224", "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", [*PUBLISHED, *OWN])
def test_timms(tmp_path, name):
    pretrained = OWN[name] if name in OWN else timm.get_pretrained_cfg(name).to_dict()
    theirs = create_transform(**resolve_data_config(pretrained_cfg={"num_classes": 5, **pretrained}))
    assert_pixels(save_timms(tmp_path, pretrained), theirs)


def test_timms_crop_survives_saving(tmp_path):
    pretrained = OWN["odd margin"]
    load_image_processor(save_timms(tmp_path, pretrained)).save_pretrained(tmp_path / "saved")
    theirs = create_transform(**resolve_data_config(pretrained_cfg={"num_classes": 5, **pretrained}))
    assert_pixels(tmp_path / "saved", theirs)
    of_transformers = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")  # crops in its own way
    image = photographs()["640x427"]
    expected = of_transformers(image, return_tensors="pt").pixel_values[0]
    assert torch.equal(build_transform(of_transformers)(image), expected)


# CLIPs


@pytest.mark.parametrize(
    ("preprocess", "size"),
    [({}, 224), ({}, 336), (HALF, 384), (HALF, 97), ({**HALF, "resize_mode": "shortest"}, 240)],
    ids=["OpenAI's", "OpenAI's at 336", "SigLIP's", "SigLIP's at 97", "mixed"],
)
def test_open_clips(tmp_path, preprocess, size):
    save_theirs(tmp_path, preprocess, vision={"image_size": size, "patch_size": size // 2})
    _, _, theirs = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert_pixels(tmp_path, theirs)


@pytest.mark.parametrize("size", [224, 336])
def test_openais(tmp_path, size):
    vision = {**CFG["vision_cfg"], "patch_size": size // 4, "image_size": size, "layers": 1}
    numbers = {"input_resolution": size, "context_length": 12, "vocab_size": 60}
    weights = CLIP(**{**CFG, "vision_cfg": vision}).state_dict()
    torch.save({**{name: torch.tensor(value) for name, value in numbers.items()}, **weights}, tmp_path / "model.pt")
    assert_pixels(tmp_path / "model.pt", of_torchvision(size, size, *OPENAI))


# The code of papers

OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
STATISTICS = tuple(IMAGENET.values())


def of_torchvision(resized: int, cropped: int, mean, std):
    """What OpenAI, MAE and DeiT document: a bicubic resize of the short side and a centre crop."""
    return transforms.Compose(
        [
            transforms.Resize(resized, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(cropped),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("options", "size", "resized"),
    [
        ({"global_pool": "avg"}, 224, 256),  # MAE
        ({"global_pool": "avg"}, 448, 448),
        ({}, 224, 256),  # DeiT
        ({}, 384, 438),
        ({"init_values": 1e-4, "no_embed_class": True}, 192, 192),  # DeiT III
    ],
)
def test_those_of_maes_and_deits_code(tmp_path, options, size, resized):
    weights = VisionTransformer(**{**TINY, "img_size": size, "patch_size": size // 4, **options}).state_dict()
    weights = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): weights[name] for name in weights}
    torch.save({"model": weights}, tmp_path / "model.pth")
    assert_pixels(tmp_path / "model.pth", of_torchvision(resized, size, *STATISTICS))


@pytest.mark.parametrize("size", [224, 384])
def test_those_of_the_jax_code(tmp_path, size):
    config = tiny_config(image_size=size, patch_size=size // 4, hidden_act="gelu_pytorch_tanh")
    file = export_checkpoint(ViTForImageClassification(config), tmp_path, format="jax") / "model.npz"

    def squash(image):
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels / np.float32(127.5) - 1).permute(2, 0, 1)

    assert_pixels(file, squash)


# transformers

PROCESSORS = {
    "ViT": (transformers.ViTConfig, transformers.ViTImageProcessorPil()),
    "DeiT": (transformers.DeiTConfig, transformers.DeiTImageProcessorPil()),
    "DINOv2": (
        transformers.Dinov2Config,
        transformers.BitImageProcessorPil(size={"shortest_edge": 256}, image_mean=[0.5, 0.4, 0.3]),
    ),
    "CLIP": (transformers.CLIPConfig, transformers.CLIPImageProcessorPil(do_convert_rgb=False)),
    "CLIP at 336": (
        transformers.CLIPConfig,
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 337}, crop_size={"height": 336, "width": 336}),
    ),
    "SigLIP": (transformers.SiglipConfig, transformers.SiglipImageProcessorPil(size={"height": 384, "width": 384})),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_those_of_transformers(tmp_path, name):
    config, theirs = PROCESSORS[name]
    config().save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    assert_pixels(tmp_path, lambda image: theirs(image, return_tensors="pt").pixel_values[0])
    of_torchvision = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    transform = build_transform(load_image_processor(tmp_path))
    for image in photographs().values():
        assert torch.equal(transform(image), of_torchvision(image, return_tensors="pt").pixel_values[0])
