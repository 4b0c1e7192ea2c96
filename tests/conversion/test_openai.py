"""OpenAI's plain state dict: read with what its shapes tell, written so that open_clip's loader of it takes it."""

import open_clip
import pytest
import torch
from open_clip.model import CLIP, convert_weights_to_fp16

from hf_vitfm import CLIPModel, CLIPTextModelWithProjection, CLIPVisionModel, export_checkpoint, load_image_processor
from tests.tiny import random_images, randomize, tiny_clip


CFG = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 128, "patch_size": 8, "image_size": 32},
    "text_cfg": {"layers": 3, "width": 64, "heads": 1, "context_length": 12, "vocab_size": 60},
}
# Ours of that size.
FIELDS = {
    "text": {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256},
    "vision": {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
}


def state_dict(numbers=True) -> dict[str, torch.Tensor]:
    """What `model.state_dict()` gives of OpenAI's model: matrices in halves, with numbers if it came from an archive."""
    model = randomize(CLIP(**CFG))
    convert_weights_to_fp16(model)
    extra = {"input_resolution": 32, "context_length": 12, "vocab_size": 60} if numbers else {}
    return {**{name: torch.tensor(value) for name, value in extra.items()}, **model.state_dict()}


def texts() -> torch.Tensor:
    tokens = torch.randint(2, 58, (3, 12), generator=torch.Generator().manual_seed(3))
    tokens[torch.arange(3), torch.tensor([5, 11, 8])] = 59
    return tokens


@torch.no_grad()
def assert_same(ours: CLIPModel, theirs, atol=1e-5):
    tokens, images = texts(), random_images(3)
    found = ours(tokens, images)
    torch.testing.assert_close(found.logits_per_image, theirs.get_logits(images, tokens)[0], rtol=1e-5, atol=atol)
    expected = theirs.encode_image(images)
    assert (expected[0] - expected[1]).norm() > 0.01 * expected[0].norm()
    torch.testing.assert_close(ours.get_image_features(images).pooler_output, expected, rtol=1e-5, atol=atol)
    expected = theirs.encode_text(tokens)
    assert (expected[0] - expected[1]).norm() > 0.01 * expected[0].norm()
    torch.testing.assert_close(ours.get_text_features(tokens).pooler_output, expected, rtol=1e-5, atol=atol)


def load_theirs(path):
    return open_clip.load_openai_model(str(path), device="cpu").eval()


def test_outputs_are_equal_and_half_precision_becomes_float32(tmp_path):
    torch.save(state_dict(), tmp_path / "ViT-B-32.pt")
    ours, info = CLIPModel.from_pretrained(tmp_path / "ViT-B-32.pt", output_loading_info=True)
    assert not any(info.values()) and ours.dtype == torch.float32
    assert_same(ours, load_theirs(tmp_path / "ViT-B-32.pt"))
    assert ours.config.vision_config.hidden_act == ours.config.text_config.hidden_act == "quick_gelu"
    assert load_image_processor(tmp_path / "ViT-B-32.pt").crop_size == {"height": 32, "width": 32}


def test_weights_without_the_numbers_are_chosen_by_name(tmp_path):
    weights = state_dict(numbers=False)
    torch.save(weights, tmp_path / "model.pt")
    ours = CLIPModel.from_pretrained(tmp_path / "model.pt", source_format="openai")
    assert_same(ours, load_theirs(tmp_path / "model.pt"))
    guessed = CLIPModel.from_pretrained(tmp_path / "model.pt")  # as open_clip's
    assert guessed.config.vision_config.hidden_act == "gelu"


@torch.no_grad()
def test_towers_load_alone(tmp_path):
    torch.save(state_dict(), tmp_path / "model.pt")
    whole = CLIPModel.from_pretrained(tmp_path / "model.pt")
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path / "model.pt")
    vision = CLIPVisionModel.from_pretrained(tmp_path / "model.pt")
    assert torch.equal(text(texts()).text_embeds, whole.get_text_features(texts()).pooler_output)
    found = whole.visual_projection(vision(random_images()).pooler_output)
    assert torch.equal(found, whole.get_image_features(random_images()).pooler_output)


