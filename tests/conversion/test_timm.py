"""timm's Vision Transformers: read as timm saves them, and written so that timm and its wrapper open them."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm import ViTConfig, ViTForImageClassification, ViTModel, export_checkpoint
from hf_vitfm.conversion import timm as timm_format
from tests.conversion.timm_models import FAMILIES, images_for, save_timm, timm_model
from tests.tiny import random_images, randomize, tiny_config


FAMILY = pytest.mark.parametrize("family", FAMILIES)


def assert_same(found, expected):
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def edit(folder, weights=None, **fields):
    if weights:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        weights(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def read_weights(model, config=None, model_class=ViTForImageClassification):
    """Load a state dict, by default without a configuration, as a file alone is loaded."""
    fields, weights = timm_format.read(model_class, config or {}, dict(model.state_dict()))
    return model_class.from_pretrained(None, config=ViTConfig(**fields), state_dict=weights).eval()


@torch.no_grad()
@FAMILY
def test_saved_by_timm_computes_the_same_and_goes_back(tmp_path, family):
    theirs = timm_model(family)
    images = images_for(theirs)
    folder = save_timm(theirs, tmp_path / "timm")
    ours = ViTForImageClassification.from_pretrained(folder)
    base = ViTModel.from_pretrained(folder)
    assert_same(ours(images).logits, theirs(images))
    assert_same(base(images).last_hidden_state, theirs.forward_features(images))
    if family != "deit distilled":  # timm's features are the mean of two tokens there
        assert_same(base(images).pooler_output, theirs.forward_head(theirs.forward_features(images), pre_logits=True))
    exported = export_checkpoint(ours, tmp_path / "back", format="timm")
    back = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    assert_same(back(images), theirs(images))
    again = ViTForImageClassification.from_pretrained(exported)
    assert_same(again(images).logits, theirs(images))


@torch.no_grad()
@pytest.mark.parametrize("family", ["mean of patches, then norm", "dinov2 giant", "deit distilled"])
def test_exported_model_is_opened_by_transformers_wrapper(tmp_path, family):
    ours = read_weights(timm_model(family), {"architecture": FAMILIES[family][0], "model_args": {"num_heads": 4}})
    ours.config.id2label = {i: name for i, name in enumerate("abcde")}
    exported = export_checkpoint(ours, tmp_path / "classifier", format="timm")
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(exported).eval()
    assert type(wrapped).__name__ == "TimmWrapperForImageClassification"
    assert wrapped.config.id2label == ours.config.id2label
    assert_same(wrapped(random_images()).logits, ours(random_images()).logits)
    wrapped.save_pretrained(tmp_path / "wrapped")
    back = ViTForImageClassification.from_pretrained(tmp_path / "wrapped")
    assert_same(back(random_images()).logits, ours(random_images()).logits)
    assert back.config.id2label == ours.config.id2label


@torch.no_grad()
def test_exported_base_model_is_opened_by_transformers_wrapper(tmp_path):
    ours = randomize(ViTModel(tiny_config(num_register_tokens=2)))
    wrapped = transformers.AutoModel.from_pretrained(export_checkpoint(ours, tmp_path, format="timm")).eval()
    outputs = wrapped(random_images())
    assert_same(outputs.last_hidden_state, ours(random_images()).last_hidden_state)
    assert_same(outputs.pooler_output, ours(random_images()).pooler_output)


EXPORTED = {
    "plain": {},
    "LayerScale": {"layer_scale_init_value": 0.1},
    "fixed positions": {"position_embedding_type": "sincos"},
    "no class token": {"pooling": "mean", "use_class_token": False},
    "registers and class token": {"num_register_tokens": 2, "layer_scale_init_value": 0.1},
    "registers alone": {"pooling": "mean", "use_class_token": False, "num_register_tokens": 2},
    "gated without LayerScale": {"use_gated_mlp": True, "hidden_act": "silu"},
    "pre-norm": {"use_pre_norm": True, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    "CLIP's epsilon": {"layer_norm_eps": 1e-5},
    "norm on tokens, then mean": {"pooling": "mean", "final_norm": "tokens"},
    "no final norm": {"final_norm": "none"},
    "no head": {"num_labels": 0},
    "width that no ratio gives": {"hidden_size": 48, "intermediate_size": 49},
    "not square": {"image_size": (32, 48), "patch_size": (16, 8)},
}


@torch.no_grad()
@pytest.mark.parametrize("option", EXPORTED)
def test_models_of_ours_are_opened_by_timm(tmp_path, option):
    ours = randomize(ViTForImageClassification(tiny_config(**EXPORTED[option])))
    images = random_images(2, *(EXPORTED[option].get("image_size") or (32, 32)))
    theirs = timm.create_model(f"local-dir:{export_checkpoint(ours, tmp_path, format='timm')}", pretrained=True).eval()
    assert_same(theirs(images), ours(images).logits)
    assert_same(ViTForImageClassification.from_pretrained(tmp_path)(images).logits, ours(images).logits)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("pooling", {"pooling": "cls_mean"}),
        ("representation_size", {"representation_size": 24}),
        ("hidden_act", {"hidden_act": "tanh"}),
        ("layer_norm_eps", {"layer_norm_eps": 1e-12}),
        ("layer_norm_eps", {"layer_norm_eps": 1e-5, "use_gated_mlp": True}),
        ("num_register_tokens", {"num_register_tokens": 2, "use_distillation_token": True}),
        ("use_gated_mlp", {"use_gated_mlp": True, "use_distillation_token": True}),
    ],
)
def test_export_refuses_what_timm_cannot_hold_and_writes_nothing(tmp_path, field, fields):
    with pytest.raises(ValueError, match=f"timm cannot hold `{field}="):
        export_checkpoint(ViTForImageClassification(tiny_config(**fields)), tmp_path / "out", format="timm")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("family", ["augreg", "dinov2 registers", "deit distilled", "mean of patches, then norm"])
def test_weights_alone_are_read_off_their_shapes(family):
    theirs = timm_model(family, embed_dim=128, num_heads=2, patch_size=4, no_embed_class=family == "dinov2 registers")
    assert timm_format.matches({}, theirs.state_dict().keys())
    assert_same(read_weights(theirs)(random_images()).logits, theirs(random_images()))


@torch.no_grad()
def test_clip_weights_alone_have_clips_epsilon():
    theirs = timm_model("clip", embed_dim=64, num_heads=1)
    ours = read_weights(theirs)
    assert ours.config.layer_norm_eps == 1e-5
    assert_same(ours(random_images()).logits, theirs(random_images()))


@torch.no_grad()
def test_dinov2s_own_names_are_read():
    theirs = timm_model("dinov2 giant", embed_dim=64, num_heads=1, no_embed_class=False)
    weights = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    positions = weights["pos_embed"]  # the original has none for registers
    weights["register_tokens"] = weights.pop("reg_token") + positions[:, 1:5]
    weights["pos_embed"] = torch.cat([positions[:, :1], positions[:, 5:]], dim=1)
    weights["mask_token"] = torch.randn(1, 64)
    # 17 positions: of a square of 4 x 4 and a class token
    fields, converted = timm_format.read(ViTForImageClassification, {}, weights)
    ours = ViTForImageClassification.from_pretrained(None, config=ViTConfig(**fields), state_dict=converted)
    assert_same(ours(random_images()).logits, theirs(random_images()))


@torch.no_grad()
def test_dynamic_sizes_are_interpolated_in_the_call():
    theirs = timm_model("augreg", dynamic_img_size=True)
    ours = read_weights(theirs, {"architecture": "vit_base_patch16_224", "model_args": {"num_heads": 4}})
    images = random_images(1, 24, 40)
    assert_same(ours(images, interpolate_pos_encoding=True).logits, theirs(images))


def test_classes_are_named_by_their_descriptions(tmp_path):
    names = ["n01", "n02", "n03", "n04", "n05"]
    described = {"n01": "tench", "n02": "goldfish"}
    folder = save_timm(timm_model("augreg"), tmp_path, label_names=names, label_descriptions=described)
    config = ViTForImageClassification.from_pretrained(folder).config
    assert config.id2label == {0: "tench", 1: "goldfish", 2: "n03", 3: "n04", 4: "n05"}
    assert config.label2id["goldfish"] == 1
    edit(folder, label_names={str(i): name for i, name in enumerate(names)}, label_descriptions=None)
    assert ViTForImageClassification.from_pretrained(folder).config.id2label == dict(enumerate(names))


def test_new_head_and_other_overrides(tmp_path):
    folder = save_timm(timm_model("dinov2"), tmp_path)
    ours = ViTForImageClassification.from_pretrained(
        folder, num_labels=3, pooling="cls_mean", drop_path_rate=0.1, ignore_mismatched_sizes=True
    )
    assert ours.classifier.weight.shape == (3, 64)
    assert ours.vit.encoder.layers[-1].drop_path.rate == 0.1
    assert ours.config.layer_norm_eps == 1e-6
    with pytest.raises(RuntimeError, match=r"classifier.bias: \(5,\) saved, \(3,\) in the model"):
        ViTForImageClassification.from_pretrained(folder, num_labels=3)


def test_file_without_a_head_gives_features_as_timm_does(tmp_path):
    folder = save_timm(timm_model("augreg", num_classes=0), tmp_path)
    assert ViTForImageClassification.from_pretrained(folder)(random_images()).logits.shape == (2, 32)
    assert ViTForImageClassification.from_pretrained(folder, num_labels=7)(random_images()).logits.shape == (2, 7)


def test_old_configuration_on_one_level_is_read():
    theirs = timm_model("augreg")
    config = {"architecture": "test_vit", "num_classes": 5, "input_size": [3, 32, 32], "labels": list("abcde")}
    fields, _ = timm_format.read(ViTModel, config, {**theirs.state_dict(), "pre_logits.fc.weight": torch.zeros(1)})
    assert (fields["image_size"], fields["id2label"][4], fields["num_attention_heads"]) == (32, "e", 1)


# architecture -> what the refusal says
REFUSED = {
    "vit_base_patch16_siglip_224": "pooling by attention",
    "vit_base_patch16_rpn_224": "norms behind its branches",
    "vit_base_patch16_xp_224": "norms of queries and keys",
    "vit_small_patch16_18x2_224": "parallel branches",
    "vit_pwee_patch16_reg1_gap_256": "parallel branches",
    "vit_dwee_patch16_reg1_gap_256": "differential attention",
    "vit_relpos_base_patch16_224": "relative positions",
    "vit_base_patch16_rope_reg1_gap_256": "rotary positions",
    "vit_small_patch16_dinov3": "rotary positions",
    "vit_pe_core_tiny_patch16_384": "rotary positions",
    "vit_tiny_r_s16_p8_224": "a convolutional stem",
    "test_vit4": "norms without a mean",
    "aimv2_large_patch14_224": "not a plain Vision Transformer",
    "beit3_base_patch16_224": "not a plain Vision Transformer",
    "vit_so400m_patch14_siglip_gap_384": "384x384 pixels are not a whole number of patches of 14x14",
}


def on_meta(architecture, **arguments):
    """One of timm's models without memory, and its config.json as the Hub has it, without `model_args`."""
    model = timm.create_model(architecture, device="meta", **arguments)
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "global_pool": getattr(model, "global_pool", "avg"),
        "pretrained_cfg": {name: value for name, value in model.pretrained_cfg.items() if value is not None},
    }
    return model, config


