"""CLIP configurations: sizes of the paper, checks of the fields, towers given in every way, and what a file keeps."""

import json
import math

import pytest
import torch
import transformers
from transformers import AutoConfig

from hf_vitfm import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from tests.tiny import TEXT_FIELDS, tiny_clip_config


@pytest.mark.parametrize(
    ("variant", "image_size", "parameters"),  # of OpenAI's files; 151,277,313 also of open_clip's ViT-B-32
    [("B/32", 224, 151_277_313), ("B/16", 224, 149_620_737), ("L/14", 224, 427_616_513), ("L/14", 336, 427_944_193)],
)
def test_variants_have_the_published_number_of_parameters(variant, image_size, parameters):
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_variant(variant, image_size=image_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_defaults_are_those_of_the_papers_base_model():
    default, base = CLIPConfig(), CLIPConfig.from_variant("B/32")
    assert default.to_dict() == base.to_dict()
    assert default.logit_scale_init_value == pytest.approx(math.log(1 / 0.07))
    theirs = transformers.CLIPConfig()
    for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "hidden_act", "layer_norm_eps"):
        assert getattr(default.text_config, name) == getattr(theirs.text_config, name)
        assert getattr(default.vision_config, name) == getattr(theirs.vision_config, name)


def test_variant_takes_fields_of_the_whole_and_of_the_towers():
    config = CLIPConfig.from_variant(
        "B/16",
        image_size=64,
        objective="sigmoid",
        text_config={"num_hidden_layers": 2},
        vision_config={"patch_dropout": 0.5},
    )
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (2, 512)
    assert (config.vision_config.patch_dropout, config.vision_config.image_size) == (0.5, 64)
    assert config.logit_scale_init_value == pytest.approx(math.log(10)) and config.logit_bias_init_value == -10
    with pytest.raises(ValueError, match="Write for example 'B/32'"):
        CLIPConfig.from_variant("S/16")


def test_joint_space_has_one_width():
    config = tiny_clip_config(projection_dim=20)
    assert config.text_config.projection_dim == config.vision_config.projection_dim == 20


def test_dropout_of_attention_has_transformers_name_too():
    config = CLIPTextConfig(attention_dropout=0.2)
    assert config.attention_probs_dropout_prob == config.attention_dropout == 0.2
    assert CLIPTextConfig.from_dict(config.to_dict(), attention_dropout=0.1).attention_probs_dropout_prob == 0.1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CLIPConfig(projection_dims=3), "no field `projection_dims`. Did you mean `projection_dim`"),
        (lambda: CLIPConfig(text_config={"vocab": 3}), "VitfmCLIPTextConfig has no field `vocab`"),
        (lambda: CLIPConfig(vision_config={"patch_size": 15}), "multiple of `patch_size`"),
        (lambda: CLIPConfig(text_pooling="last"), "Set `pooling` in `text_config`"),
        (lambda: CLIPTextConfig(vocab_size=0), "`vocab_size` must be at least 1"),
        (lambda: CLIPTextConfig(hidden_size=30, num_attention_heads=4), "divisible by `num_attention_heads`"),
        (lambda: CLIPVisionConfig(patch_dropout=1.0), r"`patch_dropout` must be in \[0, 1\)"),
        (lambda: CLIPVisionConfig(hidden_act="swoosh"), "ACT2FN"),
    ],
)
def test_wrong_fields_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("fields", [{"objective": "hinge"}, {"text_pooling": "max"}, {"projection_dim": "wide"}])
def test_values_of_wrong_kind_are_refused(fields):
    with pytest.raises(Exception, match=next(iter(fields))):
        CLIPConfig(**fields)


BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 49408}


@pytest.mark.parametrize(
    "given", [BERT, transformers.BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"})]
)
def test_tower_of_another_library_is_kept_with_every_field(tmp_path, given):
    config = CLIPConfig(text_config=given, text_pooling="mean")
    assert type(config.text_config) is transformers.BertConfig and config.text_config is not given
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["vocab_size"] == 49408
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is CLIPConfig and type(loaded.text_config) is transformers.BertConfig
    assert loaded.text_config.vocab_size == 49408 and loaded.text_config.hidden_size == 32
    assert loaded.text_pooling == "mean" and type(loaded.vision_config) is CLIPVisionConfig


def test_saved_configuration_is_read_back_and_its_towers_by_themselves(tmp_path):
    config = tiny_clip_config(vision={"image_size": (32, 48)}, objective="sigmoid")
    config.save_pretrained(tmp_path)
    loaded = CLIPConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert CLIPTextConfig.from_pretrained(tmp_path).to_dict() == config.text_config.to_dict()
    assert CLIPVisionConfig.from_pretrained(tmp_path).image_size == (32, 48)


def test_overrides_reach_the_towers():
    saved = tiny_clip_config().to_dict()
    loaded = CLIPConfig.from_dict(saved, image_size=64, text_config={"drop_path_rate": 0.1}, objective="sigmoid")
    assert (loaded.vision_config.image_size, loaded.vision_config.patch_size) == (64, 8)
    assert (loaded.text_config.drop_path_rate, loaded.text_config.vocab_size) == (0.1, 60)
    replaced = CLIPConfig.from_dict(saved, text_config=BERT, text_pooling="mean")
    assert type(replaced.text_config) is transformers.BertConfig
    with pytest.raises(ValueError, match="multiple of `patch_size`"):
        CLIPConfig.from_dict(saved, image_size=33)


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_overrides_of_a_tower_have_to_be_its_fields(tower):
    saved = tiny_clip_config().to_dict()
    with pytest.raises(ValueError, match="no field `hidden_dropouts_prob`. Did you mean `hidden_dropout_prob`"):
        CLIPConfig.from_dict(saved, **{tower: {"hidden_dropouts_prob": 0.1}})


def test_callers_towers_stay_as_they_are():
    text = CLIPTextConfig(**TEXT_FIELDS)
    config = CLIPConfig(text_config=text, projection_dim=20)
    assert text.projection_dim == 512 and config.text_config.projection_dim == 20
