"""The .npz files of vision_transformer and big_vision: arrays under their documented names, read by timm and by ours."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from hf_vitfm import ViTForImageClassification, ViTModel
from hf_vitfm.conversion import jax
from tests.conversion.direct import load, same, shapes
from tests.tiny import random_images, randomize, tiny_config


WIDTH, HEADS, MLP, LAYERS, PATCH, GRID, CLASSES = 32, 4, 48, 3, 8, 4, 5
TIMM = {
    "img_size": PATCH * GRID,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": LAYERS,
    "num_heads": HEADS,
    "mlp_ratio": MLP / WIDTH,
    "num_classes": CLASSES,
    "act_layer": "gelu_tanh",
}
JAX_FIELDS = {"hidden_act": "gelu_pytorch_tanh", "position_interpolation": "bilinear_align_corners"}


def layer(attention: int, norm: int, mlp: int) -> dict[str, tuple]:
    """Shapes of a layer's arrays; submodules are numbered differently in the two repositories."""
    heads = (HEADS, WIDTH // HEADS)
    found = {f"LayerNorm_{n}/{kind}": (WIDTH,) for n in (0, norm) for kind in ("scale", "bias")}
    for part in ("query", "key", "value"):
        found[f"MultiHeadDotProductAttention_{attention}/{part}/kernel"] = (WIDTH, *heads)
        found[f"MultiHeadDotProductAttention_{attention}/{part}/bias"] = heads
    found[f"MultiHeadDotProductAttention_{attention}/out/kernel"] = (*heads, WIDTH)
    found[f"MultiHeadDotProductAttention_{attention}/out/bias"] = (WIDTH,)
    for n, (width_in, width_out) in enumerate([(WIDTH, MLP), (MLP, WIDTH)]):
        found[f"MlpBlock_{mlp}/Dense_{n}/kernel"] = (width_in, width_out)
        found[f"MlpBlock_{mlp}/Dense_{n}/bias"] = (width_out,)
    return found


def array_shapes(kind: str, class_token: bool = True) -> dict[str, tuple]:
    found = {
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
        "head/kernel": (WIDTH, CLASSES),
        "head/bias": (CLASSES,),
    }
    if class_token:
        found["cls"] = (1, 1, WIDTH)
    if kind == "vision_transformer":
        found["Transformer/posembed_input/pos_embedding"] = (1, GRID**2 + class_token, WIDTH)
        block = layer(attention=1, norm=2, mlp=3)
    else:
        found["pos_embedding"] = (1, GRID**2, WIDTH)
        block = layer(attention=0, norm=1, mlp=0)
    for name, shape in block.items():
        if kind == "scan":
            found[f"Transformer/encoderblock/{name}"] = (LAYERS, *shape)
        else:
            found |= {f"Transformer/encoderblock_{i}/{name}": shape for i in range(LAYERS)}
    return found


def arrays(kind: str = "vision_transformer", prefix: str = "", **options) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        prefix + name: 0.2 * torch.randn(shape, generator=generator) + name.endswith("scale")
        for name, shape in array_shapes(kind, **options).items()
    }


def theirs(path, weights, **options) -> VisionTransformer:
    """timm's model, which reads the file by timm's own reader."""
    np.savez(path, **{name: tensor.numpy() for name, tensor in weights.items()})
    model = VisionTransformer(**{**TIMM, **options})
    model.load_pretrained(str(path))
    return model.eval()


@torch.no_grad()
def assert_same_outputs(ours, expected, images=None):
    images = random_images() if images is None else images
    found, expected = ours(images).logits, expected(images)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


