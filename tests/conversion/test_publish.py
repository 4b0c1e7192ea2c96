"""Exports appear whole or not at all: interrupts, files in the way, two at once, shards."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_vitfm import ViTForImageClassification, ViTModel, export_checkpoint
from hf_vitfm.conversion import export, publish
from tests.tiny import randomize, tiny_config


def content(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def same(folder, model) -> bool:
    found = ViTForImageClassification.from_pretrained(folder).state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def fail_at(monkeypatch, module, name, number, error):
    """Let the n-th call of a function fail; -> what says whether it did."""
    function, calls = getattr(module, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    return lambda: len(calls) >= number


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk", "ctrl-C"])
@pytest.mark.parametrize(
    ("module", "name", "numbers"), [(export, "_save", (1, 2)), (os, "replace", (1, 2, 3, 4))], ids=["write", "move"]
)
def test_interrupted_export_leaves_the_old_folder_or_none(tmp_path, monkeypatch, error, module, name, numbers):
    old, new = (randomize(ViTForImageClassification(tiny_config(num_labels=n))) for n in (5, 7))
    export_checkpoint(old, tmp_path / "old")
    before = content(tmp_path / "old")
    for number in numbers:
        with monkeypatch.context() as patched, pytest.raises(type(error)):
            fail_at(patched, module, name, number, error)
            export_checkpoint(new, tmp_path / "old")
        assert content(tmp_path / "old") == before and os.listdir(tmp_path) == ["old"]
    with monkeypatch.context() as patched, pytest.raises(type(error)):
        fail_at(patched, module, name, 2, error)
        export_checkpoint(new, tmp_path / "deep" / "new")
    assert os.listdir(tmp_path) == ["old"]
    export_checkpoint(new, tmp_path / "old")
    assert same(tmp_path / "old", new)


def test_two_exports_at_once_end_with_one_of_them(tmp_path):
    names = {f"{stem}.safetensors" for stem in "abcdefgh"} | {"config.json"}
    for _ in range(10):  # many small files, for them to get between each other's
        start = threading.Barrier(2)

        def write(number, start=start):
            with publish.staged(tmp_path) as folder:
                for name in names:
                    (folder / name).write_text(str(number))
                start.wait(60)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(os.listdir(tmp_path)) == names
        assert len(set(content(tmp_path).values())) == 1


def test_second_waits_while_the_first_moves_its_files(tmp_path, monkeypatch):
    moving, go_on = threading.Event(), threading.Event()
    move = os.replace

    def slow(source, target):
        move(source, target)
        if not moving.is_set():
            moving.set()
            go_on.wait(60)

    def write(number):
        with publish.staged(tmp_path) as folder:
            for name in ("a.bin", "config.json"):
                (folder / name).write_text(number)

    monkeypatch.setattr(os, "replace", slow)
    first = threading.Thread(target=write, args=("first",))
    first.start()
    assert moving.wait(60)
    second = threading.Thread(target=write, args=("second",))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join(60), second.join(60)
    assert content(tmp_path) == {"a.bin": b"second", "config.json": b"second"}


@pytest.mark.parametrize("format", ["transformers", "mae", "jax"])
def test_disk_without_room_is_an_oserror_and_leaves_nothing(tmp_path, format):
    resource = pytest.importorskip("resource")
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    activation = "gelu_pytorch_tanh" if format == "jax" else "gelu"
    model = ViTForImageClassification(tiny_config(hidden_act=activation, layer_norm_eps=1e-6))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="model|checkpoint|too large"):
            export_checkpoint(model, tmp_path, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
def test_file_in_the_way_is_named_and_stays(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError, match="`directory` must be a folder to write into; '.*' is a file"):
        export_checkpoint(ViTForImageClassification(tiny_config()), tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine" and set(os.listdir(tmp_path)) == {"file", "dangling"}


def test_folder_with_the_name_of_a_file_is_not_taken_away(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "model.safetensors" / "notes.txt").write_text("mine")
    with pytest.raises(OSError):
        export_checkpoint(ViTForImageClassification(tiny_config()), tmp_path)
    assert content(tmp_path) == {"model.safetensors/notes.txt": b"mine"}


def test_shards_are_written_for_transformers_and_read(tmp_path):
    model = randomize(ViTForImageClassification(tiny_config()))
    export_checkpoint(model, tmp_path)
    single = load_file(tmp_path / "model.safetensors")
    export_checkpoint(model, tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    assert all(path.stat().st_size < 30_000 for path in shards)  # the largest weight has 24 KB
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map) == set(single)
    theirs, info = transformers.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and torch.equal(theirs.classifier.weight, model.classifier.weight)
    assert same(tmp_path, model)
    export_checkpoint(model, tmp_path)  # one file again: no shard stays
    assert not list(tmp_path.glob("model-*")) and not (tmp_path / "model.safetensors.index.json").exists()
    assert same(tmp_path, model)


def test_shards_of_our_own_format_are_read(tmp_path):
    model = randomize(ViTForImageClassification(tiny_config()))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert same(tmp_path, model)
    assert torch.equal(ViTModel.from_pretrained(tmp_path).layernorm.weight, model.vit.layernorm.weight)
    assert ViTForImageClassification.from_pretrained(tmp_path, image_size=48).config.image_size == 48


@pytest.mark.parametrize("format", ["timm", "mae"])
def test_shards_are_refused_where_no_loader_reads_them(tmp_path, format):
    with pytest.raises(ValueError, match=f"`max_shard_size` is for transformers and dinov2; got '1MB' for '{format}'"):
        model = ViTForImageClassification(tiny_config())
        export_checkpoint(model, tmp_path / "x", format=format, max_shard_size="1MB")
    assert not (tmp_path / "x").exists()


def test_without_locks_exports_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "fcntl", None)
    with publish.staged(tmp_path / "x") as folder:
        (folder / "a.txt").write_text("a")
    assert content(tmp_path) == {"x/a.txt": b"a"}
