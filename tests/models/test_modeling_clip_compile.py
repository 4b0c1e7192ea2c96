"""CLIP under `torch.compile(fullgraph=True)` and `torch.export`: both succeed and compute the same."""

import pytest
import torch

from hf_vitfm import CLIPTextModelWithProjection, CLIPVisionModelWithProjection
from tests.tiny import random_images, random_texts, randomize, tiny_clip, tiny_clip_config


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small_clip(**fields):
    """One layer each."""
    text, vision = ({"num_hidden_layers": 1, **fields.pop(name, {})} for name in ("text", "vision"))
    return tiny_clip(text=text, vision=vision, **fields)


def test_forward_compiles_as_one_graph():
    model = small_clip()
    run = torch.compile(model, fullgraph=True, backend="eager")
    tokens, mask = random_texts(2)
    calls = [
        {"return_loss": True},
        {"output_hidden_states": True, "output_attentions": True, "attention_mask": mask},
    ]
    for arguments in calls:
        found, expected = (each(tokens, random_images(2), **arguments) for each in (run, model))
        torch.testing.assert_close(found.to_tuple(), expected.to_tuple(), rtol=1e-5, atol=1e-5)


def test_training_step_compiles_with_the_same_gradients():
    vision = {"pooling": "mean", "num_register_tokens": 1}
    model, gradients = small_clip(objective="sigmoid", vision=vision).train(), []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        run(random_texts(3)[0], random_images(3), return_loss=True).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_export_of_both_towers_gives_the_same_for_any_batch_and_length():
    config = tiny_clip_config(text={"num_hidden_layers": 1}, vision={"num_hidden_layers": 1})
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=12)
    text = randomize(CLIPTextModelWithProjection(config.text_config))
    exported = torch.export.export(text, (random_texts(2)[0],), dynamic_shapes=({0: batch, 1: length},)).module()
    for tokens in (random_texts(3, length=5)[0], random_texts(2, length=12)[0]):
        torch.testing.assert_close(exported(tokens).text_embeds, text(tokens).text_embeds, rtol=1e-5, atol=1e-5)
    vision = randomize(CLIPVisionModelWithProjection(config.vision_config))
    exported = torch.export.export(vision, (random_images(2),), dynamic_shapes=({0: batch},)).module()
    images = random_images(5)
    torch.testing.assert_close(exported(images).image_embeds, vision(images).image_embeds, rtol=1e-5, atol=1e-5)
