"""Our CLIP computes what transformers' CLIP computes, for weights read from its folders and written back to them."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    export_checkpoint,
)
from tests.tiny import TEXT_FIELDS, VISION_FIELDS, random_images, random_texts, randomize, relative_error, tiny_clip


TEXT_CLASSES = (CLIPTextModel, CLIPTextModelWithProjection)
VISION_CLASSES = (CLIPVisionModel, CLIPVisionModelWithProjection)


def their_config(text=None, vision=None, **fields) -> transformers.CLIPConfig:
    towers = {
        "text_config": {**TEXT_FIELDS, "projection_dim": 24, **(text or {})},
        "vision_config": {**VISION_FIELDS, "projection_dim": 24, **(vision or {})},
    }
    return transformers.CLIPConfig(**{**towers, "projection_dim": 24, **fields})


def their_model(**fields) -> transformers.CLIPModel:
    return randomize(transformers.CLIPModel(their_config(**fields)))


def load_pair(folder, theirs, implementation="sdpa") -> CLIPModel:
    theirs.save_pretrained(folder)
    theirs.set_attn_implementation(implementation)
    ours = CLIPModel.from_pretrained(folder, attn_implementation=implementation)
    assert ours.text_model.config._attn_implementation == implementation
    return ours


def gradients(model, folder) -> dict[str, torch.Tensor]:
    """Gradients under our names: they take the place of the weights and go through the conversion."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder)
    return CLIPModel.from_pretrained(folder).state_dict()


def load_again(folder) -> transformers.CLIPModel:
    return transformers.CLIPModel.from_pretrained(folder)


def assert_equal_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


