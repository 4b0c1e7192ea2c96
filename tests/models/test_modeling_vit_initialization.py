"""Every parameter is initialised, by whatever way a model comes to be, and to the values its configuration names."""

import math

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from hf_vitfm import ViTForImageClassification, ViTModel
from hf_vitfm.models.modeling_embeddings import sincos_positions
from tests.tiny import OPTIONS, tiny_config


options = pytest.mark.parametrize("name", OPTIONS)


def assert_initialised(model):
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    assert bad == []
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_unwritten_memory_shows(nan_memory):
    assert torch.empty(3).isnan().all() and torch.empty_like(torch.zeros(3)).isnan().all()


@options
@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_every_parameter_is_set_after_construction(nan_memory, name, model_class):
    assert_initialised(model_class(tiny_config(**OPTIONS[name])))


@options
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification])
def test_every_parameter_is_set_by_from_config(nan_memory, name, auto_class):
    assert_initialised(auto_class.from_config(tiny_config(**OPTIONS[name])))


@options
@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_every_parameter_is_set_when_the_model_comes_from_the_meta_device(nan_memory, name, model_class):
    config = tiny_config(**OPTIONS[name])
    assert_initialised(model_class.from_pretrained(None, config=config, state_dict={}))


@pytest.mark.parametrize("name", ["all with class token", "all with mean"])
@pytest.mark.parametrize("part", [0, 1])
def test_weights_that_are_not_given_are_initialised_and_the_others_loaded(nan_memory, name, part):
    model = ViTForImageClassification(tiny_config(**OPTIONS[name]))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    kept = dict(list(model.state_dict().items())[part::2])
    loaded = ViTForImageClassification.from_pretrained(None, config=model.config, state_dict=kept)
    assert_initialised(loaded)
    for key, tensor in loaded.state_dict().items():
        assert (tensor == 7).all() == (key in kept), key


def test_every_weight_of_ours_replaces_torchs_own_initialisation():
    # torch's layers initialise themselves, with other values: uniform weights and biases.
    model = ViTForImageClassification(tiny_config(representation_size=24, num_register_tokens=2))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name.startswith("classifier"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            deviation = parameter.std().item()
            assert deviation == pytest.approx(0.02, rel=6 / math.sqrt(2 * parameter.numel())), name


def test_initializer_range_sets_the_standard_deviation():
    model = ViTModel(tiny_config(initializer_range=0.3))
    assert model.encoder.layers[0].attention.qkv.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert model.embeddings.position_embeddings.std().item() == pytest.approx(0.3, rel=0.2)


def test_heads_are_zero_by_default_and_both_of_a_distilled_model():
    model = ViTForImageClassification(tiny_config(use_distillation_token=True))
    for head in (model.classifier, model.distillation_classifier):
        assert (head.weight == 0).all() and (head.bias == 0).all()


@pytest.mark.parametrize("weight_init", ["trunc_normal", "jax"])
def test_head_of_small_normals_has_maes_deviation(weight_init):
    config = tiny_config(head_init="trunc_normal", num_labels=1000, weight_init=weight_init)
    head = ViTForImageClassification(config).classifier
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert (head.bias == 0).all()


def test_layer_scale_begins_at_its_value():
    for layer in ViTModel(tiny_config(layer_scale_init_value=0.1)).encoder.layers:
        for scale in (layer.layer_scale1, layer.layer_scale2):
            assert torch.equal(scale.weight, torch.full((32,), 0.1))


def assert_uniform(weight, bound):
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_jax_initialisation_is_that_of_the_papers_code():
    model = ViTModel(tiny_config(weight_init="jax", hidden_size=64, intermediate_size=96, layer_norm_eps=1e-6))
    layer = model.encoder.layers[0]
    for matrix in layer.attention.qkv.weight.chunk(3):
        assert_uniform(matrix, math.sqrt(6 / (64 + 64)))
    assert_uniform(layer.attention.proj.weight, math.sqrt(6 / (64 + 64)))
    for dense in (layer.mlp.fc1, layer.mlp.fc2):
        assert_uniform(dense.weight, math.sqrt(6 / (64 + 96)))
        assert 0 < dense.bias.abs().max() < 6e-6
        assert dense.bias.std().item() == pytest.approx(1e-6, rel=0.4)
    assert (layer.attention.qkv.bias == 0).all() and (layer.attention.proj.bias == 0).all()
    assert (model.embeddings.cls_token == 0).all()
    assert model.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.1)
    projection = model.embeddings.patch_embeddings.projection
    fan_in = 3 * 8 * 8  # LeCun normal, cut at two deviations and scaled back to unit variance
    assert projection.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.05)
    assert projection.weight.abs().max() <= 2 * fan_in**-0.5 / 0.87962566
    assert (projection.bias == 0).all()


@pytest.mark.parametrize("weight_init", ["trunc_normal", "jax"])
@pytest.mark.parametrize("position_embedding_type", ["learned", "sincos"])
def test_prefix_tokens_begin_different_from_each_other(weight_init, position_embedding_type):
    # Tokens that begin equal, positions included, get equal gradients and never become different.
    config = tiny_config(
        weight_init=weight_init,
        position_embedding_type=position_embedding_type,
        num_register_tokens=3,
        use_distillation_token=True,
    )
    prefix = ViTModel(config).embeddings(torch.zeros(1, 3, 32, 32))[0, :5]
    assert torch.pdist(prefix).min() > 0.01


@pytest.mark.parametrize("way", ["construction", "meta device", "file", "file without it"])
def test_sincos_table_survives_every_way_to_a_model(tmp_path, way):
    config = tiny_config(position_embedding_type="sincos")
    if way == "construction":
        model = ViTModel(config)
    elif way == "meta device":
        model = ViTModel.from_pretrained(None, config=config, state_dict={})
    else:
        saved = ViTModel(config)
        kept = {name: value for name, value in saved.state_dict().items() if way == "file" or "position" not in name}
        saved.save_pretrained(tmp_path, state_dict=kept)
        model = ViTModel.from_pretrained(tmp_path)
    positions = model.embeddings.position_embeddings
    assert torch.equal(positions[0, 1:], sincos_positions(32, (4, 4))) and (positions[0, 0] == 0).all()
    assert not positions.requires_grad


def test_same_seed_gives_the_same_weights():
    weights = []
    for _ in range(2):
        torch.manual_seed(4)
        weights.append(ViTModel(tiny_config()).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