@pytest.mark.parametrize("pooling", ["eos", "argmax"])
def test_exported_file_is_loaded_as_openais(tmp_path, pooling):
    ours = tiny_clip(text={**FIELDS["text"], "pooling": pooling}, vision=FIELDS["vision"])
    folder = export_checkpoint(ours, tmp_path, format="openai")
    saved = torch.load(folder / "model.pth", weights_only=True)
    assert [saved.pop(name).item() for name in ("input_resolution", "context_length", "vocab_size")] == [32, 12, 60]
    assert {name: tensor.shape for name, tensor in saved.items()} == {
        name: tensor.shape for name, tensor in CLIP(**{**CFG, "embed_dim": 24, **larger()}).state_dict().items()
    }
    back = CLIPModel.from_pretrained(folder)
    expected = ours.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    assert back.config.vision_config.hidden_act == "quick_gelu"
    # open_clip's loader rounds the matrices to halves, as OpenAI's does.
    assert_same(ours, load_theirs(folder / "model.pth"), atol=0.05)


def larger() -> dict:
    return {part: {**CFG[part], "layers": 3} for part in ("vision_cfg", "text_cfg")}


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (None, "objective", "sigmoid"),
        ("text", "num_attention_heads", 2),
        ("text", "intermediate_size", 128),
        ("text", "is_causal", False),
        ("text", "eos_token_id", 58),
        ("text", "projection_bias", True),
        ("vision", "num_attention_heads", 4),
        ("vision", "layer_norm_eps", 1e-6),
        ("vision", "layer_scale_init_value", 0.1),
        ("vision", "pooling", "mean"),
        ("vision", "use_pre_norm", False),
        ("vision", "image_size", (32, 16)),
        ("vision", "num_register_tokens", 1),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, part, field, value):
    changed = {**FIELDS, **({part: {**FIELDS[part], field: value}} if part else {field: value})}
    with pytest.raises(ValueError, match=f"format cannot hold `{field}="):
        export_checkpoint(tiny_clip(**changed), tmp_path / "out", format="openai")


def test_activation_and_preprocessing_that_differ_are_refused(tmp_path):
    gelu = {part: {**fields, "hidden_act": "gelu"} for part, fields in FIELDS.items()}
    with pytest.raises(ValueError, match="OpenAI's format cannot hold `hidden_act='gelu'` .* open_clip's format can"):
        export_checkpoint(tiny_clip(**gelu), tmp_path / "out", format="openai")
    torch.save(state_dict(), tmp_path / "model.pt")
    processor = load_image_processor(tmp_path / "model.pt")
    ours = CLIPModel.from_pretrained(tmp_path / "model.pt")
    export_checkpoint(ours, tmp_path / "out", format="openai", processing_class=processor)
    processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="yours is not OpenAI's"):
        export_checkpoint(ours, tmp_path / "again", format="openai", processing_class=processor)


@pytest.mark.parametrize(
    ("tower", "sizes"), [("image", {"vision": 32}), ("text", {"text": 32}), ("image", {"vision": 96})]
)
def test_widths_that_do_not_tell_the_heads_are_refused(tmp_path, tower, sizes):
    cfg = {
        **CFG,
        "vision_cfg": {**CFG["vision_cfg"], "width": sizes.get("vision", 128), "head_width": 16},
        "text_cfg": {**CFG["text_cfg"], "width": sizes.get("text", 64)},
    }
    torch.save(CLIP(**cfg).state_dict(), tmp_path / "x.pt")
    width = min(sizes.values())
    with pytest.raises(ValueError, match=f"{tower} tower of width {width} is not made of heads 64 wide"):
        CLIPModel.from_pretrained(tmp_path / "x.pt", source_format="openai")
