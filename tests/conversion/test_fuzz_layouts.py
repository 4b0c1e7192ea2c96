"""Valid files of layouts without their library here, and of joined weights, damaged: an error, or a correct load."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm import CLIPVisionModel, ViTForImageClassification, ViTModel, load_image_processor
from hf_vitfm.conversion import jax
from tests.conversion import test_jax
from tests.conversion.test_transformers_siglip import their_model
from tests.tiny import FIELDS, randomize


# Where files of transformers' models have the query and the key of a layer.
LAYERS = {
    "dinov2": ("dinov2.encoder.layer.0.attention.attention", "query", "key"),
    "siglip": ("vision_model.encoder.layers.0.self_attn", "q_proj", "k_proj"),
    "vit": ("vit.encoder.layer.0.attention.attention", "query", "key"),
}
ATTENTION = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"


def save_npz(path, weights) -> None:
    np.savez(path, **{name: np.asarray(value) for name, value in weights.items()})


def swap_sizes(weights, first: str, second: str) -> dict:
    """Rows moved from one of two weights to the other; joined they have the size that they should have."""
    half = len(weights[first]) // 2
    moved = {first: weights[first][:half], second: torch.cat([weights[first][half:], weights[second]])}
    return {**weights, **{name: tensor.contiguous() for name, tensor in moved.items()}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of transformers' models whose query, key and value are weights of their own."""
    fields = {**FIELDS, "mlp_ratio": 2}
    fields.pop("intermediate_size")
    models = {
        "dinov2": transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**fields)),
        "siglip": their_model(),
        "vit": transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS)),
    }
    folders = {}
    for name, model in models.items():
        folders[name] = tmp_path_factory.mktemp(name)
        randomize(model).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("name", ["dinov2", "siglip", "vit"])
@pytest.mark.parametrize("change", ["whole numbers", "booleans", "sizes"])
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_parts_of_one_weight_that_are_not_alike_are_an_error(saved, tmp_path, name, change, kind):
    weights = load_file(saved[name] / "model.safetensors")
    layer, query, key = LAYERS[name]
    first, second = f"{layer}.{query}.{kind}", f"{layer}.{key}.{kind}"
    if change == "sizes":
        weights = swap_sizes(weights, first, second)
    else:
        weights[first] = weights[first].to(torch.bool if change == "booleans" else torch.int64)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((saved[name] / "config.json").read_text())
    model_class = CLIPVisionModel if name == "siglip" else ViTForImageClassification
    with pytest.raises(ValueError, match="are parts of one weight and must be alike"):
        model_class.from_pretrained(tmp_path)


def test_biases_of_heads_whose_axes_are_swapped_are_an_error(tmp_path):
    weights = test_jax.arrays()
    weights[f"{ATTENTION}/value/bias"] = weights[f"{ATTENTION}/value/bias"].T
    save_npz(tmp_path / "x.npz", weights)
    with pytest.raises(
        ValueError, match=r"value/bias' has the shape \(8, 4\), which does not fit its kernel's, \(32, 4, 8\)"
    ):
        ViTModel.from_pretrained(tmp_path / "x.npz")


@pytest.mark.parametrize("shape", [(10**9, 0), (10**6,), (2, 32), (0, 32), ()])
def test_layers_that_are_not_stacked_alike_are_an_error_at_once(tmp_path, shape):
    weights = test_jax.arrays("scan")
    weights["Transformer/encoderblock/LayerNorm_0/bias"] = torch.zeros(shape)
    save_npz(tmp_path / "x.npz", weights)
    with pytest.raises(
        ValueError, match="LayerNorm_0/bias' must have the layers as its first axis, as many as the others"
    ):
        ViTModel.from_pretrained(tmp_path / "x.npz")


def test_more_stacked_layers_than_any_model_has_are_an_error_at_once(tmp_path):
    weights = test_jax.arrays("scan")
    weights |= {name: torch.zeros(10**9, 0) for name in weights if "/encoderblock/" in name}
    save_npz(tmp_path / "x.npz", weights)
    with pytest.raises(ValueError, match="at most 1000; its shape is"):
        ViTModel.from_pretrained(tmp_path / "x.npz")


def test_table_of_positions_far_larger_than_any_models_is_refused_before_it_is_made(tmp_path, monkeypatch):
    weights = test_jax.arrays("big_vision")
    del weights["pos_embedding"]
    weights["embedding/kernel"] = torch.zeros(1, 1, 3, 4000)  # 224x224 patches of width 4000
    save_npz(tmp_path / "x.npz", weights)
    monkeypatch.setattr(jax.torch, "arange", None)
    with pytest.raises(ValueError, match="224x224 positions of width 4000 are more than any model"):
        ViTModel.from_pretrained(tmp_path / "x.npz")


@pytest.mark.parametrize("strange", [["a", "b"], [{"code": 1}], np.zeros(3, [("a", "f4")]), np.zeros(2, "M8[s]")])
def test_arrays_of_text_and_objects_are_left_out_and_missed_where_weights_should_be(tmp_path, strange):
    weights = test_jax.arrays()
    strange = strange if isinstance(strange, np.ndarray) else np.array(strange)
    save_npz(tmp_path / "x.npz", weights)
    expected = ViTModel.from_pretrained(tmp_path / "x.npz").state_dict()
    save_npz(tmp_path / "x.npz", {**weights, "opt/note": strange})
    found = ViTModel.from_pretrained(tmp_path / "x.npz").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    save_npz(tmp_path / "x.npz", {**weights, "embedding/bias": strange})
    with pytest.raises(ValueError, match=r"1 missing \(embedding/bias\)"):
        ViTModel.from_pretrained(tmp_path / "x.npz")


@pytest.mark.parametrize("size", ["224", [224], {"height": 224}, [8, None], 22.4])
def test_sizes_of_open_clips_images_that_are_none_are_named(tmp_path, size):
    model_cfg = {"embed_dim": 8, "vision_cfg": {"image_size": size, "patch_size": 8}, "text_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    save_file({f"weight{i}": torch.zeros(1) for i in range(24)}, tmp_path / "open_clip_model.safetensors")
    for load in (CLIPVisionModel.from_pretrained, load_image_processor):
        with pytest.raises(ValueError, match="configuration's `image_size` must be pixels"):
            load(tmp_path)
