"""Weight files: every layout is read, damaged ones are named, and no code in them ever runs."""

import json
import os

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import ViTConfig

from hf_vitfm import ViTModel
from hf_vitfm.conversion.files import WEIGHT_FILES
from hf_vitfm.conversion.source import Source


def read_state_dict(folder):
    return Source(folder).weights(WEIGHT_FILES).state_dict()


@pytest.fixture
def tensors():
    return {f"layer.{i}": torch.randn(3, 4) for i in range(4)}


def write_shards(folder, tensors, suffix):
    """One tensor per shard, and the index."""
    stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    names = {key: f"{stem}-{i:05d}-of-{len(tensors):05d}.{suffix}" for i, key in enumerate(tensors, 1)}
    for key, name in names.items():
        save({key: tensors[key]}, folder / name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return sorted(names.values())


def assert_same(found, expected):
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_single_file_is_read(tmp_path, tensors, suffix):
    if suffix == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert_same(read_state_dict(tmp_path), tensors)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read(tmp_path, tensors, suffix):
    write_shards(tmp_path, tensors, suffix)
    assert_same(read_state_dict(tmp_path), tensors)


def test_shards_of_safetensors_are_preferred_to_one_pickle_as_transformers_does(tmp_path):
    config = ViTConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    theirs = transformers.ViTModel(config)
    theirs.save_pretrained(tmp_path, max_shard_size="1KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    torch.save(
        {name: torch.zeros_like(tensor) for name, tensor in theirs.state_dict().items()},
        tmp_path / "pytorch_model.bin",
    )
    expected = transformers.ViTModel.from_pretrained(tmp_path).layernorm.weight
    assert torch.equal(ViTModel.from_pretrained(tmp_path).layernorm.weight, expected)
    assert expected.any()


def test_safetensors_are_preferred(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_same(read_state_dict(tmp_path), tensors)


@pytest.mark.parametrize("name", ["", "\x1b[2Jhead", "a\nb", "head" * 1000, "\u202eflipped"])
def test_names_that_would_garble_a_message_are_refused_in_few_words(tmp_path, tensors, name):
    save_file({**tensors, name: torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="names a weight .*, which no model does") as raised:
        read_state_dict(tmp_path)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "jax.npz"])
def test_pointer_that_a_clone_left_says_how_to_get_the_weights(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346000000\n")
    with pytest.raises(ValueError, match=f"{name} is a pointer of Git LFS .*`git lfs pull`"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_missing_shard_is_named(tmp_path, tensors, suffix):
    names = write_shards(tmp_path, tensors, suffix)
    (tmp_path / names[2]).unlink()
    with pytest.raises(FileNotFoundError, match=f"The shard '{names[2]}'.* is missing"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 3}'])
def test_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="model.safetensors.index.json is damaged"):
        read_state_dict(tmp_path)


def write(folder, name, tensors):
    (save_file if name.endswith("safetensors") else torch.save)(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_file_that_is_cut_off_is_named(tmp_path, tensors, name, kept):
    path = write(tmp_path, name, tensors)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", [b"junkjunk", b"\x80\x02junk", b"{}", b"<html>not found</html>", bytes(100)])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_file_of_another_kind_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_state_dict(tmp_path)


def test_folder_without_weights_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin.index.json, and .* Check the path"):
        read_state_dict(tmp_path)


class MakesAFolder:
    """What pickle runs code with: a call to make when the object is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickled_file_is_refused_and_not_run(tmp_path, legacy):
    path, proof = tmp_path / "pytorch_model.bin", tmp_path / "proof"
    torch.save({"weight": MakesAFolder(proof)}, path, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    for read in (read_state_dict, ViTModel.from_pretrained):
        with pytest.raises(ValueError, match="never loaded because they can run code.*safetensors"):
            read(tmp_path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # so the file was what it claims to be


def test_code_in_one_shard_is_refused_and_not_run(tmp_path, tensors):
    names, proof = write_shards(tmp_path, tensors, "bin"), tmp_path / "proof"
    torch.save({"weight": MakesAFolder(proof)}, tmp_path / names[1])
    with pytest.raises(ValueError, match=f"{names[1]} is damaged, or holds pickled objects"):
        read_state_dict(tmp_path)
    assert not proof.exists()