LAYOUTS = {
    "vision_transformer": ("vision_transformer", "", {}),
    "big_vision": ("big_vision", "", {"no_embed_class": True}),
    "big_vision of a trainer": ("big_vision", "params/", {"no_embed_class": True}),
    "big_vision beside a text tower": ("big_vision", "params/img/", {"no_embed_class": True}),
    "big_vision of an old trainer": ("big_vision", "opt/target/", {"no_embed_class": True}),
    "scanned layers": ("scan", "params/", {"no_embed_class": True}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_and_features_are_those_of_timm(tmp_path, layout):
    kind, prefix, options = LAYOUTS[layout]
    weights = arrays(kind, prefix)
    expected = theirs(tmp_path / "theirs.npz", weights, **options)
    if prefix:  # what lies beside the image model
        weights["opt/0/count"] = torch.ones(1)
    if prefix == "params/img/":
        weights["params/txt/head/kernel"] = torch.ones(2, 2)
    assert jax.matches({}, shapes(weights))
    assert_same_outputs(load(jax, ViTForImageClassification, weights), expected)
    base, images = load(jax, ViTModel, weights), random_images()
    with torch.no_grad():
        torch.testing.assert_close(
            base(images).last_hidden_state, expected.forward_features(images), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["vision_transformer", "big_vision", "scan"])
def test_mean_of_normed_tokens_without_a_class_token(tmp_path, kind):
    weights = arrays(kind, class_token=False)
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "no_embed_class": True}
    ours = load(jax, ViTForImageClassification, weights)
    assert (ours.config.pooling, ours.config.use_class_token) == ("mean", False)
    assert_same_outputs(ours, theirs(tmp_path / "theirs.npz", weights, **options))
    assert any("no class token" in note for note in jax.notes({}, shapes(weights)))


def test_configuration_follows_the_shapes_and_the_code():
    config = load(jax, ViTForImageClassification, arrays()).config
    assert (config.num_attention_heads, config.intermediate_size, config.num_hidden_layers) == (HEADS, MLP, LAYERS)
    assert (config.image_size, config.patch_size, config.num_labels) == (32, 8, 5)
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)


def test_pre_logits_layer(tmp_path):
    weights = {**arrays(), "pre_logits/kernel": torch.randn(WIDTH, 24), "pre_logits/bias": torch.randn(24)}
    expected = theirs(tmp_path / "theirs.npz", weights, num_classes=0)  # timm leaves the layer out
    weights["head/kernel"] = torch.randn(24, CLASSES)
    images = random_images()
    with torch.no_grad():
        features = torch.tanh(expected(images) @ weights["pre_logits/kernel"] + weights["pre_logits/bias"])
        torch.testing.assert_close(load(jax, ViTModel, weights)(images).pooler_output, features, rtol=0, atol=1e-5)
        logits = features @ weights["head/kernel"] + weights["head/bias"]
        ours = load(jax, ViTForImageClassification, weights)
        torch.testing.assert_close(ours(images).logits, logits, rtol=0, atol=1e-5)
    assert same(jax.write(ours)["model.npz"], weights)


def test_positions_that_are_a_formula():
    weights = arrays("big_vision", class_token=False)
    del weights["pos_embedding"]
    found = load(jax, ViTModel, weights).embeddings.position_embeddings[0].detach().numpy()
    y, x = np.mgrid[:28, :28]  # patches of 224 pixels
    angles = np.concatenate([x.reshape(-1, 1), y.reshape(-1, 1)], axis=1)[:, :, None] / np.geomspace(
        1, 1e4, WIDTH // 4
    )
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=2).reshape(28 * 28, WIDTH)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert any("sine-cosine" in note for note in jax.notes({}, shapes(weights)))


@pytest.mark.parametrize("class_token", [True, False])
def test_written_file_is_read_by_timm_and_by_us(tmp_path, class_token):
    fields = {} if class_token else {"use_class_token": False, "pooling": "mean", "final_norm": "tokens"}
    ours = randomize(ViTForImageClassification(tiny_config(**JAX_FIELDS, **fields)))
    weights = jax.write(ours)["model.npz"]
    options = {} if class_token else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    assert shapes(weights) == array_shapes("vision_transformer", class_token)
    assert_same_outputs(ours, theirs(tmp_path / "ours.npz", weights, **options))
    assert same(load(jax, ViTForImageClassification, weights).state_dict(), ours.state_dict())


