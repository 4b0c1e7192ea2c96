"""Our ViT computes what transformers' ViT computes, for weights read from its folders and written back to them."""

import re

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_vitfm import ViTForImageClassification, ViTModel, export_checkpoint
from tests.tiny import FIELDS, random_images, randomize, relative_error


LABELS = torch.tensor([0, 3])
# Module names of transformers' parameters -> ours, qkv aside.
RENAMES = (
    (r"^(vit\.)?layers\.", r"\1encoder.layers."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.o_proj", "attention.proj"),
    (r"pooler\.dense", "pre_logits"),
)


def their_model(model_class=transformers.ViTForImageClassification, **fields):
    return randomize(model_class(transformers.ViTConfig(**{**FIELDS, "layer_norm_eps": 1e-12, **fields})))


def gradients_under_our_names(model) -> dict[str, torch.Tensor]:
    """transformers' gradients, those of q, k and v joined."""
    gradients = {}
    for name, parameter in model.named_parameters():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        gradients[name] = parameter.grad
    for name in [name for name in gradients if "q_proj" in name]:
        parts = [gradients.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        gradients[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return gradients


def assert_same_gradients(ours, theirs, tolerance):
    expected = gradients_under_our_names(theirs)
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert set(found) == set(expected)
    for name in expected:
        if name.endswith("qkv.bias"):  # the key third's true gradient is zero
            found[name], expected[name] = (torch.cat(g.chunk(3)[::2]) for g in (found[name], expected[name]))
        assert relative_error(found[name], expected[name]) < tolerance, name


def assert_same_outputs(ours, theirs, images, atol=1e-5):
    with torch.no_grad():
        found, expected = ours(images).logits, theirs(images).logits
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def load_pair(folder, theirs, implementation="sdpa", **save):
    theirs.save_pretrained(folder, **save)
    theirs.set_attn_implementation(implementation)
    ours = ViTForImageClassification.from_pretrained(folder, attn_implementation=implementation)
    assert ours.config._attn_implementation == implementation
    return ours


VARIANTS = {
    "plain": {},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "quick gelu": {"hidden_act": "quick_gelu"},
    "relu": {"hidden_act": "relu"},
    "no qkv bias": {"qkv_bias": False},
    "eps": {"layer_norm_eps": 1e-3},
    "one channel": {"num_channels": 1},
    "not square": {"image_size": (16, 40), "patch_size": (4, 8)},
    "nine labels": {"num_labels": 9},
}


def images_for(config, batch=2):
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return random_images(batch, height, width)[:, : config.num_channels]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_equal(tmp_path, variant, implementation):
    theirs = their_model(**VARIANTS[variant])
    ours = load_pair(tmp_path, theirs, implementation)
    assert_same_outputs(ours, theirs, images_for(ours.config))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_loss_and_gradients_are_equal(tmp_path, implementation):
    theirs = their_model()
    ours = load_pair(tmp_path, theirs, implementation)
    losses = [model.train()(random_images(), labels=LABELS).loss for model in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    sum(losses).backward()
    assert_same_gradients(ours, theirs, tolerance=1e-5)


def test_gradients_are_equal_to_ten_digits_in_float64(tmp_path):
    theirs = their_model().double()
    ours = load_pair(tmp_path, theirs, "sdpa")  # transformers' eager softmax is float32
    for model in (ours, theirs):
        model.train()(random_images().double(), labels=LABELS).loss.backward()
    assert ours.dtype == torch.float64
    assert_same_gradients(ours, theirs, tolerance=1e-10)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [("regression", torch.randn(2, 5)), ("multi_label_classification", torch.eye(5)[:2]), (None, torch.eye(5)[:2])],
)
def test_losses_of_float_labels_are_equal(tmp_path, problem_type, labels):
    theirs = their_model(problem_type=problem_type)
    ours = load_pair(tmp_path, theirs)
    assert ours.config.problem_type == problem_type
    losses = [model(random_images(), labels=labels).loss for model in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@torch.no_grad()
def test_hidden_states_and_attentions_are_equal(tmp_path):
    theirs = their_model()
    ours = load_pair(tmp_path, theirs, "eager")
    found, expected = (
        model(random_images(), output_hidden_states=True, output_attentions=True) for model in (ours, theirs)
    )
    assert (len(found.hidden_states), len(found.attentions)) == (4, 3)
    torch.testing.assert_close(found.hidden_states, expected.hidden_states, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.attentions, expected.attentions, rtol=0, atol=1e-6)


@torch.no_grad()
def test_images_of_another_size_are_equal_with_interpolated_positions(tmp_path):
    theirs = their_model()
    ours = load_pair(tmp_path, theirs)
    images = random_images(2, 48, 24)
    expected = theirs(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(ours(images, interpolate_pos_encoding=True).logits, expected, rtol=0, atol=1e-5)
    resized = ViTForImageClassification.from_pretrained(tmp_path, image_size=(48, 24))
    torch.testing.assert_close(resized(images).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooler_output_size", [32, 24])
def test_pooler_becomes_pre_logits_and_pre_logits_a_pooler(tmp_path, pooler_output_size):
    theirs = their_model(transformers.ViTModel, pooler_output_size=pooler_output_size)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ViTModel.from_pretrained(tmp_path / "theirs")
    assert ours.config.representation_size == pooler_output_size
    found, expected = ours(random_images()), theirs(random_images())
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)
    back = transformers.ViTModel.from_pretrained(export_checkpoint(ours, tmp_path / "back"))
    assert back.config.pooler_output_size == pooler_output_size
    assert_equal_weights(back, theirs)


@torch.no_grad()
def test_base_model_without_pooler_goes_both_ways(tmp_path):
    theirs = randomize(transformers.ViTModel(transformers.ViTConfig(**FIELDS), add_pooling_layer=False))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ViTModel.from_pretrained(tmp_path / "theirs")
    expected = theirs(random_images()).last_hidden_state
    torch.testing.assert_close(ours(random_images()).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert torch.equal(ours(random_images()).pooler_output, ours(random_images()).last_hidden_state[:, 0])
    export_checkpoint(ours, tmp_path / "back")
    assert_equal_weights(transformers.ViTModel.from_pretrained(tmp_path / "back", add_pooling_layer=False), theirs)


@torch.no_grad()
def test_base_model_and_classifier_read_each_others_folders(tmp_path):
    classifier, base = their_model(), their_model(transformers.ViTModel)
    classifier.save_pretrained(tmp_path / "classifier")
    base.save_pretrained(tmp_path / "base")
    ours = ViTModel.from_pretrained(tmp_path / "classifier")
    expected = classifier.vit(random_images()).last_hidden_state
    torch.testing.assert_close(ours(random_images()).last_hidden_state, expected, rtol=0, atol=1e-5)
    ours, info = ViTForImageClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    tokens = base(random_images()).last_hidden_state
    torch.testing.assert_close(ours.vit(random_images()).last_hidden_state, tokens, rtol=0, atol=1e-5)


def assert_equal_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_classifier_is_the_one_that_was_read(tmp_path, variant):
    theirs = their_model(**VARIANTS[variant], id2label={0: "ant", 1: "bee"} if variant == "plain" else None)
    ours = load_pair(tmp_path / "theirs", theirs)
    directory = export_checkpoint(ours, tmp_path / "back", format="transformers")
    assert directory == tmp_path / "back"
    back = transformers.AutoModelForImageClassification.from_pretrained(directory)
    assert type(back) is transformers.ViTForImageClassification
    assert_equal_weights(back, theirs)
    assert_same_outputs(ours, back, images_for(ours.config))
    assert back.config.id2label == theirs.config.id2label
    differing = {key for key, value in theirs.config.to_dict().items() if back.config.to_dict()[key] != value}
    assert differing <= {"_name_or_path"}


def test_exported_file_has_the_names_that_files_on_the_hub_have(tmp_path):
    theirs = their_model()
    ours = load_pair(tmp_path / "theirs", theirs)
    export_checkpoint(ours, tmp_path / "back")
    saved, exported = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert set(saved) == set(exported) and "vit.encoder.layer.0.attention.attention.query.weight" in saved
    assert all(torch.equal(saved[name], exported[name]) for name in saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept_in_both_directions(tmp_path, dtype):
    theirs = their_model().to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ViTForImageClassification.from_pretrained(tmp_path / "theirs")
    assert ours.dtype == dtype
    back = transformers.ViTForImageClassification.from_pretrained(export_checkpoint(ours, tmp_path / "back"))
    assert_equal_weights(back, theirs)
    assert ViTForImageClassification.from_pretrained(tmp_path / "theirs", dtype=torch.float32).dtype == torch.float32


def save_pickled(theirs, folder):
    theirs.save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


SAVERS = {
    "old names": lambda model, folder: model.save_pretrained(folder),
    "new names": lambda model, folder: model.save_pretrained(folder, save_original_format=False),
    "old names in shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="20kB"),
    "new names in shards": lambda model, folder: model.save_pretrained(
        folder, max_shard_size="20kB", save_original_format=False
    ),
    "pytorch_model.bin": save_pickled,
}


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_every_layout_of_weight_files_is_read(tmp_path, saver, model_class):
    theirs = their_model(getattr(transformers, model_class.__name__))
    SAVERS[saver](theirs, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert ("model.safetensors.index.json" in files) == ("shards" in saver)
    assert ("pytorch_model.bin" in files) == ("bin" in saver)
    ours = model_class.from_pretrained(tmp_path)
    with torch.no_grad():
        for found, expected in zip(ours(random_images()).values(), theirs(random_images()).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_vit_base_is_equal_in_logits_loss_and_gradients(tmp_path):
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)).eval()
    torch.nn.init.normal_(theirs.classifier.bias, std=0.1)
    ours = load_pair(tmp_path, theirs)
    images = random_images(1, 224, 224)
    assert_same_outputs(ours, theirs, images)
    losses = [model.train()(images, labels=LABELS[:1]).loss for model in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    sum(losses).backward()
    assert_same_gradients(ours, theirs, tolerance=1e-5)
