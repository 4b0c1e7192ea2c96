"""`torch.compile(fullgraph=True)` and `torch.export`: they succeed and compute the same."""

import pytest
import torch

from hf_vitfm import ViTForImageClassification
from hf_vitfm.models.modeling_encoder import Encoder
from hf_vitfm.models.modeling_losses import classification_loss
from tests.tiny import OPTIONS, random_images, randomize, tiny_config


@pytest.fixture
def config():
    return tiny_config(num_hidden_layers=1)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model, backend="eager"):
    return torch.compile(model, fullgraph=True, backend=backend)


def test_forward_compiles_as_one_graph_with_labels_and_recorded_outputs(classifier, images):
    calls = [
        {},
        {"labels": torch.tensor([0, 1])},
        {"labels": torch.tensor([0, -100]), "num_items_in_batch": torch.tensor(4)},
        {"output_hidden_states": True, "output_attentions": True},
        {"attention_mask": torch.tensor([[1] * 17, [1] * 9 + [0] * 8])},
        {"return_dict": False},
    ]
    model = compiled(classifier)
    for arguments in calls:
        torch.testing.assert_close(model(images, **arguments), classifier(images, **arguments), rtol=1e-5, atol=1e-5)


def test_images_of_another_size_compile_with_interpolated_positions(classifier):
    images = random_images(2, 48, 24)
    found = compiled(classifier)(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(found, classifier(images, interpolate_pos_encoding=True).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["all with class token", "all with mean"])
def test_training_step_compiles_with_the_same_gradients(name, images):
    model = randomize(ViTForImageClassification(tiny_config(num_hidden_layers=2, **OPTIONS[name]))).train()
    labels, gradients = torch.tensor([0, 1]), []
    for run in (model, compiled(model, "aot_eager")):
        model.zero_grad()
        run(images, labels=labels).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_training_with_every_rate_compiles_as_one_graph(images):
    config = tiny_config(
        num_hidden_layers=2,
        drop_path_rate=0.5,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        patch_dropout=0.5,
    )
    model = randomize(ViTForImageClassification(config)).train()
    loss = compiled(model, "aot_eager")(images, labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_eager_attention_compiles_as_one_graph(classifier, images):
    classifier.set_attn_implementation("eager")
    torch.testing.assert_close(compiled(classifier)(images), classifier(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_losses_of_float_targets_compile(kind):
    logits, labels = torch.randn(2, 5), torch.rand(2, 5)
    expected = classification_loss(logits, labels, kind)
    torch.testing.assert_close(compiled(classification_loss)(logits, labels, kind), expected)


@pytest.mark.parametrize("mask", [None, torch.tensor([[1] * 9, [1] * 4 + [0] * 5])])
def test_causal_encoder_compiles_as_one_graph(mask):
    config = tiny_config(num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    encoder, tokens = randomize(Encoder(config, is_causal=True)), torch.randn(2, 9, 32)
    for arguments in ({}, {"output_attentions": True, "output_hidden_states": True}):
        found = compiled(encoder)(tokens, mask, **arguments)
        torch.testing.assert_close(found, encoder(tokens, mask, **arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "all with class token", "all with mean"])
def test_export_of_inference_gives_the_same_logits_for_any_batch(name):
    model = randomize(ViTForImageClassification(tiny_config(num_hidden_layers=2, **OPTIONS[name])))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        exported = torch.export.export(model, (random_images(2),), dynamic_shapes=({0: batch},))
        for size in (2, 5):
            images = random_images(size)
            found = exported.module()(images).logits
            torch.testing.assert_close(found, model(images).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_default_backend_compiles_forward_and_backward(images):
    model = randomize(
        ViTForImageClassification(tiny_config(num_hidden_layers=2, **OPTIONS["all with class token"]))
    ).train()
    labels, gradients = torch.tensor([0, 1]), []
    for run in (model, compiled(model, "inductor")):
        model.zero_grad()
        run(images, labels=labels).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
