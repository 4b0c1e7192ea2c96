"""open_clip's format: what open_clip builds and saves is what our CLIP computes, prepares and writes."""

import json
import logging
import math

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from safetensors.torch import load_file

from hf_vitfm import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    export_checkpoint,
    load_image_processor,
    load_tokenizer,
)
from hf_vitfm.conversion import open_clip as open_clip_format
from hf_vitfm.conversion.open_clip_config import infer_model_cfg, mlp_ratio
from hf_vitfm.data.tokenizers import train_tokenizer
from tests.tiny import random_images, randomize, tiny_clip


VISION = {"layers": 2, "width": 32, "head_width": 8, "mlp_ratio": 1.5, "patch_size": 8, "image_size": 32}
TEXT = {"layers": 3, "width": 24, "heads": 3, "context_length": 12, "vocab_size": 60}
WHOLE = {"embed_dim": 20}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "resize_mode": "squash"}


class Tokenizer:
    """What `save_for_hf` asks of a tokenizer."""

    def save_pretrained(self, folder):
        """Nothing to save."""


def their_cfg(vision=None, text=None, **whole) -> dict:
    return {**WHOLE, **whole, "vision_cfg": {**VISION, **(vision or {})}, "text_cfg": {**TEXT, **(text or {})}}


def save_theirs(folder, preprocess=None, tokenizer=None, safe=True, **fields) -> torch.nn.Module:
    """A random model that open_clip built and saved to a folder, as for the Hub."""
    cfg = their_cfg(**fields)
    built = {name: value for name, value in cfg.items() if name != "custom_text"}
    model = randomize((CustomTextCLIP if cfg.get("custom_text") else CLIP)(**json.loads(json.dumps(built))))
    defaults = open_clip.transform.PreprocessCfg()
    size = {"size": cfg["vision_cfg"]["image_size"]}
    set_model_preprocess_cfg(model, {**vars(defaults), **size, **(preprocess or {})})
    save_for_hf(model, tokenizer or Tokenizer(), cfg, folder, safe_serialization=safe)
    return model


def texts(batch=3) -> torch.Tensor:
    tokens = torch.randint(2, 58, (batch, 12), generator=torch.Generator().manual_seed(3))
    for row, end in enumerate([5, 11, 8][:batch]):
        tokens[row, end] = 59
        tokens[row, end + 1 :] = 0
    return tokens


@torch.no_grad()
def assert_same(ours: CLIPModel, theirs, images=None, tokens=None):
    images = random_images(3) if images is None else images
    tokens = texts() if tokens is None else tokens
    outputs = ours(tokens, images)
    pairs = {
        "image": (ours.get_image_features(images).pooler_output, theirs.encode_image(images)),
        "text": (ours.get_text_features(tokens).pooler_output, theirs.encode_text(tokens)),
        "logits": (outputs.logits_per_image, theirs.get_logits(images, tokens)[0]),
    }
    for found, expected in pairs.values():
        assert (expected[0] - expected[1]).norm() > 0.01 * expected[0].norm()  # inputs are told apart
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


