"""transformers' SigLIP: our CLIP computes the same from its folders, and what we write is the model that was read."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    export_checkpoint,
)
from hf_vitfm.conversion import transformers_siglip
from tests.tiny import SIGLIP, TOWER_FIELDS, random_images, randomize, relative_error, tiny_clip


TEXT = {**TOWER_FIELDS, "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 12}
VISION = {**TOWER_FIELDS, "intermediate_size": 40, "image_size": 32, "patch_size": 8}


def their_config(text=None, vision=None) -> transformers.SiglipConfig:
    return transformers.SiglipConfig(
        text_config={**TEXT, "projection_size": 32, **(text or {})}, vision_config={**VISION, **(vision or {})}
    )


def their_model(**fields) -> transformers.SiglipModel:
    return randomize(transformers.SiglipModel(their_config(**fields)))


def texts(batch=3, length=12):
    """Texts of different lengths, padded to the full length with 1, and their mask."""
    tokens = torch.randint(2, 60, (batch, length), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(length) < torch.tensor([length, 5, 8])[:, None]).long()
    return torch.where(mask.bool(), tokens, 1), mask


def load_folder(folder, model_class=CLIPModel):
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


VARIANTS = {
    "plain": {},
    "erf gelu and eps": {
        "text": {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        "vision": {"hidden_act": "gelu", "layer_norm_eps": 1e-2},
    },
    "unequal towers": {"text": {"hidden_size": 48, "num_hidden_layers": 2}},  # as SigLIP 2's giant
    "one channel": {"vision": {"num_channels": 1}},
    "pixels left over": {"vision": {"image_size": 29}},  # as so400m-patch14-384
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_outputs_are_equal(tmp_path, variant):
    theirs = their_model(**VARIANTS[variant])
    ours = load_folder(saved(theirs, tmp_path))
    size = theirs.config.vision_config.image_size
    images = random_images(3, size, size)[:, : theirs.config.vision_config.num_channels]
    tokens, mask = texts()
    for arguments in ({}, {"attention_mask": mask}):
        found, expected = ours(tokens, images, **arguments), theirs(tokens, images, **arguments)
        assert (expected.image_embeds[0] - expected.image_embeds[1]).norm() > 0.01
        assert (expected.text_embeds[0] - expected.text_embeds[1]).norm() > 0.1
        for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
        for name in ("text_model_output", "vision_model_output"):
            torch.testing.assert_close(found[name].to_tuple(), expected[name].to_tuple(), rtol=1e-5, atol=1e-5)


def test_loss_and_gradients_of_the_head_are_equal(tmp_path):
    theirs = their_model()
    ours = load_folder(saved(theirs, tmp_path))
    tokens, images = texts()[0], random_images(3)
    losses = [model(tokens, images, return_loss=True).loss for model in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    sum(losses).backward()
    ours, theirs = ours.vision_model.attention_pooling, theirs.vision_model.head
    pairs = [(ours.query, theirs.probe), (ours.attention.qkv.weight, theirs.attention.in_proj_weight)]
    pairs += [(ours.mlp.fc1.weight, theirs.mlp.fc1.weight), (ours.norm.bias, theirs.layernorm.bias)]
    for found, expected in pairs:
        assert relative_error(found.grad, expected.grad) <= 1e-5


def assert_equal_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_model_is_the_one_that_was_read(tmp_path, variant):
    theirs = their_model(**VARIANTS[variant])
    ours = load_folder(saved(theirs, tmp_path / "theirs"))
    back, info = transformers.SiglipModel.from_pretrained(
        export_checkpoint(ours, tmp_path / "back"), output_loading_info=True
    )
    assert not any(info.values())
    assert_equal_weights(back, theirs)
    expected = transformers.SiglipModel.from_pretrained(tmp_path / "theirs").config.to_dict()
    found = back.config.to_dict()
    if variant == "pixels left over":  # the size that is left does the same
        assert (found["vision_config"].pop("image_size"), expected["vision_config"].pop("image_size")) == (24, 29)
    assert {key for key in expected if found[key] != expected[key]} <= {"_name_or_path", "dtype"}


@pytest.mark.parametrize("prefix", [True, False], ids=["with prefix", "without prefix"])
@pytest.mark.parametrize("source", ["whole", "alone"])
@pytest.mark.parametrize(
    ("model_class", "name"),
    [
        (CLIPTextModel, "SiglipTextModel"),
        (CLIPTextModelWithProjection, "SiglipTextModel"),
        (CLIPVisionModel, "SiglipVisionModel"),
        (CLIPVisionModelWithProjection, "SiglipVisionModel"),
    ],
)
@torch.no_grad()
def test_towers_load_from_both_kinds_of_folders(tmp_path, model_class, name, source, prefix):
    saved(their_model(), tmp_path / "whole")
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "whole").eval()
    saved(theirs, tmp_path / "alone")
    if prefix and source == "alone":  # as older versions of transformers name them
        path = tmp_path / "alone" / "model.safetensors"
        base = f"{theirs.base_model_prefix}."
        renamed = {base + key.removeprefix(base): tensor for key, tensor in load_file(path).items()}
        save_file(renamed, path, metadata={"format": "pt"})
    ours = load_folder(tmp_path / source, model_class)
    inputs = texts()[0] if "Text" in name else random_images(3)
    found, expected = ours(inputs), theirs(inputs)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    pooled = getattr(found, "text_embeds" if "Text" in name else "image_embeds", None)
    pooled = found.pooler_output if pooled is None else pooled
    if model_class is not CLIPTextModel:
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)
        back, info = getattr(transformers, name).from_pretrained(
            export_checkpoint(ours, tmp_path / "back"), output_loading_info=True
        )
        assert not any(info.values())
        assert_equal_weights(back, theirs)


def test_text_tower_without_its_head_is_not_written(tmp_path):
    saved(their_model(), tmp_path)
    with pytest.raises(ValueError, match="cannot hold a text tower without its head"):
        transformers_siglip.write(load_folder(tmp_path, CLIPTextModel))


def test_configuration_as_published_is_read():
    """google/siglip-so400m-patch14-384's, shortened: nulls, fields of no meaning, defaults left out."""
    published = {
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "model_type": "siglip_text_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "projection_size": None,
            "eos_token_id": [1, 2],
        },
        "torch_dtype": "float32",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "a field of tomorrow": None,
        },
    }
    with torch.device("meta"):
        theirs = transformers.SiglipModel(transformers.SiglipConfig.from_dict(published))
        weights = theirs.state_dict()
        fields, converted = transformers_siglip.read(CLIPModel, published, weights)
        ours = CLIPModel(CLIPModel.config_class.from_dict(fields))
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.config.vision_config.image_size == 378 and ours.config.vision_config.trim_images
    assert ours.config.projection_dim == 1152 and ours.config.vision_config.hidden_act == "gelu_pytorch_tanh"


