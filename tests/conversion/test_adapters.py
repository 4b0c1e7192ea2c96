"""Adapters of PEFT beside a model, or without one."""

import json

import peft
import pytest
import torch

from hf_vitfm import ViTForImageClassification
from tests.tiny import random_images, randomize, tiny_config


def test_adapters_beside_our_own_model_are_loaded_as_transformers_does(tmp_path):
    base = randomize(ViTForImageClassification(tiny_config()))
    base.save_pretrained(tmp_path)
    lora = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)  # or B is zero
    adapted = peft.get_peft_model(ViTForImageClassification.from_pretrained(tmp_path), lora).eval()
    adapted.save_pretrained(tmp_path)
    found, images = ViTForImageClassification.from_pretrained(tmp_path), random_images()
    with torch.no_grad():
        torch.testing.assert_close(found(images).logits, adapted(images).logits, rtol=0, atol=1e-5)
        assert (found(images).logits - base(images).logits).norm() > 0.01


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{x", "no JSON object with a `peft_type`"),
        ("{}", "no JSON object with a `peft_type`"),
        (
            '{"peft_type": "LORA", "r": 2, "target_modules": ["qkv"]}',
            "adapter_model.safetensors nor adapter_model.bin",
        ),
    ],
)
def test_damaged_adapters_beside_our_own_model_are_named(tmp_path, content, problem):
    randomize(ViTForImageClassification(tiny_config())).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=f"{problem}.*take adapter_config.json away"):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_adapters_beside_a_foreign_model_are_said_to_be_left_out(folder, theirs, monkeypatch):
    said = []
    monkeypatch.setattr("hf_vitfm.conversion.adapters.logger.warning", said.append)
    ViTForImageClassification.from_pretrained(folder)
    assert not said
    peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    ViTForImageClassification.from_pretrained(folder)
    assert len(said) == 1 and "are left out" in said[0] and "merge_and_unload" in said[0]


def test_adapters_alone_are_told_what_to_load(tmp_path):
    saved = {"peft_type": "LORA", "base_model_name_or_path": "some/vit"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"adapters of PEFT and no model.*\('some/vit'\).*PeftModel.from_pretrained"):
        ViTForImageClassification.from_pretrained(tmp_path)
