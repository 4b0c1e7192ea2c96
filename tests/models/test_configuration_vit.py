"""ViT configurations: sizes of the papers, checks of every field, and what a saved file keeps."""

import json
import logging

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from hf_vitfm import ViTConfig, ViTForImageClassification, ViTModel
from tests.tiny import FIELDS, tiny_config


# variant: parameters without a head, with 1,000 classes, and with 1,000 classes at 384 pixels
PARAMETERS = {
    "Ti/16": (5_524_416, 5_717_416, 5_790_376),
    "Ti/32": (5_938_560, 6_131_560, 6_149_800),
    "S/16": (21_665_664, 22_050_664, 22_196_584),
    "S/32": (22_493_952, 22_878_952, 22_915_432),
    "B/16": (85_798_656, 86_567_656, 86_859_496),
    "B/32": (87_455_232, 88_224_232, 88_297_192),
    "B/8": (85_807_872, 86_576_872, None),
    "B/14": (85_706_496, 86_475_496, None),
    "L/16": (303_301_632, 304_326_632, 304_715_752),
    "L/32": (305_510_400, 306_535_400, 306_632_680),
    "L/14": (303_178_752, 304_203_752, None),
    "H/14": (630_764_800, 632_045_800, None),
    "H/16": (630_918_400, 632_199_400, None),
    "H/32": (633_679_360, 634_960_360, None),
}


def count(model_class, variant, trainable=False, **fields):
    with torch.device("meta"):
        model = model_class(ViTConfig.from_variant(variant, **fields))
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_variants_have_exactly_the_published_number_of_parameters(variant):
    backbone, classifier, at_384 = PARAMETERS[variant]
    assert count(ViTModel, variant) == backbone
    assert count(ViTForImageClassification, variant, num_labels=0) == backbone
    assert count(ViTForImageClassification, variant, num_labels=1000) == classifier
    if at_384:
        assert count(ViTForImageClassification, variant, num_labels=1000, image_size=384) == at_384


@pytest.mark.parametrize(
    ("variant", "width", "parameters"),
    [("B/16", 768, 103_186_515), ("L/16", 1024, 326_740_307), ("H/14", 1280, 660_385_363)],
)
def test_imagenet_21k_head_with_pre_logits_has_the_published_size(variant, width, parameters):
    assert count(ViTForImageClassification, variant, num_labels=21843, representation_size=width) == parameters


@pytest.mark.parametrize(("size", "parameters"), [("Ti", 5_910_800), ("S", 22_436_432), ("B", 87_338_192)])
def test_distilled_variants_have_the_size_that_deit_publishes(size, parameters):
    assert count(ViTForImageClassification, f"{size}/16", num_labels=1000, use_distillation_token=True) == parameters


@pytest.mark.parametrize(("representation_size", "parameters"), [(384, 22_122_472), (None, 21_974_632)])
def test_mean_pooled_sincos_vit_trains_as_many_parameters_as_big_visions(representation_size, parameters):
    fields = {"pooling": "mean", "use_class_token": False, "position_embedding_type": "sincos", "num_labels": 1000}
    found = count(ViTForImageClassification, "S/16", trainable=True, representation_size=representation_size, **fields)
    assert found == parameters


@pytest.mark.parametrize("variant", ["b/16", "B16", "B/", "B/0", "G/14", "B/-16", "B/16/2", "", None])
def test_unknown_variant_is_refused_with_an_example(variant):
    with pytest.raises(ValueError, match="Write for example 'B/16'"):
        ViTConfig.from_variant(variant)