@pytest.mark.parametrize("kind", ["vision_transformer", "big_vision", "scan"])
def test_reading_and_writing_changes_nothing(kind):
    weights = jax.write(load(jax, ViTForImageClassification, arrays(kind)))["model.npz"]
    again = jax.write(load(jax, ViTForImageClassification, weights))["model.npz"]
    assert same(again, weights)
    if kind == "vision_transformer":
        assert same(weights, arrays())


@pytest.mark.parametrize(
    ("field", "fields"),
    {
        "pooling": {"pooling": "mean"},
        "final_norm": {"final_norm": "none"},
        "use_distillation_token": {"use_distillation_token": True},
        "num_register_tokens": {"num_register_tokens": 1},
        "layer_scale_init_value": {"layer_scale_init_value": 0.1},
        "qkv_bias": {"qkv_bias": False},
        "layer_norm_eps": {"layer_norm_eps": 1e-12},
        "hidden_act": {"hidden_act": "gelu"},
        "image_size": {"image_size": (32, 48)},
    }.items(),
)
def test_writing_refuses_what_the_code_cannot_compute(field, fields):
    model = ViTForImageClassification(tiny_config(**{**JAX_FIELDS, **fields}))
    with pytest.raises(ValueError, match=f"JAX code cannot hold `{field}="):
        jax.write(model)


REFUSED = {
    "a hybrid, whose patches come from a ResNet .*block1/unit1/conv1/kernel.*timm reads it": {
        "conv_root/kernel": torch.ones(7, 7, 3, 64),
        "block1/unit1/conv1/kernel": torch.ones(1, 1, 64, 64),
    },
    "pools by attention .*MAPHead_0/probe": {"MAPHead_0/probe": torch.ones(1, 1, WIDTH)},
    r"1 unexpected \(Transformer/encoderblock_0/extra/scale\)": {
        "Transformer/encoderblock_0/extra/scale": torch.ones(3)
    },
    "16 missing .*16 unexpected": {
        name.replace("encoderblock_0", "encoderblock_9"): tensor
        for name, tensor in arrays().items()
        if "encoderblock_0" in name
    },
    "must have 4 dimensions, none empty; got .7, 32": {"embedding/kernel": torch.ones(7, WIDTH)},
    "positions for 19 patches of 8x8 pixels": {"Transformer/posembed_input/pos_embedding": torch.ones(1, 19, WIDTH)},
    "'head/kernel' must have 2 dimensions": {"head/kernel": torch.ones(2, 2, 2, 2)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_models_and_damaged_files_are_refused_in_a_sentence(message):
    with pytest.raises(ValueError, match=message):
        load(jax, ViTForImageClassification, {**arrays(), **REFUSED[message]})


@pytest.mark.parametrize(
    "twin",
    [
        "Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias",
        "Transformer/encoderblock_1/LayerNorm_1/scale",
        "Transformer/encoderblock_2/MultiHeadDotProductAttention_0/out/bias",
        "pos_embedding",
    ],
)
def test_weight_under_the_names_of_both_repositories_is_an_error(twin):
    weights = {**arrays("vision_transformer"), twin: arrays("big_vision")[twin]}
    with pytest.raises(ValueError, match="are the same weight; the file is damaged"):
        jax.read(ViTModel, {}, weights)


def test_layer_that_is_stacked_and_alone_is_an_error():
    name = "Transformer/encoderblock_1/LayerNorm_0/bias"
    weights = {**arrays("scan"), name: arrays("big_vision")[name]}
    with pytest.raises(ValueError, match=f"stacked under .* and alone .'{name}'"):
        jax.read(ViTModel, {}, weights)


@pytest.mark.parametrize("name", ["cls", "Transformer/encoder_norm/bias", "Transformer/posembed_input/pos_embedding"])
def test_missing_arrays_are_an_error(name):
    weights = arrays()
    del weights[name]
    with pytest.raises((ValueError, RuntimeError), match="missing|size mismatch"):
        load(jax, ViTForImageClassification, weights)


def test_other_files_are_not_taken_for_these():
    assert not jax.matches({"model_type": "vit"}, shapes(arrays()))
    assert not jax.matches({}, {"stem/kernel": (8, 8, 3, 32), "MixerBlock_0/LayerNorm_0/scale": (32,)})