VARIANTS = {
    "plain": {},
    "quickgelu": {"quick_gelu": True},
    "custom text": {"custom_text": True},
    "CLIPA": {
        "vision": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text": {"pool_type": "last", "no_causal_mask": True},
    },
    "SigLIP's text tower": {
        "custom_text": True,
        "init_logit_bias": -10,
        "text": {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-3}},
    },
    "bias and projection with bias": {
        "init_logit_bias": -5,
        "nonscalar_logit_scale": True,
        "text": {"proj_bias": True},
    },
    "worldwide": {"text": {"pool_type": "eos", "eos_id": 2}},
    "layer scale": {"vision": {"ls_init_value": 1e-4}, "text": {"ls_init_value": 0.1}},
    "mean after the norm": {"vision": {"pool_type": "avg"}},
    "sine-cosine": {"vision": {"pos_embed_type": "sin_cos_2d"}},
    "tanh gelu": {"vision": {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-2}}},
    "not square": {"vision": {"image_size": [32, 48], "patch_size": [16, 8]}},
    "odd MLP": {"vision": {"mlp_ratio": 4.9231}, "text": {"mlp_ratio": 2.3}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_equal_and_what_is_written_is_what_was_read(tmp_path, variant):
    fields = VARIANTS[variant]
    theirs = save_theirs(tmp_path / "theirs", **fields)
    ours, info = CLIPModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    size = ours.config.vision_config.image_size
    images = random_images(3, *((size, size) if isinstance(size, int) else size))
    tokens = texts()
    if variant == "worldwide":
        tokens[tokens == 59] = 2
    assert_same(ours, theirs, images, tokens)
    export_checkpoint(ours, tmp_path / "back", format="open_clip")
    if isinstance(size, int):  # open_clip's loader takes all positions for a square
        back = open_clip.create_model(f"local-dir:{tmp_path / 'back'}").eval()
        assert_same(ours, back, images, tokens)
    expected = load_file(tmp_path / "theirs" / "open_clip_model.safetensors")
    found = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    expected = {name.removeprefix("text."): tensor for name, tensor in expected.items()}
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name].reshape(found[name].shape))] == []


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize(
    "model_class", [CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel, CLIPVisionModelWithProjection]
)
@torch.no_grad()
def test_towers_load_alone(tmp_path, model_class, custom):
    fields = {"custom_text": True, "init_logit_bias": -10, "text": {"proj_bias": True}} if custom else {}
    theirs = save_theirs(tmp_path, safe=False, **fields)  # as .bin
    ours, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and ours.config.projection_dim == 20
    is_text = "Text" in model_class.__name__
    inputs = texts() if is_text else random_images(3)
    expected = theirs.encode_text(inputs) if is_text else theirs.encode_image(inputs)
    whole = CLIPModel.from_pretrained(tmp_path)
    projection = whole.text_projection if is_text else whole.visual_projection
    outputs = ours(inputs)
    found = outputs.text_embeds if "text_embeds" in outputs else outputs.get("image_embeds")
    found = projection(outputs.pooler_output) if found is None else found
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32_as_open_clip_does(tmp_path):
    theirs = save_theirs(tmp_path)
    torch.save({name: tensor.half() for name, tensor in theirs.state_dict().items()}, tmp_path / "half.bin")
    (tmp_path / "open_clip_model.safetensors").unlink()
    (tmp_path / "half.bin").rename(tmp_path / "open_clip_pytorch_model.bin")
    assert_same(CLIPModel.from_pretrained(tmp_path), open_clip.create_model(f"local-dir:{tmp_path}").eval())


