"""Published models serve those who have transformers only: in its format, or with their code beside them."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoModel, BertConfig, CLIPProcessor, ViTImageProcessor, pipeline

import hf_vitfm
from hf_vitfm import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    MAEForPreTraining,
    ViTForImageClassification,
    ViTModel,
    export_checkpoint,
    sample_checkpoint,
)
from hf_vitfm.hub.remote_code import write_remote_code
from tests.hub import receiver
from tests.hub.client import Client, client_environment
from tests.tiny import FIELDS, VISION_FIELDS, random_images, randomize, tiny_clip, tiny_config, tiny_mae


CLASSES = {"vit": ViTForImageClassification, "mae": MAEForPreTraining, "clip": CLIPModel}
OUTPUTS = {  # of the classes that an auto_map must name
    "vit": {"AutoModelForImageClassification": ["logits"], "AutoModel": ["last_hidden_state", "pooler_output"]},
    "mae": {"AutoModelForPreTraining": ["loss", "logits", "mask"], "AutoModel": ["last_hidden_state", "mask"]},
    "clip": {"AutoModelForZeroShotImageClassification": ["logits_per_image"], "AutoModel": ["text_embeds"]},
}
TASKS = {
    "vit": {"image-classification": {"top_k": 5}, "image-feature-extraction": {}},
    "mae": {"image-feature-extraction": {}},
    "clip": {
        "zero-shot-image-classification": {"candidate_labels": ["red fruit", "a car"], "hypothesis_template": "{}"}
    },
}
MODELS = Path(hf_vitfm.__file__).parent / "models"


def build(name: str, for_transformers: bool = False):
    """A model and its processor; unless it is for transformers' format, one that this format cannot hold."""
    if name == "clip":
        source = sample_checkpoint("emoji-clip")
        model, processor = CLIPModel.from_pretrained(source).eval(), CLIPProcessor.from_pretrained(source)
        if not for_transformers:  # its vision tower pools by the mean
            return model, processor
        saved = model.config.text_config
        text = {name: getattr(saved, name) for name in ("vocab_size", "max_position_embeddings", "eos_token_id")}
        return tiny_clip(text=text), processor
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    if name == "mae":
        return tiny_mae(num_register_tokens=0 if for_transformers else 1, decoder_intermediate_size=36), processor
    more = {} if for_transformers else {"pooling": "mean", "num_register_tokens": 2}
    return randomize(ViTForImageClassification(tiny_config(**more))), processor


