"""DeiT: the files of its own code, whose names timm still has, and transformers' DeiT, both ways."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from hf_vitfm import ViTForImageClassification, ViTModel
from hf_vitfm.conversion import deit, mae_original, transformers_deit, transformers_vit
from tests.conversion.direct import load, same, shapes
from tests.tiny import FIELDS, random_images, randomize, tiny_config


TIMM = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 1.5,
    "num_classes": 5,
}
HEADS = {"num_attention_heads": 4}  # no published model is 32 wide
PIXELS = {
    "patch_embed.proj.weight": (192, 3, 16, 16),
    "pos_embed": (1, 197, 192),
}


@torch.no_grad()
def assert_same_logits(ours, expected, images=None):
    images = random_images() if images is None else images
    found, expected = ours(images).logits, getattr(expected(images), "logits", expected(images))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# The code's own files


def original(model) -> dict[str, torch.Tensor]:
    """timm's weights under the names of the original files; those of LayerScale were others."""
    return {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for name, tensor in model.state_dict().items()
    }


MODELS = {
    "plain": lambda: VisionTransformer(**TIMM),
    "distilled": lambda: VisionTransformerDistilled(**TIMM),
    "DeiT III": lambda: VisionTransformer(**TIMM, init_values=1e-4, no_embed_class=True),
}


@pytest.mark.parametrize("kind", MODELS)
def test_original_file_gives_timms_logits_and_features(kind):
    theirs, images = randomize(MODELS[kind]()), random_images()
    weights = original(theirs)
    assert deit.matches({}, shapes(weights)) and not mae_original.matches({}, shapes(weights))
    assert_same_logits(load(deit, ViTForImageClassification, weights, **HEADS), theirs)
    base = load(deit, ViTModel, weights, **HEADS)
    with torch.no_grad():
        found, expected = base(images).last_hidden_state, theirs.forward_features(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", [deit, mae_original])
@pytest.mark.parametrize("options", [{"reg_tokens": 2}, {"pre_norm": True}, {"init_values": 0.1}, {"qk_norm": True}])
def test_newer_models_of_timm_are_not_taken_for_these(module, options):
    for more in ({}, {"num_classes": 0}):
        assert not module.matches({}, shapes(VisionTransformer(**{**TIMM, **options, **more}).state_dict()))


def test_heads_are_told_by_the_width_of_published_models_alone():
    weights = original(VisionTransformer(**{**TIMM, "embed_dim": 192, "num_heads": 3, "depth": 1}))
    assert deit.read(ViTModel, {}, weights)[0]["num_attention_heads"] == 3
    assert deit.read(ViTModel, {}, original(VisionTransformer(**TIMM)))[0]["num_attention_heads"] is None


@pytest.mark.parametrize(
    ("drop", "message"),
    {
        "head_dist.weight": "1 missing .head_dist.weight., 0 unexpected",
        "norm.bias": "1 missing .norm.bias.",
        "blocks.1.attn.qkv.bias": "1 missing .blocks.1.attn.qkv.bias.",
        "pos_embed": "has no tensor 'pos_embed'",
        "patch_embed.proj.weight": "has no tensor 'patch_embed.proj.weight'",
    }.items(),
)
def test_missing_weights_are_an_error(drop, message):
    weights = original(VisionTransformerDistilled(**TIMM))
    del weights[drop]
    with pytest.raises(ValueError, match=message):
        load(deit, ViTForImageClassification, weights, **HEADS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": torch.ones(1, 15, 32)}, "15 rows for patches of 8x8 pixels.*square image and 1 or 0 tokens"),
        ({"pos_embed": torch.ones(17, 32)}, r"'pos_embed' must have 3 dimensions, none empty; got \(17, 32\)"),
        ({"blocks.7.norm1.bias": torch.ones(32)}, "12 missing .*1 unexpected .blocks.7.norm1.bias"),
    ],
)
def test_wrong_weights_are_an_error(change, message):
    weights = {**original(VisionTransformer(**TIMM)), **change}
    with pytest.raises(ValueError, match=message):
        load(deit, ViTForImageClassification, weights, **HEADS)