def bare(tmp_path, name="epoch_1.pt", **fields):
    """A checkpoint of open_clip's training: weights alone, nested, of heads 64 wide."""
    sizes = {"vision": {"head_width": 64, "width": 128}, "text": {"heads": 1, "width": 64}}
    fields = {**fields, **{part: {**sizes[part], **fields.get(part, {})} for part in sizes}}
    theirs = save_theirs(tmp_path, **fields)
    for file in tmp_path.iterdir():
        file.unlink()
    weights = {f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": weights}, tmp_path / name)
    return theirs, tmp_path / name


@pytest.mark.parametrize(
    "fields", [{}, {"init_logit_bias": -10, "vision": {"ls_init_value": 1e-5}}], ids=["plain", "bias and layer scale"]
)
def test_weights_alone_tell_the_architecture_but_for_the_activation(tmp_path, caplog, fields):
    theirs, file = bare(tmp_path, **fields)
    with caplog.at_level(logging.WARNING):
        ours = CLIPModel.from_pretrained(file)
    assert_same(ours, theirs)
    processor = load_image_processor(file)
    assert processor.crop_size == {"height": 32, "width": 32}


def test_quickgelu_of_weights_alone_is_chosen_by_name(tmp_path):
    theirs, file = bare(tmp_path, quick_gelu=True)
    assert_same(CLIPModel.from_pretrained(file, source_format="openai"), theirs)
    act = {"hidden_act": "quick_gelu"}
    assert_same(CLIPModel.from_pretrained(file, text_config=act, vision_config=act), theirs)


@pytest.mark.parametrize("width", [384, 768, 1024, 1280, 1408, 1664, 1792])
def test_heads_of_published_widths_are_open_clips(width):
    configs = [open_clip.get_model_config(name) for name in open_clip.list_models()]
    vision = [cfg["vision_cfg"] for cfg in configs if "timm_model_name" not in cfg["vision_cfg"]]
    heads = {cfg["width"] // cfg.get("head_width", 64) for cfg in vision if cfg["width"] == width}
    shapes = {
        "visual.conv1.weight": (width, 3, 14, 14),
        "visual.positional_embedding": (257, width),
        "visual.ln_pre.weight": (width,),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width),
        "text.transformer.resblocks.0.mlp.c_fc.weight": (2048, 512),
        "text.positional_embedding": (77, 512),
        "text.token_embedding.weight": (49408, 512),
        "text.text_projection": (512, 512),
    }
    cfg = infer_model_cfg(shapes, quick_gelu=False, head_widths=open_clip_format.HEAD_WIDTHS)
    assert heads == {width // cfg["vision_cfg"]["head_width"]}
    assert cfg["vision_cfg"]["image_size"] == 224 and cfg["text_cfg"]["heads"] == 8


def test_every_published_configuration_is_read_or_refused_with_a_sentence():
    """All of the installed open_clip's: parameters counted on the meta device, or a reason."""
    read, reasons = [], {}
    for name in open_clip.list_models():
        cfg = open_clip.get_model_config(name)
        try:
            fields = open_clip_format.our_fields(cfg)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        read.append(name)
        if name in ("ViT-B-32-quickgelu", "ViT-M-16-alt", "ViT-L-14-CLIPA"):  # the others differ in numbers only
            with torch.device("meta"):
                expected = CLIP(**cfg).state_dict()
                ours = CLIPModel(CLIPModel.config_class.from_dict(fields))
            found = open_clip_format.their_weights(ours)
            assert {key: tensor.shape for key, tensor in found.items()} == {
                key: tensor.shape for key, tensor in expected.items()
            }
    assert len(read) >= 45 and {"ViT-B-32", "ViT-H-14-CLIPA", "ViT-bigG-14", "ViT-H-14-worldwide"} <= set(read)
    assert "CLIP's ResNets" in reasons["RN50"] and "resnet50_clip.openai" in reasons["RN50"]
    assert "timm's 'vit_base_patch16_siglip_224'" in reasons["ViT-B-16-SigLIP"]
    assert "transformers' 'roberta-base'" in reasons["roberta-ViT-B-32"]
    assert "CoCa" in reasons["coca_ViT-B-32"]
    assert all("create_model_and_transforms" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vision": {"attentional_pool": True}}, "`attentional_pool=True` in `vision_cfg`"),
        ({"vision": {"qk_norm": True}}, "`qk_norm=True` in `vision_cfg`"),
        ({"vision": {"block_type": "custom"}}, "`block_type='custom'`"),
        (
            {"vision": {"pool_type": "none"}},
            "`pool_type` in `vision_cfg` must be one of 'tok', 'avg' here; got 'none'",
        ),
        ({"text": {"embed_cls": True}}, "`embed_cls=True` in `text_cfg`"),
        ({"text": {"pool_type": "first"}}, "`pool_type` in `text_cfg` must be one of .*got 'first'"),
        ({"text": {"proj_type": "none"}}, "`proj_type` in `text_cfg`"),
        ({"text": {"act_kwargs": {"inplace": True}}}, "`act_kwargs=.*` in `text_cfg`"),
        ({"naflex": {"size": 2}}, "`naflex=.*` in `model_cfg`"),
        ({"embed_dim": None}, "has no `embed_dim`"),
    ],
)
def test_what_our_clip_does_not_have_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        open_clip_format.our_fields(their_cfg(**fields))


def test_nulls_and_fields_of_no_meaning_are_passed_over():
    plain = open_clip_format.our_fields(their_cfg())
    vision = {"ls_init_value": None, "head_width": 8, "timm_pool": "avg", "block_type": "default", "qk_norm": None}
    text = {"hf_tokenizer_name": "t5", "tokenizer_kwargs": {"clean": "lower"}, "mlp_ratio": None}
    assert open_clip_format.our_fields(their_cfg(vision=vision, text=text, output_dict=True)) == plain


def test_damaged_weights_are_errors_that_name_them(tmp_path):
    theirs, cfg = save_theirs(tmp_path), {"model_cfg": their_cfg()}
    for name, change in (
        ("visual.ln_post.bias", lambda w: w.pop("visual.ln_post.bias")),
        ("text.text_projection", lambda w: w.pop("text_projection")),
        ("visual.proj.bias", lambda w: w.update({"visual.proj.bias": torch.zeros(2)})),
        ("logit_bias", lambda w: w.update({"logit_bias": torch.zeros(())})),
    ):
        weights = dict(theirs.state_dict())
        change(weights)
        with pytest.raises(ValueError, match=rf"1 (missing|unexpected) \({name}\)"):
            open_clip_format.read(CLIPModel, cfg, weights)
    for weights, message in (
        ({"visual.trunk.a": torch.zeros(1)}, "image tower is timm's"),
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "CLIP's ResNets"),
        ({"text.transformer.embeddings.a": torch.zeros(1)}, "text tower is transformers'"),
        ({"visual.conv1.weight": torch.zeros(1)}, "open_clip_config.json"),
    ):
        with pytest.raises(ValueError, match=message):
            open_clip_format.read(CLIPModel, {}, weights)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vision": {"pooling": "map"}}, "pooling='map'"),
        ({"vision": {"num_register_tokens": 2}}, "num_register_tokens=2"),
        ({"vision": {"patch_bias": True}}, "patch_bias=True"),
        ({"vision": {"pooling": "mean", "use_class_token": False}}, "use_class_token=False"),
        ({"vision": {"use_projection": False}, "projection_dim": 32}, "use_projection=False"),
        ({"vision": {"num_channels": 1}}, "num_channels=1"),
        ({"text": {"qkv_bias": False}}, "qkv_bias=False"),
        ({"text": {"hidden_act": "gelu"}}, "hidden_act='gelu'` in `text_config` .only 'quick_gelu'"),
        ({"text": {"hidden_act": "relu"}, "vision": {"hidden_act": "gelu"}}, "hidden_act='relu'"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path, fields, named):
    with pytest.raises(ValueError, match=f"open_clip's format cannot hold `{named}"):
        export_checkpoint(tiny_clip(**fields), tmp_path / "out", format="open_clip")
    assert not (tmp_path / "out").exists()


