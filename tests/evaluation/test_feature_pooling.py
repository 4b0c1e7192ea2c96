"""What stands for an image, compared with the outputs of transformers' models on the same weights and images."""

import pytest
import torch
from transformers import (
    AutoModel,
    BitConfig,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    ViTMAEModel,
)
from transformers import CLIPConfig as TheirCLIPConfig
from transformers import CLIPModel as TheirCLIPModel
from transformers import ViTModel as TheirViTModel

from hf_vitfm import CLIPModel, ViTForImageClassification, ViTModel, export_checkpoint
from hf_vitfm.evaluation.features import extract_features
from tests.tiny import (
    TEXT_FIELDS,
    TOWER_FIELDS,
    VISION_FIELDS,
    random_images,
    randomize,
    tiny_clip,
    tiny_config,
    tiny_mae,
)


ROWS = [{"pixel_values": image} for image in random_images(5)]
PIXELS = random_images(5)
TOKENS = {**TOWER_FIELDS, "image_size": 32, "patch_size": 8}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def features(model, pooling: str = "cls", **options) -> torch.Tensor:
    return extract_features(model, ROWS, batch_size=2, pooling=pooling, **options)[0]


@torch.no_grad()
def outputs_of(model):
    return model.eval()(pixel_values=PIXELS, output_hidden_states=True)


def their_clip() -> TheirCLIPModel:
    text = {**TEXT_FIELDS, "projection_dim": 24}
    vision = {**VISION_FIELDS, "projection_dim": 24}
    return randomize(TheirCLIPModel(TheirCLIPConfig(text_config=text, vision_config=vision, projection_dim=24)))


def their_siglip() -> SiglipModel:
    text = {**TEXT_FIELDS, "projection_size": 32}
    return randomize(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION_FIELDS)))


@pytest.mark.parametrize("ours", [False, True])
def test_a_clip_gives_what_stands_before_and_behind_its_projection(tmp_path, ours):
    theirs = their_clip()
    theirs.save_pretrained(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path) if ours else theirs
    tower = outputs_of(theirs.vision_model)
    before, found = tower.pooler_output, features(model, "pre_projection")
    close(found, before)
    close(features(model, "pooler"), before)
    close(features(model, "projected"), theirs.visual_projection(before).detach())
    close(features(model, "cls"), tower.last_hidden_state[:, 0])  # not normed
    close(features(model, "mean"), tower.last_hidden_state[:, 1:].mean(1))
    close(features(model, "mean", layer=1), tower.hidden_states[1][:, 1:].mean(1))
    assert not model.visual_projection._forward_pre_hooks


@pytest.mark.parametrize("ours", [False, True])
def test_siglip_has_no_projection(tmp_path, ours):
    theirs = their_siglip()
    theirs.save_pretrained(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path) if ours else theirs
    for pooling in ("pre_projection", "projected", "pooler"):
        close(features(model, pooling), outputs_of(theirs.vision_model).pooler_output)


def test_what_a_foreign_tower_is_pooled_to_is_what_our_projection_is_given():
    tower = {"model_type": "dinov2", **TOKENS}
    model = tiny_clip(vision=tower, vision_pooling="mean")
    tokens = outputs_of(model.vision_model).last_hidden_state
    close(features(model, "pre_projection"), tokens[:, 1:].mean(1))


NETWORKS = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck"),
    "bit": BitConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4, layer_type="preactivation"),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "swin": SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
    "dinov2": Dinov2Config(**TOKENS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_vision_model_gives_its_pooled_output_and_the_mean_of_any_layer(name):
    model = randomize(AutoModel.from_config(NETWORKS[name]))
    outputs = outputs_of(model)
    found = features(model, "pooler")
    assert found.ndim == 2
    close(found, outputs.pooler_output.flatten(1))
    states = outputs.hidden_states
    assert len(states) > 2
    for layer in range(-len(states), len(states)):
        state = states[layer]
        if state.ndim == 4:
            expected = state.mean((2, 3))
        else:
            expected = state[:, 1 if name == "dinov2" else 0 :].mean(1)
        close(features(model, "mean", layer=layer), expected)
    with pytest.raises(ValueError, match=rf"in {-len(states)}..{len(states) - 1}, .* got {len(states)}"):
        features(model, "mean", layer=len(states))


@pytest.mark.parametrize("fields", [{}, {"pooling": "mean", "num_register_tokens": 2}], ids=["cls", "mean"])
def test_layers_of_a_vit_are_those_of_transformers_before_the_final_norm(tmp_path, fields):
    model = randomize(ViTForImageClassification(tiny_config(**fields)))
    states = outputs_of(model).hidden_states
    if not fields:
        states = outputs_of(TheirViTModel.from_pretrained(export_checkpoint(model, tmp_path))).hidden_states
    assert len(states) == 4
    prefix = 1 + fields.get("num_register_tokens", 0)
    for layer in (0, 2, 3, -1, -4):
        close(features(model, layer=layer), states[layer][:, 0])
        close(features(model, "mean", layer=layer), states[layer][:, prefix:].mean(1))
    assert (features(model, "mean", layer=-1) - features(model, "mean")).norm() > 0.1  # the norm


def test_layers_of_an_autoencoder_see_whole_images(tmp_path):
    model = tiny_mae()
    theirs = TheirViTModel.from_pretrained(export_checkpoint(model.vit, tmp_path), add_pooling_layer=False)
    expected = outputs_of(theirs).hidden_states[1][:, 1:].mean(1)
    for autoencoder in (model, ViTMAEModel.from_pretrained(tmp_path)):
        close(features(autoencoder, "mean", layer=1), expected)


def test_what_a_model_does_not_have_is_said():
    vit = randomize(ViTModel(tiny_config(pooling="none")))
    for pooling, options, message in (
        ("max", {}, "`pooling` must be one of cls, mean, pooler, pre_projection, projected; got 'max'"),
        ("projected", {}, "ViTModel has no `get_image_features`"),
        ("pre_projection", {}, "ViTModel has no `get_image_features`"),
        ("pooler", {}, "ViTModel gives no `pooler_output`"),
        ("pooler", {"layer": 1}, "`layer` goes with `pooling` cls or mean"),
        ("cls", {"layer": 4}, r"`layer` must be in -4..3, .* got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            features(vit, pooling, **options)
