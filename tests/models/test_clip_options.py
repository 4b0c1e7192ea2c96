"""What SigLIP's and open_clip's towers have beyond CLIP's: attention pooling, texts without causality, and the like."""

import pytest
import torch
from torch import nn

from hf_vitfm import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from hf_vitfm.models.modeling_pooling import MapPooling
from tests.tiny import (
    SIGLIP,
    TEXT_FIELDS,
    VISION_FIELDS,
    random_images,
    random_texts,
    randomize,
    tiny_clip,
    tiny_config,
)


def pooling(implementation="sdpa") -> MapPooling:
    config = tiny_config()
    config._attn_implementation = implementation
    return randomize(MapPooling(config)).double()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_pooling_is_torchs_attention_of_one_query_and_an_mlp(implementation):
    ours, tokens = pooling(implementation), torch.randn(3, 9, 32, dtype=torch.float64)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight.copy_(ours.attention.qkv.weight)
    theirs.in_proj_bias.copy_(ours.attention.qkv.bias)
    theirs.out_proj.load_state_dict(ours.attention.proj.state_dict())
    pooled = theirs(ours.query.expand(3, -1, -1), tokens, tokens)[0][:, 0]
    hidden = nn.functional.layer_norm(pooled, (32,), ours.norm.weight, ours.norm.bias, ours.norm.eps)
    hidden = nn.functional.gelu(hidden @ ours.mlp.fc1.weight.T + ours.mlp.fc1.bias)
    expected = pooled + hidden @ ours.mlp.fc2.weight.T + ours.mlp.fc2.bias
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-10, atol=1e-10)


def test_query_begins_as_in_siglips_code():
    torch.manual_seed(0)
    fields = {**VISION_FIELDS, "hidden_size": 256}
    query = CLIPVisionModel(CLIPVisionConfig(**fields, pooling="map")).attention_pooling.query
    bound = (6 / 257) ** 0.5  # Xavier's for (1, 256)
    assert 0.9 * bound < query.abs().max() <= bound
    assert query.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@torch.no_grad()
def test_text_is_pooled_at_its_last_place_and_sees_all_tokens_unless_causal():
    tokens = random_texts(3)[0]
    outputs = {}
    for causal in (False, True):
        fields = {**TEXT_FIELDS, "pooling": "last", "is_causal": causal}
        model = randomize(CLIPTextModel(CLIPTextConfig(**fields)))
        outputs[causal] = model(tokens)
        assert torch.equal(outputs[causal].pooler_output, outputs[causal].last_hidden_state[:, -1])
        changed = model(torch.cat([tokens[:, :-1], 57 - tokens[:, -1:] % 2], dim=1)).last_hidden_state[:, 0]
        assert torch.allclose(changed, outputs[causal].last_hidden_state[:, 0], atol=1e-5) == causal
    assert not torch.allclose(outputs[False].pooler_output, outputs[True].pooler_output)


@torch.no_grad()
def test_last_norm_stands_before_or_after_the_pooling():
    fields = {**VISION_FIELDS, "pooling": "mean"}
    models = {
        place: randomize(CLIPVisionModel(CLIPVisionConfig(**fields, final_norm=place)))
        for place in ("tokens", "pooled")
    }
    outputs = {place: model(random_images()) for place, model in models.items()}
    norm, raw = models["tokens"].post_layernorm, outputs["pooled"].last_hidden_state
    torch.testing.assert_close(outputs["tokens"].last_hidden_state, norm(raw))
    torch.testing.assert_close(outputs["tokens"].pooler_output, norm(raw)[:, 1:].mean(dim=1))
    torch.testing.assert_close(outputs["pooled"].pooler_output, norm(raw[:, 1:].mean(dim=1)))


@torch.no_grad()
def test_pixels_that_fill_no_patch_are_left_out_or_an_error():
    model = randomize(CLIPVisionModel(CLIPVisionConfig(**VISION_FIELDS, trim_images=True)))
    images = random_images(2, 37, 39)
    expected = model(images[..., :32, :32]).pooler_output
    assert torch.equal(model(images).pooler_output, expected)
    model.config.trim_images = False
    with pytest.raises(ValueError, match="37x39 pixels does not divide"):
        model(images)


@torch.no_grad()
def test_model_with_all_of_it_is_saved_and_loaded(tmp_path):
    model = tiny_clip(**SIGLIP)
    model.save_pretrained(tmp_path)
    again, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(getattr(again.config.vision_config, name) == value for name, value in SIGLIP["vision"].items())
    assert all(getattr(again.config.text_config, name) == value for name, value in SIGLIP["text"].items())
    tokens, images = random_texts(2, length=12)[0], random_images()
    expected = model(tokens, images)
    assert torch.equal(again(tokens, images).logits_per_image, expected.logits_per_image)
    assert torch.equal(
        expected.image_embeds, nn.functional.normalize(model.vision_model(images).pooler_output, dim=-1)
    )
    vision = CLIPVisionModel.from_pretrained(tmp_path)
    assert torch.equal(vision(images).pooler_output, model.vision_model(images).pooler_output)


def test_every_parameter_gets_a_gradient():
    model = tiny_clip(**SIGLIP).train()
    model(random_texts(3)[0], random_images(3), return_loss=True).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_fields_that_do_not_fit_each_other_are_errors():
    with pytest.raises(ValueError, match='`pooling="cls"` needs a class token'):
        CLIPVisionConfig(use_class_token=False)
    with pytest.raises(ValueError, match="`projection_dim` must be the tower's `hidden_size`, 768; got 512"):
        CLIPConfig(vision_config={"use_projection": False})
    assert CLIPVisionConfig(use_projection=False, hidden_size=96).projection_dim == 96
