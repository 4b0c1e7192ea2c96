"""Parameter groups: which parameters are decayed, and how the learning rate falls with depth."""

import pytest
import torch
import transformers

from hf_vitfm.training.optimization import is_decayed, layer_ids, parameter_groups
from tests.training.runs import make_model


SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}


def names_by_group(model, **options) -> list[tuple[dict, set[str]]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1.0, 0.1, **options)
    return [(group, {names[id(parameter)] for parameter in group["params"]}) for group in groups]


def test_biases_norms_tokens_and_positions_are_not_decayed():
    model = make_model(num_register_tokens=2, use_distillation_token=True, layer_scale_init_value=0.1, num_labels=3)
    undecayed = {name for group, names in names_by_group(model) for name in names if group["weight_decay"] == 0}
    decayed = {name for group, names in names_by_group(model) for name in names if group["weight_decay"] == 0.1}
    assert decayed | undecayed == {name for name, _ in model.named_parameters()}
    assert {f"vit.embeddings.{name}" for name in ("cls_token", "distillation_token", "register_tokens")} <= undecayed
    assert "vit.embeddings.position_embeddings" in undecayed
    assert "vit.encoder.layers.0.layer_scale1.weight" in undecayed
    assert "vit.layernorm.weight" in undecayed
    assert decayed == {
        name for name, parameter in model.named_parameters() if name.endswith("weight") and parameter.ndim > 1
    }


def test_layer_decay_follows_the_mae_code():
    # mae/util/lr_decay.py: scale = decay ** (num_layers - id), embeddings 0, block i -> i + 1, the rest num_layers
    model = make_model(num_hidden_layers=3, pooling="mean")
    rates = {name: group["lr"] for group, names in names_by_group(model, layer_decay=0.5) for name in names}
    for name, rate in rates.items():
        if "embeddings" in name:
            layer = 0
        elif "layers." in name:
            layer = int(name.split("layers.")[1].split(".")[0]) + 1
        else:
            layer = 4
        assert rate == pytest.approx(0.5 ** (4 - layer)), name


def test_the_first_group_is_the_head_so_that_the_peak_is_logged():
    assert parameter_groups(make_model(), 1.0, 0.1, layer_decay=0.5)[0]["lr"] == 1.0


def test_frozen_parameters_are_left_out():
    model = make_model()
    model.vit.requires_grad_(False)
    names = set().union(*(names for _, names in names_by_group(model, layer_decay=0.5)))
    assert names == {"classifier.weight", "classifier.bias"}


def test_hierarchical_models_have_their_blocks_numbered():
    swin = transformers.SwinForImageClassification(transformers.SwinConfig(**SWIN))
    ids, last = layer_ids(swin)
    assert last == 4  # 2 + 1 blocks
    assert ids["swin.embeddings.patch_embeddings.projection.weight"] == 0
    assert {ids[name] for name in ids if "layers.0.blocks.1." in name} == {2}
    assert {ids[name] for name in ids if "layers.0.downsample" in name} == {2}
    assert {ids[name] for name in ids if "layers.1.blocks.0." in name} == {3}
    assert ids["swin.layernorm.weight"] == ids["classifier.weight"] == 4
    resnet = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET))
    ids, last = layer_ids(resnet)
    assert last == 3
    assert {ids[name] for name in ids if "embedder" in name} == {0}
    assert {ids[name] for name in ids if "stages.1." in name} == {2}
    assert {ids[name] for name in ids if name.startswith("classifier")} == {3}


def test_a_model_without_layers_is_an_error():
    with pytest.raises(ValueError, match="Set `layer_decay=1`"):
        parameter_groups(torch.nn.Linear(2, 2), 1.0, 0.1, layer_decay=0.5)


def test_is_decayed_looks_at_dimensions_and_names():
    matrix, vector = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    assert is_decayed("classifier.weight", matrix)
    assert not is_decayed("norm.weight", vector)
    assert not is_decayed("swin.attention.relative_position_bias_table", matrix)