def test_fields_given_with_a_variant_win():
    config = ViTConfig.from_variant("B/16", hidden_size=192, num_attention_heads=3, num_labels=7)
    assert (config.hidden_size, config.num_attention_heads, config.num_labels) == (192, 3, 7)
    assert (config.intermediate_size, config.patch_size) == (3072, 16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "big"),
        ("hidden_size", 32.0),
        ("num_hidden_layers", True),
        ("num_attention_heads", None),
        ("hidden_act", 3),
        ("hidden_dropout_prob", "0.1"),
        ("layer_norm_eps", "small"),
        ("image_size", "224"),
        ("image_size", [32, "32"]),
        ("image_size", 32.5),
        ("patch_size", None),
        ("qkv_bias", "yes"),
        ("pooling", "max"),
        ("final_norm", "middle"),
        ("use_pre_norm", "yes"),
        ("use_gated_mlp", 1),
        ("use_class_token", "no"),
        ("num_register_tokens", 1.5),
        ("drop_path_rate", None),
        ("layer_scale_init_value", "1e-5"),
        ("position_embedding_type", "rope"),
        ("position_interpolation", "nearest"),
        ("representation_size", 16.0),
        ("weight_init", "xavier"),
        ("head_init", "ones"),
    ],
)
def test_wrong_type_or_name_is_refused_naming_the_field(field, value):
    with pytest.raises(Exception, match=f"'{field}'") as raised:
        tiny_config(**{field: value})
    assert type(raised.value).__name__ == "StrictDataclassFieldValidationError"


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("drop_path_rat", "Did you mean `drop_path_rate`"),
        ("num_label", "Did you mean `num_labels`"),
        ("zzz", "listed in the class's docstring"),
    ],
)
def test_unknown_field_is_refused_with_a_suggestion(field, hint):
    with pytest.raises(ValueError, match=f"no field `{field}`.*{hint}"):
        tiny_config(**{field: 0.1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, "multiple of `patch_size`; got 30x30 .* nearest image size that fits is 32x32"),
        ({"image_size": (32, 36), "patch_size": (16, 8)}, "got 32x36 .* patches of 16x8.* fits is 32x32"),
        ({"image_size": 4}, "nearest image size that fits is 8x8"),
        ({"image_size": 0}, "`image_size` must be at least 1 pixel; got 0"),
        ({"image_size": (-32, 32)}, r"`image_size` must be at least 1 pixel; got \(-32, 32\)"),
        ({"patch_size": 0}, "`patch_size` must be at least 1 pixel; got 0"),
        ({"patch_size": -8}, "`patch_size` must be at least 1 pixel; got -8"),
        ({"image_size": [32]}, r"`image_size` must be one number or \(height, width\)"),
        ({"patch_size": [8, 8, 8]}, r"`patch_size` must be one number or \(height, width\)"),
        ({"num_attention_heads": 5}, "got 32 and 5. Choose a number of heads that divides the width"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1"),
        ({"num_channels": -1}, "`num_channels` must be at least 1"),
        ({"hidden_act": "gellu"}, "name of transformers' ACT2FN; got 'gellu'"),
        ({"hidden_dropout_prob": 1.0}, r"`hidden_dropout_prob` must be in \[0, 1\); got 1.0"),
        ({"attention_probs_dropout_prob": -0.1}, r"`attention_probs_dropout_prob` must be in \[0, 1\)"),
        ({"drop_path_rate": 1}, r"`drop_path_rate` must be in \[0, 1\)"),
        ({"patch_dropout": 1}, r"`patch_dropout` must be in \[0, 1\)"),
        ({"use_class_token": False}, 'set `use_class_token=True` or `pooling="mean"`'),
        ({"use_class_token": False, "pooling": "cls_mean"}, '`pooling="cls_mean"` needs a class token'),
        ({"pooling": "cls_mean", "final_norm": "pooled"}, "`final_norm=\"pooled\"` is for .*got 'cls_mean'"),
        ({"pooling": "none", "final_norm": "pooled"}, "`final_norm=\"pooled\"` is for .*got 'none'"),
        ({"use_distillation_token": True, "pooling": "mean"}, "`use_distillation_token` needs"),
        (
            {"use_distillation_token": True, "pooling": "none", "use_class_token": False},
            "needs `use_class_token=True`",
        ),
        ({"position_embedding_type": "sincos", "hidden_size": 30, "num_attention_heads": 3}, "divisible by 4; got 30"),
        ({"num_labels": -1}, "`num_labels` must be a whole number, 0 for no classifier; got -1"),
        ({"num_labels": "x"}, "`num_labels` must be a whole number.*got 'x'"),
        ({"num_labels": 2.5}, "`num_labels` must be a whole number.*got 2.5"),
        ({"num_register_tokens": -1}, "`num_register_tokens` must not be negative"),
        ({"representation_size": 0}, "None for no pre-logits layer; got 0"),
        ({"problem_type": "multi_label"}, "`problem_type` must be one of single_label.*; got 'multi_label'"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused_saying_what_to_do(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


# A value other than the default, and what else must then be set.
OTHER_VALUES = {
    "hidden_size": (48, {}),
    "num_hidden_layers": (2, {}),
    "num_attention_heads": (8, {}),
    "intermediate_size": (40, {}),
    "use_gated_mlp": (True, {}),
    "hidden_act": ("gelu_pytorch_tanh", {}),
    "hidden_dropout_prob": (0.1, {}),
    "attention_probs_dropout_prob": (0.2, {}),
    "initializer_range": (0.01, {}),
    "layer_norm_eps": (1e-12, {}),
    "image_size": ((48, 32), {}),
    "patch_size": ((16, 4), {}),
    "num_channels": (1, {}),
    "qkv_bias": (False, {}),
    "pooling": ("mean", {}),
    "final_norm": ("pooled", {}),
    "use_pre_norm": (True, {}),
    "use_class_token": (False, {"pooling": "none"}),
    "num_register_tokens": (4, {}),
    "use_distillation_token": (True, {}),
    "drop_path_rate": (0.3, {}),
    "patch_dropout": (0.5, {}),
    "layer_scale_init_value": (1e-5, {}),
    "position_embedding_type": ("sincos", {}),
    "position_interpolation": ("bilinear_align_corners", {}),
    "representation_size": (24, {}),
    "weight_init": ("jax", {}),
    "head_init": ("trunc_normal", {}),
    "vitfm_format_version": (2, {}),
}


def test_every_field_has_a_round_trip_test():
    inherited = set(PreTrainedConfig.__dataclass_fields__)
    assert set(OTHER_VALUES) == set(ViTConfig.__dataclass_fields__) - inherited


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_field_survives_saving_and_loading(tmp_path, field):
    value, others = OTHER_VALUES[field]
    assert value != getattr(ViTConfig(), field)
    config = tiny_config(**{field: value}, **others)
    config.save_pretrained(tmp_path)
    for loaded in (ViTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ViTConfig
        assert getattr(loaded, field) == value
        assert loaded.to_diff_dict() == config.to_diff_dict()


def test_sizes_are_pairs_whether_given_as_list_or_tuple():
    config = tiny_config(image_size=[48, 32], patch_size=(16, 8))
    assert (config.image_size, config.patch_size) == ((48, 32), (16, 8))


def test_labels_and_problem_type_survive_saving_and_loading(tmp_path):
    config = tiny_config(
        num_labels=3, id2label={0: "ant", 1: "bee", 2: "cat"}, problem_type="multi_label_classification"
    )
    config.save_pretrained(tmp_path)
    loaded = ViTConfig.from_pretrained(tmp_path)
    assert (loaded.id2label, loaded.problem_type) == (config.id2label, "multi_label_classification")
    assert loaded.label2id == {"ant": 0, "bee": 1, "cat": 2}


def test_unknown_key_of_a_saved_file_is_left_out_with_a_warning(tmp_path, caplog):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "window_size": 7}))
    with caplog.at_level(logging.WARNING):
        loaded = ViTConfig.from_pretrained(tmp_path)
    assert "does not know and leaves out: window_size" in caplog.text
    assert not hasattr(loaded, "window_size")
    assert loaded.to_diff_dict() == config.to_diff_dict()


def test_our_own_saved_file_has_no_key_that_warns(tmp_path, caplog):
    tiny_config(num_labels=2, id2label={0: "a", 1: "b"}, output_attentions=True, dtype="bfloat16").save_pretrained(
        tmp_path
    )
    with caplog.at_level(logging.WARNING):
        ViTConfig.from_pretrained(tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"image_size": 30}, "multiple of `patch_size`"), ({"pooling": "cls"}, "needs a class token")],
)
def test_overrides_at_load_are_checked_with_the_saved_fields(tmp_path, overrides, message):
    tiny_config(pooling="none", use_class_token=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        ViTConfig.from_pretrained(tmp_path, **overrides)


@pytest.mark.parametrize(
    ("overrides", "labels", "representation_size"),
    [
        ({}, 5, 24),
        ({"num_labels": 5}, 5, 24),
        ({"num_labels": 3}, 3, None),
        ({"num_labels": 3, "representation_size": 24}, 3, 24),
        ({"id2label": {0: "a", 1: "b"}}, 2, None),
        ({"id2label": {i: f"new {i}" for i in range(5)}}, 5, 24),
    ],
)
def test_new_number_of_labels_at_load_drops_the_pre_logits_layer(tmp_path, overrides, labels, representation_size):
    tiny_config(id2label={i: f"old {i}" for i in range(5)}, representation_size=24).save_pretrained(tmp_path)
    config = ViTConfig.from_pretrained(tmp_path, **overrides)
    assert (config.num_labels, config.representation_size) == (labels, representation_size)
    assert config.label2id == {name: i for i, name in config.id2label.items()}
    if "id2label" in overrides:
        assert config.id2label == overrides["id2label"]
    elif labels == 5:
        assert config.id2label[0] == "old 0"


@pytest.mark.parametrize("saved", [0, 2])
def test_number_of_labels_that_needs_no_names_can_be_changed_at_load(tmp_path, saved):
    ViTConfig(**{**FIELDS, "num_labels": saved}, representation_size=24).save_pretrained(tmp_path)
    config = ViTConfig.from_pretrained(tmp_path, num_labels=2 - saved)
    assert (config.num_labels, config.representation_size) == (2 - saved, None)


def test_two_labels_are_the_default_and_keep_the_pre_logits_layer(tmp_path):
    ViTConfig(**{**FIELDS, "num_labels": 2}, representation_size=24).save_pretrained(tmp_path)
    config = ViTConfig.from_pretrained(tmp_path, num_labels=2)
    assert (config.num_labels, config.representation_size) == (2, 24)


def test_class_names_with_a_gap_are_an_error():
    with pytest.raises(ValueError, match="keys 0 to n - 1"):
        ViTConfig(id2label={0: "a", 2: "b"})
