"""transformers' DINOv2, with and without registers: read and written."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from hf_vitfm import ViTConfig, ViTForImageClassification, ViTModel, export_checkpoint
from hf_vitfm.conversion import transformers_dinov2
from tests.tiny import random_images, randomize, tiny_config


FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
OPTIONS = {
    "plain": {},
    "giant": {"use_swiglu_ffn": True},
    "no qkv bias": {"qkv_bias": False},
    "no mask token": {"use_mask_token": False},
    "another activation": {"hidden_act": "relu", "layer_norm_eps": 1e-5},
}
KINDS = pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])


def their_config(kind, **fields):
    if kind == "Dinov2WithRegisters":
        fields.pop("use_mask_token", None)
        fields.setdefault("num_register_tokens", 3)
    return getattr(transformers, f"{kind}Config")(**{**FIELDS, **fields})


def their_model(kind, suffix="ForImageClassification", **fields):
    model = randomize(getattr(transformers, f"{kind}{suffix}")(their_config(kind, **fields)))
    return model


def assert_same(found, expected):
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@KINDS
@pytest.mark.parametrize("option", OPTIONS)
def test_saved_by_transformers_computes_the_same_and_goes_back(tmp_path, kind, option):
    theirs, images = their_model(kind, **OPTIONS[option]), random_images()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ViTForImageClassification.from_pretrained(tmp_path / "theirs")
    base = ViTModel.from_pretrained(tmp_path / "theirs")
    assert_same(ours(images).logits, theirs(images).logits)
    expected = theirs.base_model(images)
    assert_same(base(images).last_hidden_state, expected.last_hidden_state)
    assert_same(base(images).pooler_output, expected.pooler_output)
    exported = export_checkpoint(ours, tmp_path / "back", format="dinov2")
    back, info = type(theirs).from_pretrained(exported, output_loading_info=True)
    assert not any(info.values()), info
    assert_same(back.eval()(images).logits, theirs(images).logits)


@torch.no_grad()
@KINDS
def test_base_models_go_both_ways(tmp_path, kind):
    theirs, images = their_model(kind, suffix="Model"), random_images()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ViTModel.from_pretrained(tmp_path / "theirs")
    assert_same(ours(images).pooler_output, theirs(images).pooler_output)
    exported = export_checkpoint(ours, tmp_path / "back", format="dinov2")
    back, info = transformers.AutoModel.from_pretrained(exported, output_loading_info=True)
    assert type(back) is type(theirs) and not any(info.values())
    assert_same(back.eval()(images).last_hidden_state, theirs(images).last_hidden_state)
    classifier = ViTForImageClassification.from_pretrained(tmp_path / "theirs", num_labels=7)
    assert classifier.classifier.weight.shape == (7, 64)


@torch.no_grad()
@KINDS
@pytest.mark.parametrize("gated", [False, True])
def test_names_of_transformers_5_are_read_too(tmp_path, kind, gated):
    theirs = their_model(kind, use_swiglu_ffn=gated)
    weights = theirs.state_dict()
    assert any("gate_proj" in name for name in weights) == gated
    theirs.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    assert_same(
        ViTForImageClassification.from_pretrained(tmp_path)(random_images()).logits, theirs(random_images()).logits
    )


def test_published_configuration_of_the_large_hub_files_is_read():
    saved = {  # of facebook/dinov2-giant, as published
        "apply_layernorm": True,
        "architectures": ["Dinov2Model"],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 1536,
        "image_size": 518,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0,
        "mlp_ratio": 4,
        "model_type": "dinov2",
        "num_attention_heads": 24,
        "num_channels": 3,
        "num_hidden_layers": 1,
        "out_features": ["stage1"],
        "out_indices": [1],
        "patch_size": 14,
        "qkv_bias": True,
        "reshape_hidden_states": True,
        "stage_names": ["stem", "stage1"],
        "torch_dtype": "float32",
        "transformers_version": "4.32.0.dev0",
        "use_swiglu_ffn": True,
    }
    with torch.device("meta"):
        weights = transformers.Dinov2Model(transformers.Dinov2Config.from_dict(saved)).state_dict()
        fields, converted = transformers_dinov2.read(ViTModel, saved, weights)
        expected = ViTModel(ViTConfig(**fields)).state_dict()
    assert (fields["intermediate_size"], fields["hidden_act"], fields["use_gated_mlp"]) == (4096, "silu", True)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


EXPORTED = {
    "registers and LayerScale": {"num_register_tokens": 2, "layer_scale_init_value": 0.1},
    "registers, class token alone": {"num_register_tokens": 2, "pooling": "cls"},
    "mean after the norm": {"pooling": "mean", "final_norm": "tokens"},
    "fixed positions": {"position_embedding_type": "sincos"},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 48},
    "no labels": {"num_labels": 0},
}


@torch.no_grad()
@pytest.mark.parametrize("option", EXPORTED)
def test_models_of_ours_are_opened_by_transformers(tmp_path, option):
    fields = {"pooling": "cls_mean", "intermediate_size": 64, **EXPORTED[option]}
    ours, images = randomize(ViTForImageClassification(tiny_config(**fields))), random_images()
    exported = export_checkpoint(ours, tmp_path, format="dinov2")
    theirs, info = transformers.AutoModelForImageClassification.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values()), info
    assert_same(theirs.eval()(images).logits, ours(images).logits)
    assert_same(ViTForImageClassification.from_pretrained(exported)(images).logits, ours(images).logits)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("use_distillation_token", {"use_distillation_token": True, "pooling": "cls"}),
        ("use_class_token", {"pooling": "mean", "use_class_token": False, "final_norm": "tokens"}),
        ("use_pre_norm", {"use_pre_norm": True}),
        ("representation_size", {"representation_size": 24}),
        ("final_norm", {"pooling": "mean"}),
        ("final_norm", {"final_norm": "none"}),
        ("image_size", {"image_size": (32, 48)}),
        ("patch_size", {"patch_size": (8, 16)}),
        ("intermediate_size", {"intermediate_size": 48}),
        ("hidden_act", {"use_gated_mlp": True, "hidden_act": "gelu", "intermediate_size": 48}),
    ],
)
def test_export_refuses_what_the_format_cannot_hold_and_writes_nothing(tmp_path, field, fields):
    model = ViTForImageClassification(tiny_config(**{"pooling": "cls_mean", "intermediate_size": 64, **fields}))
    with pytest.raises(ValueError, match=f"DINOv2 cannot hold `{field}=.*timm"):
        export_checkpoint(model, tmp_path / "out", format="dinov2")
    assert not (tmp_path / "out").exists()


def test_base_model_with_another_pooling_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot hold `pooling='cls_mean'` \(only 'cls'\)"):
        export_checkpoint(ViTModel(tiny_config(pooling="cls_mean", intermediate_size=64)), tmp_path, format="dinov2")


@KINDS
def test_missing_and_left_over_weights_are_errors_that_name_them(tmp_path, kind):
    theirs = their_model(kind)
    weights = theirs.state_dict()
    del weights[next(name for name in weights if name.endswith("layer.1.layer_scale2.lambda1"))]
    theirs.config.save_pretrained(tmp_path)
    save_file({**weights, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"1 missing \(encoder.layer.1.layer_scale2.lambda1\), 1 unexpected \(extra\)"
    ):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_positions_for_518_pixels_beside_a_processor_for_224_are_told():
    assert "`image_size=224`" in transformers_dinov2.notes({"image_size": 518}, {})[0]
    assert transformers_dinov2.notes({"image_size": 224}, {}) == []


@KINDS
def test_exported_configuration_has_their_model_type(tmp_path, kind):
    registers = {"num_register_tokens": 2} if kind == "Dinov2WithRegisters" else {}
    model = ViTModel(tiny_config(intermediate_size=64, **registers))
    saved = json.loads((export_checkpoint(model, tmp_path, format="dinov2") / "config.json").read_text())
    assert saved["architectures"] == [f"{kind}Model"]
    assert saved["model_type"] == ("dinov2_with_registers" if registers else "dinov2")