def test_width_of_an_mlp_survives_the_rounding_of_its_ratio():
    for width in (24, 768, 1152, 1664):
        for wide in range(width, 6 * width, 7):
            assert int(width * mlp_ratio(width, wide)) == wide


def test_preprocessing_is_written_and_read_again(tmp_path):
    save_theirs(tmp_path / "theirs", HALF)
    processor = load_image_processor(tmp_path / "theirs")
    ours = CLIPModel.from_pretrained(tmp_path / "theirs")
    export_checkpoint(ours, tmp_path / "back", format="open_clip", processing_class=processor)
    found, expected = (
        json.loads((tmp_path / name / "open_clip_config.json").read_text())["preprocess_cfg"]
        for name in ("back", "theirs")
    )
    assert found == expected
    processor.resample = 0
    with pytest.raises(ValueError, match="open_clip cannot prepare images as this CLIPImageProcessor does"):
        export_checkpoint(ours, tmp_path / "back", format="open_clip", processing_class=processor)
    save_theirs(tmp_path / "longest", {"resize_mode": "longest"})
    with pytest.raises(ValueError, match="resize_mode='longest'"):
        load_image_processor(tmp_path / "longest")


def test_tokenizer_comes_from_the_folder_or_by_the_name_in_the_configuration(tmp_path):
    words = train_tokenizer(["a cat", "two dogs and a cat"] * 9, vocab_size=300, context_length=12)
    words.save_pretrained(tmp_path / "words")
    name = str(tmp_path / "words")
    save_theirs(tmp_path / "without", text={"hf_tokenizer_name": name})
    save_theirs(tmp_path / "with", tokenizer=words, text={"hf_tokenizer_name": "an/other"})
    expected = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'with'}")(["a cat and two dogs"])
    for folder in ("with", "without"):
        tokenizer = load_tokenizer(tmp_path / folder)
        assert tokenizer.model_max_length == 12
        found = tokenizer(["a cat and two dogs"], padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(found["input_ids"], expected)
    export_checkpoint(tiny_clip(), tmp_path / "ours", format="open_clip", processing_class=words)
    assert torch.equal(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'ours'}")(["a cat and two dogs"]), expected)


@pytest.mark.parametrize("name", ["positional_embedding", "transformer.resblocks.0.ln_1.weight", "text_projection"])
@pytest.mark.parametrize("source_format", ["open_clip", "openai"])
def test_text_weight_with_the_prefix_and_without_is_an_error(tmp_path, name, source_format):
    theirs, path = bare(tmp_path)
    weights = theirs.state_dict()
    torch.save({**weights, f"text.{name}": weights[name] + 1}, path)
    with pytest.raises(ValueError, match=f"'{name}' and 'text.{name}' are the same weight"):
        CLIPModel.from_pretrained(path, source_format=source_format)


def test_notes_tell_what_the_tokenizer_leaves_to_the_caller():
    cleaned = {"model_cfg": their_cfg(text={"tokenizer_kwargs": {"clean": "canonicalize", "strip_sep_token": True}})}
    assert (
        len(open_clip_format.notes(cleaned, {})) == 2 and open_clip_format.notes({"model_cfg": their_cfg()}, {}) == []
    )
    assert "GELU" in open_clip_format.notes({}, {})[0]


def test_temperature_and_bias_are_those_of_the_file(tmp_path):
    theirs = save_theirs(tmp_path, init_logit_scale=math.log(10), init_logit_bias=-10)
    ours = CLIPModel.from_pretrained(tmp_path)
    assert torch.equal(ours.logit_scale, theirs.logit_scale) and torch.equal(ours.logit_bias, theirs.logit_bias)
    assert (ours.config.objective, ours.config.logit_scale_init_value) == ("sigmoid", math.log(10))
