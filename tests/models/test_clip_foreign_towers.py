"""Towers of other libraries in CLIP: BERT, GPT-2, ViT, DINOv2, ResNet, or our own ViT; pooled, frozen, saved, loaded."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_vitfm import CLIPConfig, CLIPModel, ViTConfig
from hf_vitfm.models.modeling_pooling import pool_tokens
from tests.tiny import FIELDS, TEXT_FIELDS, VISION_FIELDS, random_images, random_texts, randomize, tiny_clip_config


LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT = transformers.BertConfig(**LAYERS, vocab_size=60, max_position_embeddings=12)
GPT2 = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=60, n_positions=12)
DINOV2 = transformers.Dinov2WithRegistersConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, num_register_tokens=3
)
TEXT = {
    "bert mean": (BERT, "mean"),
    "bert pooler": (BERT, None),
    "bert cls": (BERT, "cls"),
    "gpt2 last": (GPT2, "last"),
}
VISION = {
    "dinov2 cls": (DINOV2, "cls"),
    "dinov2 mean": (DINOV2, "mean"),
    "dinov2 pooler": (DINOV2, None),
    "vit pooler": (transformers.ViTConfig(**VISION_FIELDS, pooler_output_size=20), None),
    "our vit": (ViTConfig(**FIELDS, pooling="mean", representation_size=20), None),
    "resnet": (transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), None),
}


def clip(text="", vision="") -> CLIPModel:
    fields = {}
    if text:
        fields |= dict(zip(("text_config", "text_pooling"), TEXT[text], strict=True))
    if vision:
        fields |= dict(zip(("vision_config", "vision_pooling"), VISION[vision], strict=True))
    own = tiny_clip_config()
    return randomize(
        CLIPModel(CLIPConfig(**{"text_config": own.text_config, "vision_config": own.vision_config, **fields}))
    )


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_text_is_pooled_as_the_configuration_says(name):
    model = clip(text=name)
    tokens, mask = random_texts(3)
    outputs = model.text_model(tokens, attention_mask=mask)
    states, rows = outputs.last_hidden_state, range(3)
    lengths = mask.sum(dim=1)
    assert outputs.get("past_key_values") is None  # which nobody would read
    pooled = {
        "bert mean": torch.stack([states[row, : lengths[row]].mean(dim=0) for row in rows]),
        "bert cls": states[:, 0],
        "gpt2 last": torch.stack([states[row, lengths[row] - 1] for row in rows]),
    }.get(name, outputs.get("pooler_output"))
    found = model.get_text_features(tokens, mask).pooler_output
    torch.testing.assert_close(found, pooled @ model.text_projection.weight.T, rtol=1e-5, atol=1e-5)


def test_a_row_without_any_token_is_zero_not_nan():
    mask = torch.tensor([[0, 0, 0], [1, 1, 0]])
    pooled = pool_tokens(torch.tensor([[[5.0], [6.0], [7.0]], [[1.0], [2.0], [9.0]]]), "mean", mask)
    assert pooled.tolist() == [[0.0], [1.5]]


@torch.no_grad()
def test_padding_on_either_side_changes_nothing():
    model = clip(text="gpt2 last")
    right, mask = random_texts(3)
    left = torch.stack([row.roll(7 - int(count)) for row, count in zip(right, mask.sum(dim=1), strict=True)])
    places = (mask.flip(1).cumsum(dim=1) - 1).clamp(min=0)
    found = model.get_text_features(left, mask.flip(1), position_ids=places).pooler_output
    expected = model.get_text_features(right, mask).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_image_is_pooled_as_the_configuration_says(name):
    model, images = clip(vision=name), random_images(2)
    outputs = model.vision_model(images)
    states, pooled = outputs.last_hidden_state, outputs.get("pooler_output")
    if name == "dinov2 cls":
        pooled = states[:, 0]
    elif name == "dinov2 mean":
        pooled = states[:, 4:].mean(dim=1)  # behind the class token and three registers
    elif name == "resnet":
        pooled = states.mean(dim=(2, 3))
    found = model.get_image_features(images).pooler_output
    torch.testing.assert_close(found, pooled @ model.visual_projection.weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "vision"), [("bert mean", "dinov2 mean"), ("gpt2 last", "our vit"), ("", "vit pooler")]
)
def test_every_weight_trains_and_the_model_survives_saving(tmp_path, text, vision):
    model = clip(text, vision)
    (tokens, mask), images = random_texts(3), random_images(3)
    loss = model(tokens, images, attention_mask=mask, return_loss=True).loss
    loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle <= {"vision_model.embeddings.mask_token"}  # DINOv2's own, which only its pre-training reads
    assert model.text_model.config is model.config.text_config
    model.save_pretrained(tmp_path)
    loaded, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and type(loaded.text_model) is type(model.text_model)
    again = loaded(tokens, images, attention_mask=mask, return_loss=True)
    torch.testing.assert_close(again.loss, loss, rtol=1e-6, atol=1e-6)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()  # trainers resume from it


@torch.no_grad()
def test_trained_towers_are_joined_with_their_weights(tmp_path):
    text, vision = randomize(transformers.BertModel(BERT)), randomize(transformers.Dinov2WithRegistersModel(DINOV2))
    (tokens, mask), images = random_texts(2), random_images(2)
    expected = text(tokens, attention_mask=mask).last_hidden_state, vision(images).pooler_output
    model = CLIPModel.from_towers(vision, text, projection_dim=24, text_pooling="mean")
    output = model(tokens, images, attention_mask=mask, token_type_ids=torch.zeros_like(tokens))
    torch.testing.assert_close(output.text_model_output.last_hidden_state, expected[0])
    torch.testing.assert_close(
        output.vision_model_output.pooler_output, expected[1] @ model.visual_projection.weight.T, rtol=1e-5, atol=1e-5
    )
    assert model.text_model.pooler is None and output.image_embeds.shape == (2, 24)
    model.save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens, images, attention_mask=mask).logits_per_image, output.logits_per_image)


def test_head_is_refused_as_a_tower():
    head = transformers.BertForMaskedLM(BERT)
    with pytest.raises(ValueError, match="`text_model` must be a BertModel.*got a BertForMaskedLM"):
        CLIPModel.from_towers(transformers.Dinov2WithRegistersModel(DINOV2), head)


def test_a_convolutional_tower_pools_itself():
    vision = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, image_size=32)
    fields = {"text_config": TEXT_FIELDS, "vision_config": vision, "projection_dim": 8}
    images = random_images(2)
    assert CLIPModel(CLIPConfig(**fields)).get_image_features(images).pooler_output.shape == (2, 8)
    with pytest.raises(ValueError, match="`vision_pooling='mean'` has nothing to pool. Leave it out"):
        CLIPModel(CLIPConfig(**fields, vision_pooling="mean")).get_image_features(images)


def test_tower_without_pooled_output_asks_for_a_pooling():
    model = CLIPModel(CLIPConfig(text_config=GPT2, vision_config=tiny_clip_config().vision_config))
    with pytest.raises(ValueError, match="GPT2Model has no pooled output of its own. Set `text_pooling`"):
        model.get_text_features(random_texts(2)[0])