@pytest.mark.parametrize(
    "architecture", ["resnet50", "swin_tiny_patch4_window7_224", "vitamin_small_224", "samvit_base"]
)
def test_other_networks_are_refused_by_their_name(architecture):
    with pytest.raises(ValueError, match=f"'{architecture}' is not a plain .*AutoModelForImageClassification"):
        timm_format.read(ViTModel, {"architecture": architecture, "pretrained_cfg": {}}, {})


@pytest.mark.parametrize("architecture", REFUSED)
def test_other_models_are_refused_saying_what_is_different(architecture):
    theirs, config = on_meta(architecture, depth=1)
    with pytest.raises(ValueError, match=f"{REFUSED[architecture]}.*AutoModelForImageClassification") as raised:
        timm_format.read(ViTForImageClassification, config, theirs.state_dict())
    assert "\n" not in str(raised.value)


HUB = (
    "vit_tiny_patch16_224",
    "vit_base_patch8_224",
    "vit_huge_patch14_224",
    "vit_giant_patch14_224",
    "vit_gigantic_patch14_clip_224",
    "vit_base_patch16_224_miil",
    "vit_base_patch16_gap_224",
    "vit_huge_patch16_gap_448",
    "vit_large_patch14_clip_quickgelu_336",
    "vit_large_patch16_siglip_gap_512",
    "vit_so400m_patch14_siglip_gap_448",
    "vit_giantopt_patch16_siglip_gap_256",
    "vit_giant_patch14_reg4_dinov2",
    "vit_so400m_patch14_reg1_tipsv2",
    "vit_so150m2_patch16_reg1_gap_448",
    "vit_intern300m_patch14_448",
    "vit_huge_patch16_radio_v4",
    "vit_wee_patch16_reg1_gap_256",
    "eva_large_patch14_336",
    "deit3_huge_patch14_224",
    "deit_small_distilled_patch16_224",
    "test_vit2",
)


