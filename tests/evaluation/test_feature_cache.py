"""A cache gives what was computed for the same request, and nothing else: no stale, half-written or damaged file."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor

from hf_vitfm import ViTForImageClassification, build_transform, extract_features
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.evaluation import feature_cache
from hf_vitfm.evaluation.feature_cache import CacheFile, read_together
from tests.data.images import encode, noise
from tests.tiny import random_images, randomize, tiny_clip, tiny_config


def rows(count: int = 5) -> list[dict]:
    return [{"image": encode(noise(40, 30, seed=i)), "label": i} for i in range(count)]


def transform(**fields):
    return build_transform(ViTImageProcessor(**{"size": {"height": 32, "width": 32}, **fields}))


class Counting(ViTForImageClassification):
    """Counts the images that go through it."""

    seen = 0

    def __init__(self, config):
        super().__init__(config)
        self.vit.register_forward_hook(self.count)

    def count(self, module, inputs, outputs):
        self.seen += len(outputs.last_hidden_state)


def counting() -> Counting:
    return randomize(Counting(tiny_config()))


def test_a_second_run_reads_what_the_first_one_computed(tmp_path):
    model = counting()
    expected = extract_features(model, rows(), transform(), batch_size=2)
    for seen in (10, 10):
        features, labels = extract_features(model, rows(), transform(), batch_size=3, cache_dir=tmp_path / "new")
        torch.testing.assert_close(features, expected[0])
        assert labels.tolist() == list(range(5)) and labels.dtype == torch.int64 and model.seen == seen
    (path,) = (tmp_path / "new").iterdir()
    mode, umask = path.stat().st_mode & 0o777, os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask


REQUESTS = {
    "the same": {},
    "a mean": {"transform": {"image_mean": [0.4, 0.5, 0.5]}},
    "a deviation": {"transform": {"image_std": [0.4, 0.5, 0.5]}},
    "an interpolation": {"transform": {"resample": 3}},
    "fewer rows": {"rows": rows(4)},
    "another order": {"rows": rows()[::-1]},
    "another label": {"rows": [{**row, "label": 7} for row in rows()]},
    "another pixel": {"rows": [*rows(4), {"image": encode(noise(40, 30, seed=9)), "label": 4}]},
    "mean": {"pooling": "mean"},
    "pooler": {"pooling": "pooler"},
    "a layer": {"layer": -1},
    "another layer": {"layer": 1},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "skip": {"on_bad_image": "skip"},
}


def test_every_other_request_is_computed(tmp_path):
    model, seen = counting(), 0
    for name, request in REQUESTS.items():
        request = dict(request)
        dataset, settings = request.pop("rows", rows()), request.pop("transform", {})
        expected = extract_features(model, dataset, transform(**settings), **request)
        for _ in range(2):
            found = extract_features(model, dataset, transform(**settings), cache_dir=tmp_path, **request)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]), name
        seen += 2 * len(dataset)  # without a cache, and once with it
        assert model.seen == seen, name
    assert len(list(tmp_path.iterdir())) == len(REQUESTS)


def test_a_changed_weight_setting_or_precision_is_computed(tmp_path):
    model, found = counting(), []

    def extract():
        found.append(extract_features(model, rows(), transform(), cache_dir=tmp_path)[0])

    extract()
    with torch.no_grad():
        model.vit.encoder.layers[2].mlp.fc2.bias[0] += 0.1
    extract()
    for layer in model.vit.encoder.layers:
        layer.norm1.eps = layer.norm2.eps = 0.1
    model.config.layer_norm_eps = 0.1
    extract()
    with torch.autocast("cpu", torch.bfloat16):
        extract()
    model.bfloat16()
    extract()
    assert model.seen == 25
    for i, features in enumerate(found):
        assert all((features - other).norm() > 1e-4 for other in found[:i])
    model.classifier.weight.data.zero_()  # the head plays no part
    extract()
    assert model.seen == 25 and torch.equal(found[-1], found[-2])


def test_every_part_of_torch_may_multiply_float32_in_its_own_way(tmp_path):
    model, seen = counting(), 0
    parts = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
    settings = {part: part.fp32_precision for part in parts}
    try:
        for part in (None, *parts):  # torch's one number for all of them raises from the first on
            if part is not None:
                part.fp32_precision = "tf32"
            for _ in range(2):
                extract_features(model, rows(), transform(), cache_dir=tmp_path)
            seen += 5
            assert model.seen == seen
    finally:
        for part, setting in settings.items():
            part.fp32_precision = setting


def test_a_setting_that_is_the_default_reads_what_is_there(tmp_path):
    model, matmul = counting(), torch.backends.mkldnn.matmul
    setting = matmul.fp32_precision
    try:
        for named in ("none", "ieee"):
            matmul.fp32_precision = named
            extract_features(model, rows(), transform(), cache_dir=tmp_path)
    finally:
        matmul.fp32_precision = setting
    assert model.seen == 5


def test_another_version_of_a_library_is_computed(tmp_path, monkeypatch):
    model = counting()
    extract_features(model, rows(), transform(), cache_dir=tmp_path)
    monkeypatch.setitem(feature_cache._VERSIONS, "transformers", "0.0")
    extract_features(model, rows(), transform(), cache_dir=tmp_path)
    monkeypatch.setattr(feature_cache, "FORMAT", 0)
    extract_features(model, rows(), transform(), cache_dir=tmp_path)
    assert model.seen == 15


def test_features_of_images_do_not_depend_on_the_texts(tmp_path):
    model = tiny_clip()
    pixels = [{"pixel_values": image} for image in random_images(3)]
    first = extract_features(model, pixels, pooling="projected", cache_dir=tmp_path)[0]
    model.text_projection.weight.data.zero_()
    assert torch.equal(extract_features(model, pixels, pooling="projected", cache_dir=tmp_path)[0], first)
    assert len(list(tmp_path.iterdir())) == 1
    extract_features(model, pixels, pooling="pre_projection", cache_dir=tmp_path)
    model.visual_projection.weight.data.zero_()
    assert not extract_features(model, pixels, pooling="projected", cache_dir=tmp_path)[0].any()


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        content[-9] ^= 1
        path.write_bytes(content)
    elif how == "no notes":
        save_file(load_file(path), path)
    elif how == "another's":
        other = path.parent / "other"
        extract_features(counting(), rows(5)[::-1], transform(), cache_dir=other)
        os.replace(next(other.iterdir()), path)
        other.rmdir()


@pytest.mark.parametrize("how", ["cut off", "empty", "one bit", "no notes", "another's"])
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, how, caplog):
    model = counting()
    expected = extract_features(model, rows(), transform(), cache_dir=tmp_path)[0]
    (path,) = tmp_path.iterdir()
    damage(path, how)
    caplog.clear()
    assert torch.equal(extract_features(model, rows(), transform(), cache_dir=tmp_path)[0], expected)
    assert path.name in caplog.text and "computed again" in caplog.text and model.seen == 10
    caplog.clear()
    extract_features(model, rows(), transform(), cache_dir=tmp_path)
    assert model.seen == 10 and not caplog.text


KILLED = """
import os, sys, torch
from hf_vitfm.evaluation.feature_cache import CacheFile
os.fsync = os.replace = lambda *_: os._exit(9)
CacheFile(sys.argv[1], "features", {"a": 1}).write({"x": torch.arange(10)})
"""


def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1  # the part that was written
    file = CacheFile(tmp_path, "features", {"a": 1})
    assert file.read() is None
    file.write({"x": torch.arange(10)})
    assert torch.equal(file.read()["x"], torch.arange(10))


def test_writers_of_one_file_do_not_disturb_its_readers(tmp_path, caplog):
    file, content = CacheFile(tmp_path, "features", {}), {"x": torch.arange(20_000)}
    file.write(content)
    threads = [threading.Thread(target=lambda: [file.write(content) for _ in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert torch.equal(file.read()["x"], content["x"])
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 1 and not caplog.text


def test_a_folder_that_takes_no_file_costs_the_cache_only(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache.os, "fsync", full)
    features, _ = extract_features(counting(), rows(), transform(), cache_dir=tmp_path)
    assert len(features) == 5 and "No space left" in caplog.text and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        extract_features(counting(), rows(), transform(), cache_dir=tmp_path / "file")


def test_images_that_were_skipped_are_told_again_and_an_error_stays_one(tmp_path, caplog):
    dataset, model = [*rows(3), {"image": b"no image", "label": 1}], counting()
    for _ in range(2):
        caplog.clear()
        _, labels = extract_features(model, dataset, transform(), on_bad_image="skip", cache_dir=tmp_path)
        assert labels.tolist() == [0, 1, 2, -100] and "1 of 4 images were skipped: row 3" in caplog.text
    assert model.seen == 4
    for _ in range(2):
        with pytest.raises(BadImageError, match="row 3"):
            extract_features(model, dataset, transform(), cache_dir=tmp_path)


def test_a_transform_that_cannot_be_told_from_others_is_refused_before_anything_is_computed(tmp_path):
    model = counting()
    with pytest.raises(ValueError, match="`transform` has no fingerprint"):
        extract_features(model, rows(), lambda image: image, cache_dir=tmp_path)
    assert not model.seen and not list(tmp_path.iterdir())


# Several processes


def shared(folder: str, count: int = 5) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Features, labels, and how many images went through the model; only the first process sees the folder."""
    model = counting()
    group = dist.group.WORLD if dist.is_initialized() else None
    own = folder if group is None else f"{folder}/{dist.get_rank()}"
    pixels = [{"pixel_values": image, "label": i} for i, image in enumerate(random_images(count))]
    features, labels = extract_features(model, pixels, batch_size=2, on_bad_image="skip", cache_dir=own, group=group)
    return features, labels, model.seen


def test_processes_read_what_the_first_one_finds(tmp_path, two_processes):
    expected = shared(str(tmp_path / "alone"))
    for seen in ([3, 3], [0, 0]):
        answers = two_processes.run(shared, str(tmp_path))
        for features, labels, _ in answers:
            assert torch.equal(features, expected[0]) and torch.equal(labels, expected[1])
        assert [answer[2] for answer in answers] == seen
    assert len(list((tmp_path / "0").iterdir())) == 1 and not list((tmp_path / "1").iterdir())


def different(folder: str) -> str:
    file = CacheFile(folder, "features", {"model": "a", "rows": str(dist.get_rank())})
    with pytest.raises(ValueError) as error:
        read_together(file, torch.device("cpu"), dist.group.WORLD)
    return str(error.value)


def test_processes_that_ask_for_different_things_are_told_so(tmp_path, two_processes):
    assert all("different features: rows differ" in text for text in two_processes.run(different, str(tmp_path)))


def test_a_cache_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(NotADirectoryError, match="`cache_dir` must be a folder; .*file"):
            CacheFile(tmp_path / folder, "features", {})
