"""transformers' CLIP configurations as repositories of several years have them, and what its format cannot hold."""

import json

import pytest
import torch
import transformers

from hf_vitfm import CLIPModel, CLIPTextModelWithProjection, CLIPVisionModel, export_checkpoint
from hf_vitfm.conversion import transformers_clip
from tests.tiny import SIGLIP, randomize, tiny_clip


# Fields that every configuration of a part had before transformers 4.31, of no meaning to a model.
GENERATION = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "dropout": 0.0,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "num_beams": 1,
    "output_attentions": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False,
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SMALL, "max_position_embeddings": 12}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
# The layouts of openai's, laion's and of today's repositories; fields that equal the defaults are left out.
LAYOUTS = {
    "2021": {
        "text_config": {**GENERATION, **TEXT, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
        "text_config_dict": None,
        "vision_config": {**GENERATION, **VISION},
        "vision_config_dict": None,
        "initializer_factor": 1.0,
        "torch_dtype": "float32",
        "transformers_version": None,
    },
    "2022": {
        "text_config": {**GENERATION, "hidden_size": 512, "eos_token_id": 2},
        "text_config_dict": {**TEXT, "hidden_act": "gelu", "eos_token_id": 2},
        "vision_config": None,
        "vision_config_dict": {**VISION, "hidden_act": "gelu"},
        "torch_dtype": "float16",
    },
    "today": {"text_config": {**TEXT, "a_field_of_tomorrow": [1]}, "vision_config": VISION, "dtype": "float16"},
}


def save(folder, layout) -> transformers.CLIPModel:
    """A folder with a configuration of that layout, and a .bin with the numbered positions of old files."""
    saved = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 24, **LAYOUTS[layout]}
    config = transformers.CLIPConfig.from_dict(saved)
    model = randomize(transformers.CLIPModel(config))
    weights = model.state_dict()
    if layout != "today":
        weights["text_model.embeddings.position_ids"] = torch.arange(12)[None]
        weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (folder / "config.json").write_text(json.dumps(saved))
    torch.save(weights, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_folder_of_any_year_gives_the_same_model(tmp_path, layout):
    theirs = save(tmp_path, layout)
    ours, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert ours.dtype == (torch.float32 if layout == "2021" else torch.float16)
    ours, tokens = ours.float(), torch.tensor([[49406, 9, 8, 7, 49407, 49407], [49406, 5, 49407, 1, 1, 1]])
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        ours(tokens, images).logits_per_image, theirs(tokens, images).logits_per_image, rtol=1e-2, atol=1e-2
    )
    # Halves of an old file are rounded, so the pooling is looked at by itself.
    assert (ours.config.text_config.pooling, ours.config.text_config.eos_token_id) == ("eos", 49407)
    for model_class in (CLIPTextModelWithProjection, CLIPVisionModel):
        assert not any(model_class.from_pretrained(tmp_path, output_loading_info=True)[1].values())


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("text", "is_causal"),
        ("text", "pooling"),
        ("text", "projection_bias"),
        ("vision", "pooling"),
        ("vision", "use_projection"),
        ("vision", "patch_bias"),
        ("vision", "use_pre_norm"),
        ("vision", "final_norm"),
        ("vision", "trim_images"),
    ],
)
def test_what_only_other_formats_hold_is_refused_by_name(part, field):
    value = SIGLIP[part].get(field, True)
    model = tiny_clip(**{part: {field: value}, "projection_dim": 32})
    with pytest.raises(ValueError, match=f"CLIP cannot hold `{field}={value!r}` in `{part}_config`"):
        transformers_clip.write(model)


def test_siglip_is_written_as_transformers_siglip_and_others_by_the_message(tmp_path):
    export_checkpoint(tiny_clip(**SIGLIP), tmp_path / "siglip")
    assert json.loads((tmp_path / "siglip" / "config.json").read_text())["model_type"] == "siglip"
    with pytest.raises(ValueError, match=r'open_clip\'s format can hold it .*format="open_clip"'):
        export_checkpoint(tiny_clip(text={"layer_scale_init_value": 0.1}), tmp_path / "out")