def inputs_of(name: str, processor) -> dict[str, Tensor]:
    inputs = {"pixel_values": random_images()}
    if name == "mae":
        inputs["noise"] = torch.rand(2, 16, generator=torch.Generator().manual_seed(5))
    if name == "clip":
        inputs |= processor.tokenizer(["red fruit", "a car on the road"], padding=True, return_tensors="pt")
    return inputs


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.effect_mandelbrot((48, 40), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(path)
    return str(path)


@pytest.fixture(scope="module")
def published(running_hub, tmp_path_factory, picture):
    """Folders and repositories by model: with code, and in transformers' format; what the library makes of them."""
    top = tmp_path_factory.mktemp("models")
    found = {}
    for name in CLASSES:
        model, processor = build(name)
        folder = top / name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_remote_code(folder, type(model))
        running_hub.publish(f"ada/{name}-code", folder)
        inputs = inputs_of(name, processor)
        outputs = {auto: receiver.computed(str(folder), auto, inputs, keys) for auto, keys in OUTPUTS[name].items()}
        said = {task: receiver.answers(task, str(folder), picture, call) for task, call in TASKS[name].items()}

        model, processor = build(name, for_transformers=True)
        export_checkpoint(model, top / f"{name}-plain", "transformers", processor)
        running_hub.publish(f"ada/{name}-plain", top / f"{name}-plain")
        model.save_pretrained(top / f"{name}-ours")
        processor.save_pretrained(top / f"{name}-ours")
        found[name] = {"inputs": inputs, "outputs": outputs, "answers": said}
    return top, found


@pytest.fixture(scope="module")
def stranger(client):
    """A process without the library."""
    client.run(receiver.hide_library)
    yield client
    assert not client.run(receiver.library_modules)


def assert_same(found, expected) -> None:
    """Equal up to rounding, however it is nested."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list) and not isinstance(expected[0], float):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, str):
        assert found == expected
    else:
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-5, atol=1e-5)


# Without the library


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("name", CLASSES)
def test_code_in_the_repository_computes_what_the_library_does(hub, stranger, published, picture, name, place):
    top, expected = published
    source = str(top / name) if place == "folder" else f"ada/{name}-code"
    for auto, keys in OUTPUTS[name].items():
        found = stranger.run(receiver.computed, source, auto, expected[name]["inputs"], keys, trust_remote_code=True)
        assert_same(found, expected[name]["outputs"][auto])
    for task, call in TASKS[name].items():
        found = stranger.run(receiver.answers, task, source, picture, call, trust_remote_code=True)
        assert_same(found, expected[name]["answers"][task])


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("name", ["vit", "clip"])
def test_transformers_format_needs_no_code(hub, stranger, published, picture, name, place):
    top, _ = published
    source = str(top / f"{name}-plain") if place == "folder" else f"ada/{name}-plain"
    for task, call in TASKS[name].items():
        expected = receiver.answers(task, str(top / f"{name}-ours"), picture, call)
        assert_same(stranger.run(receiver.answers, task, source, picture, call), expected)


def test_mae_in_transformers_format_has_the_same_loss(hub, stranger, published):
    top, expected = published
    inputs, keys = expected["mae"]["inputs"], ["loss", "logits"]
    ours = receiver.computed(str(top / "mae-ours"), "AutoModelForPreTraining", inputs, keys)
    assert_same(stranger.run(receiver.computed, "ada/mae-plain", "AutoModelForPreTraining", inputs, keys), ours)


def test_image_size_can_be_given_and_masks_left_out(stranger, published):
    top, _ = published
    images = {"pixel_values": random_images(height=48, width=48)}
    for name, fields in (("vit", {"image_size": 48}), ("mae", {"image_size": 48, "mask_ratio": 0})):
        keys = ["last_hidden_state"]
        found = stranger.run(
            receiver.computed, str(top / name), "AutoModel", images, keys, **fields, trust_remote_code=True
        )
        assert_same(found, receiver.computed(str(top / name), "AutoModel", images, keys, **fields))


def test_tower_of_another_library_comes_along(stranger, tmp_path):
    text = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=60)
    config = CLIPConfig(text_config=text, vision_config=VISION_FIELDS, text_pooling="mean", projection_dim=24)
    randomize(CLIPModel(config)).save_pretrained(tmp_path)
    write_remote_code(tmp_path, CLIPModel)
    inputs = {"pixel_values": random_images(), "input_ids": torch.tensor([[2, 3, 4], [5, 6, 7]])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    arguments = (str(tmp_path), "AutoModel", inputs, ["logits_per_image"])
    assert_same(stranger.run(receiver.computed, *arguments, trust_remote_code=True), receiver.computed(*arguments))


def test_towers_alone_have_code_too(stranger, tmp_path):
    config = CLIPModel.from_pretrained(sample_checkpoint("emoji-clip")).config.vision_config
    randomize(CLIPVisionModelWithProjection(config)).save_pretrained(tmp_path)
    files = write_remote_code(tmp_path, CLIPVisionModelWithProjection)
    assert "modeling_clip.py" not in [file.name for file in files]
    arguments = (str(tmp_path), "AutoModel", {"pixel_values": random_images()}, ["pooler_output"])
    assert_same(stranger.run(receiver.computed, *arguments, trust_remote_code=True), receiver.computed(*arguments))


def test_what_a_stranger_saves_has_its_code_again(stranger, published, tmp_path):
    top, expected = published
    stranger.run(receiver.saved_again, str(top / "clip"), "AutoModel", str(tmp_path))
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in (top / "clip").glob("*.py")}
    arguments = (str(tmp_path), "AutoModel", expected["clip"]["inputs"], ["text_embeds"])
    found = stranger.run(receiver.computed, *arguments, trust_remote_code=True)
    assert_same(found, expected["clip"]["outputs"]["AutoModel"])


@pytest.mark.parametrize("name", CLASSES)
def test_no_file_could_be_left_out(stranger, published, tmp_path, name):
    top, _ = published
    files = sorted(path.name for path in (top / name).glob("*.py"))
    for missing in [None, *files]:
        shutil.copytree(top / name, tmp_path / f"without_{missing}")
        (tmp_path / f"without_{missing}" / f"{missing}").unlink(missing_ok=missing is None)
    folders = [str(tmp_path / f"without_{missing}") for missing in files]
    failures = stranger.run(receiver.failures, folders, "AutoModel")
    assert all(missing in failure for missing, failure in zip(files, failures, strict=True)), failures
    assert stranger.run(receiver.failures, [str(tmp_path / "without_None")], "AutoModel") == ["none"]


def test_code_runs_where_the_library_is_installed_but_not_imported(hub, published, tmp_path):
    """The repository is trusted then, so its code is run; what it finds of the library does not get in its way."""
    top, expected = published
    with Client(client_environment(hub.endpoint, tmp_path / "home"), tmp_path / "log") as other:
        assert not other.run(receiver.library_modules)
        for source in (str(top / "vit"), "ada/vit-code"):
            arguments = (source, "AutoModelForImageClassification", expected["vit"]["inputs"], ["logits"])
            found = other.run(receiver.computed, *arguments, trust_remote_code=True)
            assert_same(found, expected["vit"]["outputs"]["AutoModelForImageClassification"])


# The files


def needed(*names: str) -> set[str]:
    """Files of models/ that these import, and those, and so on."""
    found, left = set(), set(names)
    while left:
        name = left.pop()
        found.add(name)
        for node in ast.walk(ast.parse((MODELS / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                left |= {f"{node.module}.py"} - found
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_files_are_those_that_are_imported_and_none_names_the_library(published, name):
    folder = published[0] / name
    files = {path.name: path.read_text() for path in folder.glob("*.py")}
    assert files.keys() == needed(f"modeling_{name}.py", f"configuration_{name}.py")
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [module for module in modules if module.partition(".")[0] == "hf_vitfm"]


@pytest.mark.parametrize("name", CLASSES)
def test_auto_map_names_the_configuration_and_every_class_that_fits(published, name):
    folder = published[0] / name
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", *OUTPUTS[name]}
    for auto, reference in auto_map.items():
        module, class_name = reference.split(".")
        defined = [
            node.name for node in ast.parse((folder / f"{module}.py").read_text()).body if hasattr(node, "bases")
        ]
        assert class_name in defined
        if auto != "AutoConfig":
            assert type(getattr(transformers, auto).from_pretrained(folder)).__name__ == class_name


def test_writing_twice_changes_nothing(published):
    folder = published[0] / "vit"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = write_remote_code(folder, ViTModel)  # any class of the type
    assert files == sorted(folder.glob("*.py"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# With the library


@pytest.mark.parametrize("name", CLASSES)
def test_installed_classes_are_used_and_the_files_not_run(published, picture, tmp_path, name, monkeypatch):
    top, expected = published
    folder = tmp_path / "model"
    shutil.copytree(top / name, folder)
    for file in folder.glob("*.py"):
        file.write_text("raise SystemExit('this must not run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust"))
    for trust in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        for auto, keys in OUTPUTS[name].items():
            assert "'hf_vitfm.models." in receiver.loaded_class(str(folder), auto, **trust)
            found = receiver.computed(str(folder), auto, expected[name]["inputs"], keys, **trust)
            assert_same(found, expected[name]["outputs"][auto])
    task, call = next(iter(TASKS[name].items()))
    assert_same(pipeline(task, model=str(folder))(picture, **call), expected[name]["answers"][task])


@pytest.mark.parametrize("name", CLASSES)
def test_ordinary_save_carries_no_code(published, tmp_path, name):
    CLASSES[name].from_pretrained(published[0] / name).save_pretrained(tmp_path / "ours")
    AutoModel.from_pretrained(published[0] / name).save_pretrained(tmp_path / "auto")
    for folder in (tmp_path / "ours", tmp_path / "auto"):
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
        assert "auto_map" not in json.loads((folder / "config.json").read_text())


# Refusals


def test_class_of_another_library_is_refused(tmp_path):
    model = transformers.ViTModel(transformers.ViTConfig(**FIELDS))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got transformers.models.vit.modeling_vit.ViTModel.*need none"):
        write_remote_code(tmp_path, transformers.ViTModel)


def test_folder_of_another_type_is_refused_and_left_as_it_was(published):
    folder = published[0] / "vit-plain"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="of the type 'vit'; the code of ViTModel is for 'vitfm_vit'"):
        write_remote_code(folder, ViTModel)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        write_remote_code(tmp_path, ViTModel)


def test_tower_that_only_the_library_knows_is_refused(tmp_path):
    text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=60)
    config = CLIPConfig(text_config=text, vision_config=tiny_config(num_labels=0), text_pooling="mean")
    CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The vision tower is a model of the type 'vitfm_vit'"):
        write_remote_code(tmp_path, CLIPModel)
