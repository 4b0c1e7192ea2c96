"""Files of MAE's, DeiT's and Google's JAX code, and folders of transformers, through the functions that users call."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from hf_vitfm import (
    MAEForPreTraining,
    ViTForImageClassification,
    ViTModel,
    export_checkpoint,
    load_image_processor,
)
from hf_vitfm.conversion.describe import describe
from hf_vitfm.conversion.verify import verify
from tests.tiny import FIELDS, MAE_FIELDS, random_images, randomize, tiny_config, tiny_mae


TIMM = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 1.5,
    "num_classes": 5,
}
MODELS = {
    "mae": lambda: VisionTransformer(**TIMM, global_pool="avg"),
    "deit": lambda: VisionTransformer(**TIMM),
    "deit with distillation": lambda: VisionTransformerDistilled(**TIMM),
}


def assert_same_logits(found, expected):
    with torch.no_grad():
        found, expected = found(random_images()), expected(random_images())
    torch.testing.assert_close(found.logits, getattr(expected, "logits", expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_pth_file_is_read_with_its_processor(tmp_path, kind):
    theirs, path = randomize(MODELS[kind]()), tmp_path / "checkpoint-99.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 99, "optimizer": {"state": {}}}, path)
    ours = ViTForImageClassification.from_pretrained(path, num_attention_heads=4)
    assert_same_logits(ours, theirs)
    pixels = load_image_processor(path, backend="pil")(Image.new("RGB", (90, 70)), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    assert_same_logits(ViTForImageClassification.from_pretrained(path, config=ours.config), theirs)
    with pytest.raises(ValueError, match="do not tell `num_attention_heads`.*Pass it: `from_pretrained"):
        ViTForImageClassification.from_pretrained(path)


def test_head_of_another_size_is_new_only_when_asked(tmp_path):
    torch.save({"model": randomize(MODELS["deit"]()).state_dict()}, tmp_path / "deit.pth")
    arguments = {"num_attention_heads": 4, "num_labels": 3, "image_size": 48}
    with pytest.raises((RuntimeError, ValueError), match=r"classifier.bias: \(5,\) saved, \(3,\) in the model"):
        ViTForImageClassification.from_pretrained(tmp_path / "deit.pth", **arguments)
    ours = ViTForImageClassification.from_pretrained(tmp_path / "deit.pth", **arguments, ignore_mismatched_sizes=True)
    assert ours(random_images(height=48, width=48)).logits.shape == (2, 3)


def test_mae_is_written_and_read_again(tmp_path):
    model = tiny_mae(intermediate_size=64, decoder_intermediate_size=48)
    file = export_checkpoint(model, tmp_path, format="mae") / "checkpoint.pth"
    content = torch.load(file, weights_only=True)
    assert list(content) == ["model"] and "decoder_blocks.1.attn.qkv.weight" in content["model"]
    heads = {name: MAE_FIELDS[name] for name in ("num_attention_heads", "decoder_num_attention_heads")}
    again = MAEForPreTraining.from_pretrained(file, **heads)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="do not tell `decoder_num_attention_heads`"):
        MAEForPreTraining.from_pretrained(file, num_attention_heads=4)
    classifier = ViTForImageClassification.from_pretrained(file, num_attention_heads=4, pooling="mean", num_labels=3)
    assert classifier.classifier.weight.shape == (3, 32)


def test_npz_is_written_for_timm_and_read_again(tmp_path):
    fields = {"hidden_act": "gelu_pytorch_tanh", "position_interpolation": "bilinear_align_corners"}
    model = randomize(ViTForImageClassification(tiny_config(**fields)))
    file = export_checkpoint(model, tmp_path, format="jax") / "model.npz"
    theirs = VisionTransformer(**TIMM, act_layer="gelu_tanh").eval()
    theirs.load_pretrained(str(file))
    assert_same_logits(model, theirs)
    assert_same_logits(ViTForImageClassification.from_pretrained(file), model)
    processor = load_image_processor(file, image_size=48)
    assert dict(processor.size) == {"height": 48, "width": 48} and list(processor.image_mean) == [0.5] * 3


def test_files_are_described_and_verified_without_a_library_that_opens_them(tmp_path):
    mae = tiny_mae(intermediate_size=64, decoder_intermediate_size=48, mask_ratio=0.5)
    vit = ViTForImageClassification(tiny_config(hidden_act="gelu_pytorch_tanh"))
    for model, name in ((mae, "mae"), (randomize(vit), "jax")):
        found = verify(model, export_checkpoint(model, tmp_path / name, format=name), name)
        assert found.largest == 0 and found.scale > 0.1
    description = describe(tmp_path / "jax" / "model.npz")
    assert (description.found.format.name, description.missing, description.unused) == ("jax", [], [])
    assert any("antialiasing" in note for note in description.notes)
    with pytest.raises(
        ValueError, match="looks like mae's format and cannot be read: .*do not tell `num_attention_head"
    ):
        describe(tmp_path / "mae")


def test_hybrid_is_refused_as_such(tmp_path):
    names = ("embedding/kernel", "Transformer/encoder_norm/scale", "conv_root/kernel")
    np.savez(tmp_path / "hybrid.npz", **{name: np.ones((1, 1, 4, 8), np.float32) for name in names})
    with pytest.raises(ValueError, match="is a hybrid, whose patches come from a ResNet"):
        ViTModel.from_pretrained(tmp_path / "hybrid.npz")


@pytest.mark.parametrize("name", ["DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_transformers_deit_is_read_and_written_back(tmp_path, name):
    theirs = randomize(getattr(transformers, name)(transformers.DeiTConfig(**FIELDS)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ViTForImageClassification.from_pretrained(tmp_path / "theirs")
    assert_same_logits(ours, theirs)
    export_checkpoint(ours, tmp_path / "back")
    back, info = getattr(transformers, name).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_logits(ours, back.eval())


# Configurations of several years

YEARS = {
    "2021": {  # of google/vit-base-patch16-224
        "_name_or_path": "google/vit-base-patch16-224",
        "transformers_version": "4.13.0.dev0",
        "leave_out": ["qkv_bias", "encoder_stride", "pooler_act", "pooler_output_size", "dtype"],
    },
    "2022": {
        "torch_dtype": "float32",
        "encoder_stride": 16,
        "classifier_dropout": 0.0,
        "leave_out": ["pooler_act", "pooler_output_size", "dtype"],
    },
    "2023": {
        "problem_type": None,
        "pooler_output_size": None,
        "encoder_stride": None,
        "qkv_bias": None,
        "leave_out": [],
    },
}


@pytest.mark.parametrize("new_names", [True, False])
@pytest.mark.parametrize("year", YEARS)
def test_configurations_of_all_years_and_both_kinds_of_names(folder, theirs, year, new_names):
    theirs.save_pretrained(folder, save_original_format=not new_names)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **YEARS[year]}
    for name in config.pop("leave_out"):
        config.pop(name, None)
    path.write_text(json.dumps(config))
    assert_same_logits(ViTForImageClassification.from_pretrained(folder), theirs)


def test_weights_as_pytorch_model_bin_and_with_a_pooler_that_no_classifier_has(folder, theirs):
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same_logits(ViTForImageClassification.from_pretrained(folder), theirs)
    save_file({**weights, "vit.pooler.dense.weight": torch.ones(32, 32)}, folder / "model.safetensors")
    assert_same_logits(ViTForImageClassification.from_pretrained(folder), theirs)