@pytest.mark.parametrize("architecture", HUB)
def test_architecture_is_told_by_name_and_shapes_as_timm_builds_it(architecture):
    theirs, config = on_meta(architecture, depth=1)
    fields, weights = timm_format.read(ViTForImageClassification, config, theirs.state_dict())
    with torch.device("meta"):
        expected = ViTForImageClassification(ViTConfig(**fields)).state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    block = theirs.blocks[0]
    assert (fields["num_attention_heads"], fields["layer_norm_eps"]) == (block.attn.num_heads, block.norm1.eps)
    activation, inputs = transformers.activations.ACT2FN[fields["hidden_act"]], torch.linspace(-3, 3, 50)
    torch.testing.assert_close(activation(inputs), block.mlp.act(inputs), rtol=0, atol=1e-6)
    size = fields["image_size"]
    assert ((size, size) if isinstance(size, int) else size) == theirs.patch_embed.img_size


DAMAGE = {
    "one weight": (lambda weights: weights.pop("blocks.1.mlp.fc2.weight"), r"1 missing \(blocks.1.mlp.fc2.weight\)"),
    "final norm": (lambda weights: [weights.pop(f"norm.{kind}") for kind in ("weight", "bias")], "2 missing"),
    "class token": (lambda weights: weights.pop("cls_token"), "17 positions fit neither"),
    "positions": (lambda weights: weights.pop("pos_embed"), "'pos_embed' is missing"),
    "shape": (
        lambda weights: weights.update({"pos_embed": torch.zeros(17, 32)}),
        r"'pos_embed' has the shape \(17, 32\)",
    ),
    "grid": (lambda weights: weights.update({"pos_embed": torch.zeros(1, 20, 32)}), "20 positions fit neither"),
    "more": (lambda weights: weights.update({"extra": torch.zeros(1)}), r"1 unexpected \(extra\)"),
    "a layer": (
        lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("blocks.1.")],
        "`num_hidden_layers` is 1 by their shapes, and 2 by config.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_errors(tmp_path, damage):
    folder = save_timm(timm_model("augreg"), tmp_path)
    change, message = DAMAGE[damage]
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        ViTForImageClassification.from_pretrained(folder)


def test_missing_registers_are_an_error_even_where_only_the_name_tells_of_them():
    theirs = timm_model("dinov2 registers")
    weights = {name: tensor for name, tensor in theirs.state_dict().items() if name != "reg_token"}
    config = {"architecture": "vit_small_patch14_reg4_dinov2", "pretrained_cfg": {}, "model_args": {"num_heads": 4}}
    with pytest.raises(ValueError, match="`num_register_tokens` is 0 by their shapes, and 4 by config.json"):
        timm_format.read(ViTModel, config, weights)


def test_width_that_no_model_of_timm_has_asks_for_the_number_of_heads(tmp_path):
    theirs = timm_model("clip").eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="do not tell `num_attention_heads`"):
        ViTModel.from_pretrained(tmp_path / "weights.pth")
    model = ViTModel.from_pretrained(tmp_path / "weights.pth", num_attention_heads=4)
    assert model.config.num_attention_heads == 4


