"""Image processors from timm's configurations and back; test_pixels.py has what they make of images."""

import json
import math

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config

from hf_vitfm import ViTForImageClassification, load_image_processor
from hf_vitfm.conversion import timm as timm_format
from hf_vitfm.conversion.timm_processor import image_processor, pretrained_fields
from tests.tiny import tiny_config


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
CONFIGS = {
    "augreg": {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic", **HALF},
    "deit at 384": {"input_size": [3, 384, 384], "crop_pct": 1.0, "interpolation": "bicubic", **IMAGENET},
    "bilinear": {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bilinear", **IMAGENET},
    "lanczos": {"input_size": [3, 112, 112], "crop_pct": 0.95, "interpolation": "lanczos", **IMAGENET},
    "squash": {
        "input_size": [3, 224, 224],
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        **HALF,
    },
    "squash and crop": {"input_size": [3, 96, 64], "crop_pct": 0.9, "crop_mode": "squash", **HALF},
    "defaults": {},
}


def timms(pretrained, image):
    return create_transform(**resolve_data_config(pretrained_cfg={"num_classes": 5, **pretrained}))(image)


def test_size_of_weights_alone_is_read_off_their_positions():
    shapes = {"pos_embed": (1, 197, 32), "patch_embed.proj.weight": (32, 3, 8, 8)}
    processor = image_processor({}, shapes)
    assert (processor.crop_size["height"], processor.size["shortest_edge"]) == (112, 128)
    assert list(processor.image_mean) == IMAGENET["mean"]


@pytest.mark.parametrize(
    "fields", [{"crop_mode": "border", "input_size": [3, 32, 32]}, {"crop_mode": "center", "input_size": [3, 32, 48]}]
)
def test_crops_without_counterpart_are_refused(fields):
    with pytest.raises(ValueError, match=f"`crop_mode={fields['crop_mode']!r}`.*timm.data.create_transform"):
        image_processor({"architecture": "vit_base_patch16_224", "pretrained_cfg": fields})


@pytest.mark.parametrize("name", CONFIGS)
def test_written_preprocessing_is_read_back_by_timm(name):
    pretrained = CONFIGS[name]
    processor = image_processor({"architecture": "test_vit", "pretrained_cfg": pretrained}, backend="pil")
    size = tuple(pretrained.get("input_size", [3, 224, 224])[1:])
    model = ViTForImageClassification(tiny_config(image_size=size))
    written = timm_format.write(model, processor)["config.json"]["pretrained_cfg"]
    image = Image.fromarray(load_sample_image("china.jpg"))
    torch.testing.assert_close(timms(written, image), timms(pretrained, image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("crop", "whole", "share"),
    [(224, 248, 0.9), (224, 256, 0.875), (384, 384, 1.0), (336, 343, 0.979), (224, 235, 0.95)],
)
def test_share_of_the_crop_is_written_in_few_digits(crop, whole, share):
    processor = image_processor({"architecture": "test_vit", "pretrained_cfg": {"input_size": [3, crop, crop]}})
    processor.size = type(processor.size)(shortest_edge=whole)
    assert pretrained_fields(processor, tiny_config(image_size=crop))["crop_pct"] == share
    assert math.floor(crop / share) == whole


def test_sides_cropped_by_different_shares_are_refused():
    fields = {"input_size": [3, 32, 64], "crop_mode": "squash", "crop_pct": 0.8}
    processor = image_processor({"architecture": "test_vit", "pretrained_cfg": fields})
    processor.size = type(processor.size)(height=40, width=64)
    with pytest.raises(ValueError, match="the same share of height and width"):
        pretrained_fields(processor, tiny_config(image_size=(32, 64)))


def test_processor_without_normalisation_is_written_as_one_that_changes_nothing():
    processor = image_processor({"architecture": "test_vit", "pretrained_cfg": CONFIGS["squash"]})
    processor.do_normalize = False
    fields = pretrained_fields(processor, tiny_config(image_size=224))
    assert (fields["mean"], fields["std"]) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"do_center_crop": False}, "size"),
        ({"crop_size": {"height": 96, "width": 96}}, "size"),
    ],
)
def test_processors_that_timm_cannot_follow_are_refused(change, named):
    processor = image_processor({"architecture": "test_vit", "pretrained_cfg": CONFIGS["augreg"]})
    for name, value in change.items():
        setattr(processor, name, type(processor.crop_size)(**value) if isinstance(value, dict) else value)
    with pytest.raises(ValueError, match=f"timm cannot hold `{named}="):
        pretrained_fields(processor, tiny_config(image_size=224))


def test_exported_folder_has_timms_own_transform(tmp_path):
    processor = image_processor({"architecture": "test_vit", "pretrained_cfg": {**CONFIGS["augreg"]}}, backend="pil")
    written = timm_format.write(ViTForImageClassification(tiny_config(image_size=224)), processor)
    (tmp_path / "config.json").write_text(json.dumps(written["config.json"]))
    model = timm.create_model(f"local-dir:{tmp_path}")
    transform = create_transform(**timm.data.resolve_model_data_config(model))
    image = Image.fromarray(load_sample_image("china.jpg"))
    torch.testing.assert_close(transform(image), timms(CONFIGS["augreg"], image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interpolation", "random"),
        ("interpolation", 3),
        ("crop_pct", "x"),
        ("crop_pct", -1),
        ("crop_pct", 1e-9),
        ("input_size", "abc"),
        ("mean", "abc"),
        ("mean", [float("nan")] * 3),
        ("std", [0, 0, 0]),
    ],
)
def test_damaged_preprocessing_is_a_clear_error(tmp_path, field, value):
    config = {"architecture": "vit_base_patch16_224", "pretrained_cfg": {"input_size": [3, 32, 32], field: value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="preprocessing .* is damaged"):
        load_image_processor(tmp_path)
