"""Folders of links, as the cache of Hub repositories has them, and links that lead nowhere."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_vitfm import ViTForImageClassification, load_image_processor
from tests.tiny import randomize, tiny_config


def as_snapshot(folder, cache):
    """Move a folder's files to blobs without suffixes and link them, as the Hub's client does."""
    snapshot = cache / "models--some--vit" / "snapshots" / ("0" * 40)
    blobs = cache / "models--some--vit" / "blobs"
    for path in (snapshot, blobs):
        path.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


@pytest.fixture(params=["ours", "transformers", "bin", "shards"])
def snapshot(request, tmp_path, folder, theirs):
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3).save_pretrained(folder)
    if request.param == "ours":
        folder = tmp_path / "ours"
        transformers.ViTImageProcessor(image_mean=[0.1] * 3).save_pretrained(folder)
        randomize(ViTForImageClassification(tiny_config())).save_pretrained(folder)
    elif request.param == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif request.param == "shards":
        (folder / "model.safetensors").unlink()
        theirs.save_pretrained(folder, max_shard_size="20KB")
    expected = ViTForImageClassification.from_pretrained(folder).state_dict()
    return as_snapshot(folder, tmp_path / "cache"), expected


def test_files_that_are_links_are_read_by_folder_and_by_file(snapshot, tmp_path):
    snapshot, expected = snapshot
    (tmp_path / "link").symlink_to(snapshot, target_is_directory=True)
    files = [path for path in snapshot.iterdir() if path.suffix in (".safetensors", ".bin")]
    for place in (snapshot, tmp_path / "link", *(files if len(files) == 1 else [])):
        found = ViTForImageClassification.from_pretrained(place).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert list(load_image_processor(tmp_path / "link").image_mean) == [0.1] * 3


@pytest.mark.parametrize("target", ["nothing", "itself"])
def test_link_in_a_folder_that_leads_nowhere_is_named(snapshot, target):
    snapshot, _ = snapshot
    paths = [path for path in snapshot.iterdir() if path.name.startswith(("model", "pytorch_model", "config"))]
    for path in paths:
        before = path.readlink()
        path.unlink()
        path.symlink_to("no-such-blob" if target == "nothing" else path.name)
        with pytest.raises(FileNotFoundError, match=f"{path.name}' is a link to '.*', which leads to no file"):
            ViTForImageClassification.from_pretrained(snapshot)
        path.unlink()
        path.symlink_to(before)
    assert isinstance(ViTForImageClassification.from_pretrained(snapshot), ViTForImageClassification)


@pytest.mark.parametrize("target", ["nothing", "loop"])
def test_source_that_is_a_link_to_nothing_is_no_hub_id(tmp_path, monkeypatch, target):
    (tmp_path / "loop").symlink_to(target)
    monkeypatch.chdir(tmp_path)
    for name in ("loop", tmp_path / "loop"):
        with pytest.raises(FileNotFoundError, match=f"loop' is a link to '{target}', which leads to no file"):
            ViTForImageClassification.from_pretrained(name)
