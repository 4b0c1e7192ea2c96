"""CLIP: initialisation, pooling of texts, masks, losses and recorded outputs against OpenAI's formulas and torch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_vitfm import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel
from hf_vitfm import CLIPVisionModelWithProjection as VisionProjected
from tests.tiny import random_images, random_texts, relative_error, tiny_clip, tiny_clip_config


ALL = {
    "text": {"layer_scale_init_value": 0.1},
    "vision": {"layer_scale_init_value": 0.1, "num_register_tokens": 2, "pooling": "mean"},
    "objective": "sigmoid",
}


@pytest.fixture
def model():
    return tiny_clip()


def embeddings(model, tokens, mask=None):
    return model.get_text_features(tokens, mask).pooler_output


def test_matrices_begin_as_openais():
    torch.manual_seed(0)
    config = CLIPConfig.from_variant(
        "B/32", text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 1}
    )
    weights = CLIPModel(config).state_dict()
    width = 512
    deviations = {
        "text_model.embeddings.token_embedding.weight": 0.02,
        "text_model.embeddings.position_embedding.weight": 0.01,
        "text_model.encoder.layers.0.attention.qkv.weight": width**-0.5,
        "text_model.encoder.layers.0.attention.proj.weight": width**-0.5 * (2 * 2) ** -0.5,
        "text_model.encoder.layers.0.mlp.fc1.weight": (2 * width) ** -0.5,
        "text_model.encoder.layers.0.mlp.fc2.weight": width**-0.5 * (2 * 2) ** -0.5,
        "text_projection.weight": width**-0.5,
        "visual_projection.weight": 768**-0.5,
        "vision_model.embeddings.position_embeddings": 768**-0.5,
    }
    for name, deviation in deviations.items():
        assert weights[name].std().item() == pytest.approx(deviation, rel=0.02), name
    block = torch.nn.MultiheadAttention(768, 12)  # the vision tower has torch's own initialisation
    own = {
        "vision_model.encoder.layers.0.attention.qkv.weight": block.in_proj_weight,
        "vision_model.encoder.layers.0.attention.proj.weight": block.out_proj.weight,
        "vision_model.encoder.layers.0.mlp.fc1.weight": torch.nn.Linear(768, 3072).weight,
        "vision_model.encoder.layers.0.mlp.fc2.bias": torch.nn.Linear(3072, 768).bias,
        "text_model.encoder.layers.0.mlp.fc1.bias": torch.nn.Linear(512, 2048).bias,
        "vision_model.embeddings.patch_embeddings.projection.weight": torch.nn.Conv2d(3, 768, 32, 32).weight,
    }
    for name, reference in own.items():
        assert weights[name].abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.02), name
        assert weights[name].std().item() == pytest.approx(reference.std().item(), rel=0.05), name
    assert weights["logit_scale"].item() == pytest.approx(np.log(1 / 0.07))


@pytest.mark.parametrize("way", ["construction", "meta device", "from config"])
@pytest.mark.parametrize(
    "model_class", [CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel, VisionProjected]
)
def test_every_parameter_is_set(nan_memory, model_class, way):
    config = tiny_clip_config(**ALL)
    if model_class is not CLIPModel:
        config = getattr(config, "text_config" if "Text" in model_class.__name__ else "vision_config")
    if way == "construction":
        model = model_class(config)
    elif way == "from config":
        model = model_class._from_config(config)
    else:
        model = model_class.from_pretrained(None, config=config, state_dict={})
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all() and not parameter.is_meta, name
        assert parameter.abs().sum() > 0 or name.endswith("bias"), name


@pytest.mark.parametrize("fields", [{}, ALL])
def test_saved_model_loads_with_equal_bits(tmp_path, fields):
    model = tiny_clip(**fields)
    model.save_pretrained(tmp_path)
    loaded, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not loaded.training
    for (name, found), expected in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


@torch.no_grad()
def test_positions_are_resized_at_load_and_towers_changed(tmp_path, model):
    model.save_pretrained(tmp_path)
    images = random_images(2, 48, 24)
    expected = model.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    loaded = CLIPModel.from_pretrained(tmp_path, image_size=(48, 24), patch_dropout=0.5)
    assert loaded.config.vision_config.image_size == (48, 24) and loaded.vision_model.config.patch_dropout == 0.5
    torch.testing.assert_close(loaded.get_image_features(images).pooler_output, expected)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        model.get_image_features(images)


@torch.no_grad()
def test_text_is_pooled_at_its_end_token_although_higher_ones_follow(model):
    tokens = torch.tensor([[58, 3, 59, 1, 1], [58, 4, 5, 6, 59]])
    expected = embeddings(model, tokens)
    model.resize_token_embeddings(64)
    assert model.config.text_config.vocab_size == 64
    padded = torch.tensor([[58, 3, 59, 63, 59], [58, 4, 5, 6, 59]])
    torch.testing.assert_close(embeddings(model, padded), expected)
    for row, length in ((0, 3), (1, 5)):  # OpenAI's code: the token at the highest id, projected
        states = model.text_model(tokens[row : row + 1, :length]).last_hidden_state
        torch.testing.assert_close(states[0, -1] @ model.text_projection.weight.T, expected[row])


@torch.no_grad()
def test_text_without_end_token_is_pooled_at_its_last():
    model = tiny_clip()
    tokens, mask = torch.tensor([[58, 3, 4, 5], [58, 6, 1, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    states = model.text_model(tokens, mask)
    torch.testing.assert_close(states.pooler_output[0], states.last_hidden_state[0, 3])
    torch.testing.assert_close(states.pooler_output[1], states.last_hidden_state[1, 1])


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["eos", "argmax"])
def test_padding_made_of_end_tokens_is_not_pooled(pooling):
    model = tiny_clip(text={"pooling": pooling})
    texts = torch.tensor([[59, 59, 58, 3, 4, 59], [58, 3, 4, 5, 6, 59]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = model.get_text_features(texts, mask, positions).pooler_output[:1]
    assert relative_error(found, model.get_text_features(texts[:1, 2:]).pooler_output) < 1e-6


def test_a_text_without_end_token_is_pooled_alike_whatever_pads_it(model):
    texts, mask = torch.tensor([[58, 3, 4, 59, 59]]), torch.tensor([[1, 1, 1, 0, 0]])
    found = model.get_text_features(texts, mask).pooler_output
    assert relative_error(found, model.get_text_features(texts[:, :3]).pooler_output) < 1e-6


def test_argmax_pools_at_the_first_of_the_highest_ids():
    model = tiny_clip(text={"pooling": "argmax", "eos_token_id": 2})
    tokens = torch.tensor([[50, 3, 57, 4, 57], [50, 59, 5, 6, 7]])
    states = model.text_model(tokens)
    torch.testing.assert_close(states.pooler_output[0], states.last_hidden_state[0, 2])
    torch.testing.assert_close(states.pooler_output[1], states.last_hidden_state[1, 1])


@torch.no_grad()
def test_padding_on_the_right_needs_no_mask_and_length_does_not_matter(model):
    tokens, mask = random_texts(4, length=9)
    expected = embeddings(model, tokens)
    torch.testing.assert_close(embeddings(model, tokens, mask), expected, rtol=1e-5, atol=1e-6)
    longer = torch.cat([tokens, torch.ones(4, 3, dtype=torch.long)], dim=1)
    torch.testing.assert_close(embeddings(model, longer), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="13 tokens is longer than the 12"):
        embeddings(model, torch.cat([longer, tokens[:, :1]], dim=1))
    with pytest.raises(ValueError, match=r"`input_ids` must be \(batch, tokens\)"):
        embeddings(model, tokens[0])


@torch.no_grad()
def test_logits_are_scaled_cosines():
    for model in (tiny_clip(), tiny_clip(objective="sigmoid")):
        tokens, images = random_texts(3)[0], random_images(2)
        output = model(tokens, images)
        image, text = (
            model.get_image_features(images).pooler_output.double(),
            model.get_text_features(tokens).pooler_output.double(),
        )
        cosines = F.cosine_similarity(image[:, None], text[None], dim=-1)
        bias = 0 if model.logit_bias is None else model.logit_bias.double()
        expected = cosines * model.logit_scale.double().exp() + bias
        torch.testing.assert_close(output.logits_per_image.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(output.logits_per_text, output.logits_per_image.T) and output.loss is None


def test_losses_are_the_papers_formulas():
    tokens, images = random_texts(4)[0], random_images(4)
    softmax = tiny_clip()(tokens, images, return_loss=True)
    logits = softmax.logits_per_image.double()
    pairs = torch.arange(4)
    expected = -(logits.log_softmax(dim=1) + logits.log_softmax(dim=0))[pairs, pairs].mean() / 2
    torch.testing.assert_close(softmax.loss.double(), expected, rtol=1e-6, atol=1e-6)
    sigmoid = tiny_clip(objective="sigmoid")(tokens, images, return_loss=True)
    signs = 2 * torch.eye(4, dtype=torch.float64) - 1  # SigLIP, algorithm 1: sum over all pairs, over the batch's size
    expected = -(signs * sigmoid.logits_per_image.double()).sigmoid().log().sum() / 4
    torch.testing.assert_close(sigmoid.loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_training_leaves_the_logits_of_all_pairs_out_unless_asked(model):
    inputs = (random_texts(2)[0], random_images(2))
    assert model(*inputs, return_loss=True).logits_per_image is not None
    model.train()
    assert model(*inputs, return_loss=True).logits_per_image is None
    assert model(*inputs, return_loss=True, return_logits=True).logits_per_image.shape == (2, 2)
    assert model(*inputs).logits_per_image.shape == (2, 2)
    with pytest.raises(ValueError, match="one text per image; got 2 images and 3 texts"):
        model(random_texts(3)[0], random_images(2), return_loss=True)


@torch.no_grad()
def test_recorded_outputs_and_tuples(model):
    inputs = (random_texts(2)[0], random_images(2))
    output = model(*inputs, output_hidden_states=True, output_attentions=True)
    for tower, tokens in ((output.text_model_output, 7), (output.vision_model_output, 17)):
        assert [tuple(state.shape) for state in tower.hidden_states] == 4 * [(2, tokens, 32)]
        assert [tuple(weights.shape) for weights in tower.attentions] == 3 * [(2, 4, tokens, tokens)]
    assert all(weights.triu(1).abs().max() == 0 for weights in output.text_model_output.attentions)
    plain = model(*inputs)
    assert plain.text_model_output.attentions is None and plain.vision_model_output.hidden_states is None
    logits, _, text_embeds, *_ = model(*inputs, return_dict=False)
    assert torch.equal(logits, plain.logits_per_image) and torch.equal(text_embeds, plain.text_embeds)


def test_patch_dropout_drops_in_training_only():
    model = tiny_clip(vision={"patch_dropout": 0.75})
    seen = []
    model.vision_model.encoder.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    model.get_image_features(random_images(2))
    model.train().get_image_features(random_images(2))
    assert seen == [17, 1 + 4]


@pytest.mark.parametrize("locked", ["vision_model", "text_model"])
def test_locked_tower_stays_as_it_is_while_the_other_trains(locked):
    model = tiny_clip(vision={"patch_dropout": 0.5}, text={"hidden_dropout_prob": 0.5})
    model.lock_towers(vision=locked == "vision_model", text=locked == "text_model")
    model.train()
    inputs = (random_texts(3)[0], random_images(3))
    frozen = getattr(model, locked)
    assert not frozen.training and model.training
    outputs = [frozen(inputs[locked == "vision_model"]).pooler_output for _ in range(2)]
    assert torch.equal(*outputs)
    model(*inputs, return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(locked), name


def test_towers_locked_one_after_the_other_stay_locked(model):
    model.lock_towers(vision=True)
    model.lock_towers(text=True)
    model.train()
    assert model.training and not model.vision_model.training and not model.text_model.training


def test_gradient_checkpointing_changes_nothing():
    model = tiny_clip(vision={"patch_dropout": 0.5}).train()
    inputs, gradients = (random_texts(3)[0], random_images(3)), []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(3)
        model(*inputs, return_loss=True).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_bfloat16_is_near_float32(model):
    inputs = (random_texts(2)[0], random_images(2))
    expected = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs, return_loss=True)
    assert found.loss.dtype == torch.float32
    for name in ("image_embeds", "text_embeds"):
        assert relative_error(found[name], expected[name]) < 0.05
        assert relative_error(model.to(torch.bfloat16)(*inputs)[name], expected[name]) < 0.05
        model.float()
