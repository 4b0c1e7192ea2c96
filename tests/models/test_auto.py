"""transformers' Auto classes and pipelines find our models, and nothing of transformers' own changes."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from hf_vitfm import ViTConfig, ViTForImageClassification, ViTModel
from tests.data.images import noise
from tests.repo.tree import ROOT
from tests.tiny import randomize, tiny_config


REGISTERED = {"AutoModel": ViTModel, "AutoModelForImageClassification": ViTForImageClassification}
MODEL_AUTO_CLASSES = sorted(
    name
    for name in dir(transformers)
    if name.startswith("Auto") and hasattr(getattr(transformers, name), "from_config")
)


@pytest.fixture
def folder(tmp_path):
    """A saved classifier and its image processor."""
    names = dict(enumerate(["ant", "bee", "cat", "dog", "elk"]))
    randomize(ViTForImageClassification(tiny_config(id2label=names))).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def picture():
    return Image.fromarray(noise(40, 50))


def test_auto_classes_give_ours_from_a_folder(folder):
    assert type(AutoConfig.from_pretrained(folder)) is ViTConfig
    assert type(AutoModel.from_pretrained(folder)) is ViTModel
    assert type(AutoModelForImageClassification.from_pretrained(folder)) is ViTForImageClassification
    assert type(AutoImageProcessor.from_pretrained(folder)).__name__ == "ViTImageProcessor"
    assert type(transformers.AutoProcessor.from_pretrained(folder)).__name__ == "ViTImageProcessor"


def test_image_processor_comes_in_both_backends(folder):
    assert type(AutoImageProcessor.from_pretrained(folder, backend="torchvision")) is transformers.ViTImageProcessor
    assert type(AutoImageProcessor.from_pretrained(folder, backend="pil")) is transformers.ViTImageProcessorPil


def test_auto_config_knows_our_model_type():
    config = AutoConfig.for_model("vitfm_vit", hidden_size=48)
    assert type(config) is ViTConfig and config.hidden_size == 48


@pytest.mark.parametrize("name", REGISTERED)
def test_auto_class_builds_ours_from_a_configuration(name, config):
    assert type(getattr(transformers, name).from_config(config)) is REGISTERED[name]


@pytest.mark.parametrize("name", sorted(set(MODEL_AUTO_CLASSES) - set(REGISTERED)))
def test_auto_class_that_we_do_not_serve_refuses_rather_than_builds_transformers_model(name, config):
    with pytest.raises(ValueError, match="Unrecognized configuration class.*VitfmViTConfig"):
        getattr(transformers, name).from_config(config)


@pytest.mark.parametrize("name", ["AutoModelForMaskedImageModeling", "AutoModelForSemanticSegmentation"])
def test_auto_class_that_we_do_not_serve_refuses_a_folder_too(name, folder):
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        getattr(transformers, name).from_pretrained(folder)


def test_there_are_auto_classes_that_we_do_not_serve():
    assert {"AutoModelForMaskedImageModeling", "AutoBackbone", "AutoModelForPreTraining"} < set(MODEL_AUTO_CLASSES)


@torch.no_grad()
def test_image_classification_pipeline_works_from_a_folder(folder, picture):
    model = ViTForImageClassification.from_pretrained(folder)
    pixel_values = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    probabilities = model(pixel_values).logits.softmax(dim=-1)[0]
    answers = pipeline("image-classification", model=str(folder))(picture, top_k=5)
    assert {answer["label"] for answer in answers} == {"ant", "bee", "cat", "dog", "elk"}
    for answer in answers:
        assert answer["score"] == pytest.approx(probabilities[model.config.label2id[answer["label"]]].item(), abs=1e-5)
    assert answers == sorted(answers, key=lambda answer: -answer["score"])


@torch.no_grad()
def test_image_feature_extraction_pipeline_works_from_a_folder(folder, picture):
    pixel_values = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    outputs = ViTModel.from_pretrained(folder)(pixel_values)
    extract = pipeline("image-feature-extraction", model=str(folder))
    torch.testing.assert_close(torch.tensor(extract(picture)), outputs.last_hidden_state)
    torch.testing.assert_close(torch.tensor(extract(picture, pool=True)), outputs.pooler_output)


def test_ordinary_save_writes_weights_and_configuration_and_no_code(tmp_path):
    for number, model in enumerate([ViTModel(tiny_config()), ViTForImageClassification(tiny_config())]):
        model.save_pretrained(tmp_path / str(number))
        assert sorted(path.name for path in (tmp_path / str(number)).iterdir()) == ["config.json", "model.safetensors"]
        saved = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert "auto_map" not in saved and saved["architectures"] == [type(model).__name__]
    assert (ViTModel._auto_class, ViTForImageClassification._auto_class, ViTConfig._auto_class) == (None,) * 3


def test_importing_the_library_changes_nothing_for_transformers_own_models():
    command = [sys.executable, "-m", "tests.models.native_mappings"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert len(before["auto"]) > 30 and before["built"][0] == "transformers.models.vit.modeling_vit.ViTModel"
    assert all(mapping.pop("added") == {} for mapping in before["auto"].values())
    added = {name: mapping.pop("added") for name, mapping in after["auto"].items()}
    assert after == before
    configs = "hf_vitfm.models.configuration_{}.Vitfm{}Config"
    vit, mae, clip = (configs.format(name.lower(), name) for name in ("ViT", "MAE", "CLIP"))
    towers = {configs.format("clip", f"CLIP{name}") for name in ("Text", "Vision")}
    expected = {
        "AutoModel": {vit, mae, clip, *towers},
        "AutoModelForImageClassification": {vit},
        "AutoModelForPreTraining": {mae},
        "AutoModelForZeroShotImageClassification": {clip},
    }
    assert {name: set(keys) for name, keys in added.items() if keys} == expected