@pytest.mark.parametrize(
    ("module", "changes", "expected"),
    [
        (deit, {"pos_embed": (1, 577, 192)}, (438, 384)),
        (deit, {"pos_embed": (1, 198, 192), "dist_token": (1, 1, 192)}, (256, 224)),
        (deit, {"pos_embed": (1, 576, 192), "blocks.0.gamma_1": (192,)}, (384, 384)),
        (mae_original, {"pos_embed": (1, 785, 192)}, (448, 448)),
    ],
)
def test_other_sizes_are_cropped_as_their_code_does(module, changes, expected):
    processor = module.image_processor({}, {**PIXELS, **changes})
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == expected


# transformers' DeiT

CLASSES = {
    "DeiTForImageClassification": ViTForImageClassification,
    "DeiTForImageClassificationWithTeacher": ViTForImageClassification,
    "DeiTModel": ViTModel,
}


def their_model(name: str, **fields):
    return randomize(getattr(transformers, name)(transformers.DeiTConfig(**{**FIELDS, **fields})))


def read_folder(folder, model_class):
    config, _ = transformers.PreTrainedConfig.get_config_dict(folder)
    saved, weights = transformers_deit.read(model_class, config, load_file(folder / "model.safetensors"))
    model = model_class(model_class.config_class.from_dict(saved))
    model.load_state_dict(weights)
    return model.eval()


def write_folder(folder, model):
    config, weights = transformers_deit.write(model)
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def assert_same(ours, theirs):
    images = random_images()
    if isinstance(ours, ViTForImageClassification):
        assert_same_logits(ours, theirs)
        return
    with torch.no_grad():
        found, expected = ours(images), theirs(images)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_model_is_read_and_written_back(tmp_path, name, old_names):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path, save_original_format=old_names)
    names = load_file(tmp_path / "model.safetensors")
    assert any("attention.attention.query" in key for key in names) == old_names
    ours = read_folder(tmp_path, CLASSES[name])
    assert_same(ours, theirs)
    write_folder(tmp_path, ours)
    back, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert back.config.architectures == [name]
    assert_same(ours, back.eval())


def test_base_model_of_a_classifier_has_its_features(tmp_path):
    for name in ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"):
        theirs = their_model(name)
        theirs.save_pretrained(tmp_path)
        with torch.no_grad():
            found, expected = read_folder(tmp_path, ViTModel)(random_images()), theirs.deit(random_images())
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)


def test_head_of_the_class_token_alone_makes_a_register_of_the_distillation_token(tmp_path):
    their_model("DeiTForImageClassification", qkv_bias=False).save_pretrained(tmp_path)
    config = read_folder(tmp_path, ViTForImageClassification).config
    assert (config.num_register_tokens, config.use_distillation_token, config.qkv_bias) == (1, False, False)


@pytest.mark.parametrize(
    ("field", "fields"),
    {
        "num_register_tokens": {},
        "pooling": {"num_register_tokens": 1, "pooling": "mean"},
        "layer_scale_init_value": {"use_distillation_token": True, "layer_scale_init_value": 0.1},
        "representation_size": {"use_distillation_token": True, "representation_size": 24},
    }.items(),
)
def test_writing_refuses_what_transformers_cannot_hold(field, fields):
    with pytest.raises(ValueError, match=f"transformers' DeiT cannot hold `{field}="):
        transformers_deit.write(ViTForImageClassification(tiny_config(**fields)))


def test_both_notes_name_what_differs_from_training():
    [note] = transformers_deit.notes({"model_type": "deit"}, {})
    assert "1e-6" in note and not transformers_deit.notes({"layer_norm_eps": 1e-6}, {})
    [note] = transformers_vit.notes({"layer_norm_eps": 1e-12, "hidden_act": "gelu"}, {})
    assert "tanh" in note and not transformers_vit.notes({"hidden_act": "gelu_pytorch_tanh"}, {})


def test_writing_an_original_model_with_distillation_gives_transformers_two_heads(tmp_path):
    ours = load(deit, ViTForImageClassification, original(randomize(VisionTransformerDistilled(**TIMM))), **HEADS)
    write_folder(tmp_path, ours)
    back = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path).eval()
    assert_same_logits(ours, back)
    assert same(read_folder(tmp_path, ViTForImageClassification).state_dict(), ours.state_dict())
