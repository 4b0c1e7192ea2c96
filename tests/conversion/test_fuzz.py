"""Valid files, damaged in many ways: always a clear error or a correct load, never a half-loaded model."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm import ViTConfig, ViTForImageClassification, ViTModel
from hf_vitfm.conversion.archives import read_tensors
from tests.tiny import randomize


SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 2,
}
KINDS = ("safetensors", "zip", "legacy", "ours", "our zip")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One folder of each kind, with the same weights in the first three."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    theirs = randomize(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)))
    theirs.save_pretrained(folders["safetensors"])
    weights = load_file(folders["safetensors"] / "model.safetensors")
    for kind in ("zip", "legacy"):
        shutil.copy(folders["safetensors"] / "config.json", folders[kind])
        path = folders[kind] / "pytorch_model.bin"
        torch.save({"model": weights}, path, _use_new_zipfile_serialization=kind == "zip")
    randomize(ViTForImageClassification(ViTConfig(**SMALL))).save_pretrained(folders["ours"])
    shutil.copy(folders["ours"] / "config.json", folders["our zip"])
    torch.save(load_file(folders["ours"] / "model.safetensors"), folders["our zip"] / "pytorch_model.bin")
    return folders


def weight_file(folder):
    return next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def assert_clear(error):
    """An error of the right family with a sentence in it."""
    message = str(error)
    assert isinstance(error, ValueError | OSError), f"{type(error).__name__}: {message}"
    assert len(message) > 20 and " " in message


def load_or_fail_clearly(folder, model_class=ViTForImageClassification):
    """The model, whole; None after a clear error."""
    try:
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
    except Exception as error:
        assert_clear(error)
        return None
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return model


def changed_numbers(model, expected) -> int:
    found = model.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    return sum(int((found[name] != tensor).sum()) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_cut_are_errors(originals, tmp_path, kind):
    shutil.copytree(originals[kind], tmp_path, dirs_exist_ok=True)
    path = weight_file(tmp_path)
    content = path.read_bytes()
    for kept in (0, 1, 7, 100, len(content) // 2, len(content) - 9, len(content) - 1):
        path.write_bytes(content[:kept])
        assert load_or_fail_clearly(tmp_path) is None, kept
    path.write_bytes(content)
    assert load_or_fail_clearly(tmp_path) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_are_an_error_or_change_no_more_than_their_numbers(originals, tmp_path, kind):
    shutil.copytree(originals[kind], tmp_path, dirs_exist_ok=True)
    path, generator = weight_file(tmp_path), random.Random(0)
    expected = ViTForImageClassification.from_pretrained(originals[kind]).state_dict()
    content = path.read_bytes()
    most = 0 if "zip" in kind else 1  # archives hold sums of their bytes
    for i in range(16):
        # Half of the flips go where the names and shapes are.
        end = min(len(content), 2000) if i % 2 else len(content)
        place, bit = generator.randrange(end), generator.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        model = load_or_fail_clearly(tmp_path)
        if model is not None and kind != "legacy":
            assert changed_numbers(model, expected) <= most, (place, bit)


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_missing_and_extra_and_wrong_tensors_are_errors(originals, tmp_path, kind):
    shutil.copytree(originals[kind], tmp_path, dirs_exist_ok=True)
    path, generator = weight_file(tmp_path), random.Random(0)
    original = read_tensors(path)

    def write(weights):
        save_file(weights, path, metadata={"format": "pt"}) if kind == "safetensors" else torch.save(weights, path)

    changes = {
        "missing": lambda name, tensor: {},
        "renamed": lambda name, tensor: {f"{name}_": tensor},
        "extra": lambda name, tensor: {name: tensor, f"{name}.more": tensor.clone()},
        "longer": lambda name, tensor: {name: torch.cat([tensor, tensor])},
        "flat": lambda name, tensor: {name: tensor.flatten()[:-1]},
        "scalar": lambda name, tensor: {name: torch.zeros(())},
        "whole numbers": lambda name, tensor: {name: tensor.long()},
        "complex": lambda name, tensor: {name: tensor.to(torch.complex64)},
    }
    for change in changes.values():
        name = generator.choice(sorted(original))
        rest = {key: tensor for key, tensor in original.items() if key != name}
        write({**rest, **change(name, original[name])})
        assert load_or_fail_clearly(tmp_path) is None, (name, change)
    write({name: tensor.half() for name, tensor in original.items()})
    assert load_or_fail_clearly(tmp_path).classifier.weight.shape == (2, 8)


BAD_VALUES = (None, "x", -1, 0, 10**12, 1.5, [], {}, True)


@pytest.mark.parametrize("kind", ["safetensors", "ours"])
@pytest.mark.parametrize(
    "field", [*SMALL, "hidden_act", "layer_norm_eps", "id2label", "qkv_bias", "model_type", "dtype"]
)
def test_wrong_values_in_a_configuration_are_errors_or_do_not_matter(originals, tmp_path, kind, field):
    shutil.copytree(originals[kind], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = ViTForImageClassification.from_pretrained(originals[kind]).state_dict()
    for value in random.Random(field).sample(BAD_VALUES, 3):
        (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
        model = load_or_fail_clearly(tmp_path)
        if field == "num_labels" and value == 0:  # a model without a head, in both libraries
            assert model is None or not list(model.classifier.parameters())
        else:
            assert model is None or changed_numbers(model, expected) == 0, value


def test_damaged_npz_is_an_error_or_changes_no_more_than_its_numbers(tmp_path):
    path, generator = tmp_path / "x.npz", random.Random(0)
    arrays = {"params/a": np.ones((4, 4), np.float32), "params/b": np.arange(8, dtype=np.float32)}
    np.savez(path, **arrays)
    content = path.read_bytes()
    for _ in range(60):
        place, bit = generator.randrange(len(content)), generator.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            found = read_tensors(path)
        except Exception as error:
            assert_clear(error)
            continue
        for name, tensor in found.items():
            if name in arrays:
                assert int((tensor.numpy() != arrays[name]).sum()) <= 1
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises((ValueError, OSError)) as raised:
            read_tensors(path)
        assert_clear(raised.value)


def test_base_model_of_a_damaged_file_is_no_half_model_either(originals, tmp_path):
    shutil.copytree(originals["ours"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    for name in sorted(name for name in weights if name.startswith("vit.encoder"))[:4]:
        save_file({key: tensor for key, tensor in weights.items() if key != name}, path, metadata={"format": "pt"})
        assert load_or_fail_clearly(tmp_path, ViTModel) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_whole_and_complex_numbers_in_our_own_files_are_errors(originals, tmp_path, dtype):
    shutil.copytree(originals["ours"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    weights, name = load_file(path), "vit.encoder.layers.0.attention.proj.weight"
    save_file({**weights, name: weights[name].to(dtype)}, path, metadata={"format": "pt"})
    for model_class in (ViTForImageClassification, ViTModel):
        with pytest.raises(ValueError, match="1 weights .* are not floating-point numbers: .*attention.proj.weight"):
            model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("lost", [["weight"], ["bias"], ["weight", "bias"]])
def test_classifier_without_its_head_or_a_part_of_it_is_an_error(originals, tmp_path, lost):
    shutil.copytree(originals["safetensors"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    weights = {
        name: tensor for name, tensor in load_file(path).items() if name not in {f"classifier.{x}" for x in lost}
    }
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing.*classifier.{min(lost)}"):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_weight_under_two_names_is_an_error(originals, tmp_path):
    shutil.copytree(originals["safetensors"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.cls_token"] = weights["vit.embeddings.cls_token"] + 1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="'embeddings.cls_token' and 'vit.embeddings.cls_token' are the same weight"):
        ViTForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "ours"])
@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -1e-6])
def test_epsilon_that_makes_no_numbers_is_an_error(originals, tmp_path, kind, eps):
    shutil.copytree(originals[kind], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer_norm_eps": eps}))
    with pytest.raises(ValueError, match="`layer_norm_eps` must be a finite number"):
        ViTForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "ours"])
def test_weight_in_two_shards_is_an_error(originals, tmp_path, kind):
    weights = load_file(originals[kind] / "model.safetensors")
    shutil.copy(originals[kind] / "config.json", tmp_path)
    name = min(weights)
    save_file(weights, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file({name: weights[name] + 1}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    index = {"weight_map": {**dict.fromkeys(weights, "a.safetensors"), name: "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"b.safetensors holds '{name}', as another shard does"):
        ViTForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [5, "ViTForImageClassification", {}, [None], True])
def test_architectures_of_another_kind_do_not_matter_or_are_an_error(originals, tmp_path, value):
    shutil.copytree(originals["safetensors"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": value}))
    load_or_fail_clearly(tmp_path)