@pytest.mark.parametrize(
    ("config", "keys", "expected"),
    [
        ({"architecture": "vit_base_patch16_224", "pretrained_cfg": {}}, [], True),
        ({"architecture": "vit_base_patch16_224", "model_type": "timm_wrapper"}, [], True),
        ({"architecture": "resnet50", "pretrained_cfg": {}}, [], False),
        ({"model_type": "vit"}, [], False),
        ({"architecture": "x", "model_type": "vit"}, [], False),
        ({}, ["pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], True),
        ({}, ["pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "decoder_pos_embed"], False),
        ({}, ["pos_embed", "patch_embed.proj.weight"], False),
    ],
)
def test_matches(config, keys, expected):
    assert timm_format.matches(config, keys) is expected


@pytest.mark.parametrize(
    ("architecture", "pretrained", "field"),
    [
        (
            "vit_base_patch32_clip_224",
            {"tag": "openai", "notes": ["natively QuickGELU, use quickgelu model"]},
            "quick_gelu",
        ),
        ("vit_base_patch32_clip_quickgelu_224", {"tag": "openai", "notes": ["natively QuickGELU"]}, None),
        ("vit_base_patch16_224", {"tag": "augreg_in21k"}, "gelu_pytorch_tanh"),
        ("vit_base_patch16_224", {"tag": "augreg2_in21k_ft_in1k"}, None),
    ],
)
def test_notes_tell_of_activations_that_differ_from_the_training(architecture, pretrained, field):
    notes = timm_format.notes({"architecture": architecture, "pretrained_cfg": pretrained}, {})
    assert len(notes) == (field is not None)
    assert field is None or f'`hidden_act="{field}"`' in notes[0]