def test_missing_head_and_left_over_weights_are_errors(tmp_path):
    model, config = their_model(), their_config().to_dict()
    weights = model.state_dict()
    for change, message in (
        (lambda w: w.pop("text_model.head.bias"), r"1 missing \(text_projection.bias\)"),
        (lambda w: w.pop("vision_model.head.probe"), r"1 missing \(head.probe\)"),
        (lambda w: w.update({"classifier.weight": torch.zeros(1)}), r"1 unexpected \(classifier.weight\)"),
        (lambda w: w.pop("logit_bias"), r"1 missing \(logit_bias\)"),
    ):
        changed = dict(weights)
        change(changed)
        with pytest.raises(ValueError, match=message):
            transformers_siglip.read(CLIPModel, config, changed)
    with pytest.raises(ValueError, match="vision_use_head=False"):
        transformers_siglip.read(CLIPModel, their_config(vision={"vision_use_head": False}).to_dict(), weights)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (None, "objective", "softmax"),
        ("text", "is_causal", True),
        ("text", "pooling", "eos"),
        ("text", "projection_bias", False),
        ("text", "layer_scale_init_value", 0.1),
        ("vision", "use_projection", True),
        ("vision", "pooling", "mean"),
        ("vision", "use_class_token", True),
        ("vision", "patch_bias", False),
        ("vision", "use_pre_norm", True),
        ("vision", "final_norm", "pooled"),
        ("vision", "num_register_tokens", 2),
        ("vision", "image_size", (32, 16)),
    ],
)
def test_what_the_format_cannot_hold_is_refused(part, field, value):
    transformers_siglip.write(tiny_clip(**SIGLIP))
    changed = {**SIGLIP, **({part: {**SIGLIP[part], field: value}} if part else {field: value})}
    with pytest.raises(ValueError, match=f"SigLIP cannot hold `{field}="):
        transformers_siglip.write(tiny_clip(**changed))