VARIANTS = {
    "plain": {},
    "gelu": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
    "eps": {"text": {"layer_norm_eps": 1e-3}, "vision": {"layer_norm_eps": 1e-2}},
    "one channel": {"vision": {"num_channels": 1}},
    "end token 2": {"text": {"eos_token_id": 2}},
    "unequal towers": {"text": {"hidden_size": 48, "num_hidden_layers": 2}},
}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_outputs_are_equal(tmp_path, variant, implementation):
    theirs = their_model(**VARIANTS[variant])
    ours = load_pair(tmp_path, theirs, implementation)
    images = random_images(3)[:, : theirs.config.vision_config.num_channels]
    tokens, mask = random_texts(2)
    for arguments in ({}, {"attention_mask": mask}, {"attention_mask": torch.ones_like(mask)}):
        recorded = {"output_hidden_states": True, "output_attentions": True} if implementation == "eager" else {}
        found = ours(tokens, images, return_loss=False, **arguments, **recorded)
        expected = theirs(tokens, images, **arguments, **recorded)
        assert (expected.text_embeds[0] - expected.text_embeds[1]).norm() > 0.1
        for name in ("image_embeds", "text_embeds"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
        for name in ("logits_per_image", "logits_per_text"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
        for name in ("text_model_output", "vision_model_output"):
            assert list(found[name]) == list(expected[name])
            torch.testing.assert_close(found[name].to_tuple(), expected[name].to_tuple(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_are_equal(tmp_path, masked):
    theirs = their_model()
    ours = load_pair(tmp_path / "theirs", theirs)
    tokens, mask = random_texts(4)
    arguments = {"input_ids": tokens, "pixel_values": random_images(4), "attention_mask": mask if masked else None}
    losses = [model(**arguments, return_loss=True).loss for model in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    sum(losses).backward()
    expected = gradients(theirs, tmp_path / "their gradients")
    for name, parameter in ours.named_parameters():
        found, wanted = parameter.grad, expected[name]
        if name.endswith("qkv.bias"):  # the key third's true gradient is zero
            found, wanted = (torch.cat(tensor.chunk(3)[::2]) for tensor in (found, wanted))
        assert relative_error(found, wanted) <= 1e-5, name


@torch.no_grad()
def test_features_and_images_of_another_size_are_equal(tmp_path):
    theirs = their_model()
    ours = load_pair(tmp_path, theirs)
    images, (tokens, mask) = random_images(2, 48, 24), random_texts(3)
    expected = theirs.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    found = ours.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    resized = CLIPModel.from_pretrained(tmp_path, image_size=(48, 24))
    torch.testing.assert_close(resized.get_image_features(images).pooler_output, expected, rtol=0, atol=1e-5)
    found = ours.get_text_features(tokens, mask)
    expected = theirs.get_text_features(tokens, mask)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    places = torch.arange(7).flip(0)[None]
    expected = theirs.get_text_features(tokens, position_ids=places).pooler_output
    torch.testing.assert_close(
        ours.get_text_features(tokens, position_ids=places).pooler_output, expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_model_is_the_one_that_was_read(tmp_path, variant):
    theirs = their_model(**VARIANTS[variant])
    ours = load_pair(tmp_path / "theirs", theirs)
    back = load_again(export_checkpoint(ours, tmp_path / "back"))
    assert_equal_weights(back, theirs)
    found, expected = back.config.to_dict(), load_again(tmp_path / "theirs").config.to_dict()
    assert {key for key in expected if found[key] != expected[key]} <= {"_name_or_path"}


@pytest.mark.parametrize("source", ["theirs alone", "theirs whole", "ours whole", "ours alone"])
@pytest.mark.parametrize("model_class", [*TEXT_CLASSES, *VISION_CLASSES])
@torch.no_grad()
def test_towers_load_from_both_kinds_of_folders(tmp_path, model_class, source):
    whole, name = their_model(), model_class.__name__
    whole.save_pretrained(tmp_path / "theirs whole")
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "theirs whole").eval()
    theirs.save_pretrained(tmp_path / "theirs alone")
    CLIPModel.from_pretrained(tmp_path / "theirs whole").save_pretrained(tmp_path / "ours whole")
    model_class.from_pretrained(tmp_path / "ours whole").save_pretrained(tmp_path / "ours alone")
    ours, info = model_class.from_pretrained(tmp_path / source, output_loading_info=True)
    assert not any(info.values()) and ours.config.projection_dim == 24
    inputs = random_texts(3) if model_class in TEXT_CLASSES else (random_images(3),)
    found, expected = ours(*inputs), theirs(*inputs)
    assert list(found) == list(expected)
    torch.testing.assert_close(found.to_tuple(), expected.to_tuple(), rtol=1e-5, atol=1e-5)
    back = getattr(transformers, name).from_pretrained(export_checkpoint(ours, tmp_path / "back"))
    assert_equal_weights(back, theirs)


@pytest.mark.parametrize(
    ("model_class", "other"), [(CLIPTextModel, CLIPTextModelWithProjection), (CLIPVisionModelWithProjection, None)]
)
def test_projection_is_left_out_or_made_anew(tmp_path, model_class, other):
    name = (other or CLIPVisionModel).__name__
    fields = TEXT_FIELDS if other else VISION_FIELDS
    config = transformers.CLIPTextConfig(**fields) if other else transformers.CLIPVisionConfig(**fields)
    randomize(getattr(transformers, name)(config)).save_pretrained(tmp_path)
    _, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == (set() if other else {"visual_projection.weight"})


def make_legacy(folder) -> None:
    """Give a folder the form of those published in 2021 and 2022."""
    saved = json.loads((folder / "config.json").read_text())
    saved["text_config"]["eos_token_id"] = 2
    for name in ("text_config", "vision_config"):
        defaults = transformers.CLIPConfig().to_dict()[name]
        tower = saved.pop(name)
        saved[f"{name}_dict"] = {key: value for key, value in tower.items() if value != defaults.get(key)}
        saved[name] = {"hidden_size": 8} if name == "text_config" else None  # the other dictionary wins
    (folder / "config.json").write_text(json.dumps(saved))
    weights = load_file(folder / "model.safetensors")
    for tower, length in (("text_model", 12), ("vision_model", 17)):
        weights[f"{tower}.embeddings.position_ids"] = torch.arange(length)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def test_legacy_folder_is_read_and_pools_at_the_end_token_although_tokens_were_added(tmp_path):
    theirs = their_model(text={"vocab_size": 49410, "eos_token_id": 49407, "bos_token_id": 49406})
    theirs.save_pretrained(tmp_path)
    make_legacy(tmp_path)
    ours = CLIPModel.from_pretrained(tmp_path)
    assert (ours.config.text_config.eos_token_id, ours.config.text_config.pooling) == (49407, "eos")
    tokens = torch.tensor([[49406, 5, 49409, 6, 49407, 1], [49406, 7, 8, 49408, 9, 49407]])
    found, expected = (model.get_text_features(tokens).pooler_output for model in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    wrong = load_again(tmp_path).get_text_features(tokens).pooler_output
    assert (wrong - expected).norm() > 0.1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"objective": "sigmoid"}, "objective='sigmoid'"),
        ({"text": {"layer_scale_init_value": 0.1}}, "layer_scale_init_value=0.1"),
        ({"text": {"eos_token_id": 2}}, "eos_token_id=2"),
        ({"vision": {"num_register_tokens": 2}}, "num_register_tokens=2"),
        ({"vision": {"pooling": "mean"}}, "pooling='mean'"),
        ({"vision": {"image_size": (32, 16)}}, r"image_size=\(32, 16\)"),
        ({"vision": transformers.ViTConfig(**VISION_FIELDS).to_dict(), "vision_pooling": "cls"}, "ViTConfig"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, fields, named):
    with pytest.raises(ValueError, match=f"transformers' CLIP cannot hold .*{named}"):
        export_checkpoint(tiny_clip(**fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_base_size_agrees(tmp_path):
    torch.manual_seed(0)
    ours = CLIPModel(CLIPConfig.from_variant("B/32")).eval()
    theirs = load_again(export_checkpoint(ours, tmp_path)).eval()
    tokens = torch.randint(1, 49406, (2, 77))
    tokens[:, 0], tokens[0, 40], tokens[1, 76] = 49406, 49407, 49407
    images = random_images(2, 224, 224)
    found, expected = ours(tokens, images), theirs(tokens, images)
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-5)
