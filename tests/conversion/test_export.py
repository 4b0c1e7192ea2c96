"""Exported folders are whole or absent."""

import json

import pytest
import torch
import transformers

from hf_vitfm import ViTForImageClassification, export_checkpoint
from hf_vitfm.conversion import export
from tests.tiny import tiny_clip, tiny_config


def test_failure_on_the_way_leaves_the_old_files_and_no_new_ones(tmp_path, monkeypatch):
    model = ViTForImageClassification(tiny_config())
    export_checkpoint(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(ViTForImageClassification(tiny_config(num_labels=7)), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    export_checkpoint(ViTForImageClassification(tiny_config()), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]


def test_image_processor_is_written_in_transformers_layout(tmp_path):
    processor = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3])
    export_checkpoint(ViTForImageClassification(tiny_config()), tmp_path, processing_class=processor)
    assert list(transformers.AutoImageProcessor.from_pretrained(tmp_path).image_mean) == [0.1, 0.2, 0.3]


def test_processor_of_images_and_texts_is_written_whole(tmp_path):
    tokens = {token: i for i, token in enumerate(["a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"])}
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(), transformers.CLIPTokenizer(tokens, []))
    export_checkpoint(tiny_clip(), tmp_path, processing_class=processor)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert loaded.tokenizer("a b").input_ids == [2, 0, 1, 3]
    assert loaded.image_processor.size == processor.image_processor.size


@pytest.mark.parametrize("format", ["transformers", "timm", "mae", "dinov2"])
def test_model_without_values_or_with_adapters_is_refused_and_nothing_is_written(tmp_path, format):
    empty = ViTForImageClassification.on_meta_device(tiny_config())
    with pytest.raises(ValueError, match="is on the meta device and has no values"):
        export_checkpoint(empty, tmp_path, format=format)
    adapted = ViTForImageClassification(tiny_config())
    adapted.vit.encoder.layers[0].attention.qkv.base_layer = torch.nn.Linear(2, 2)  # what PEFT puts there
    with pytest.raises(ValueError, match="has adapters .*merge_and_unload"):
        export_checkpoint(adapted, tmp_path, format=format)
    assert not list(tmp_path.iterdir())


def test_weights_that_share_their_memory_are_written_twice(tmp_path):
    model = ViTForImageClassification(tiny_config())
    layer = model.vit.encoder.layers[0]
    layer.norm2.weight = layer.norm1.weight
    found = ViTForImageClassification.from_pretrained(export_checkpoint(model, tmp_path)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("format", ["transformers", "mae"])
def test_wrapped_models_are_refused_by_what_wraps_them(tmp_path, format):
    model = ViTForImageClassification(tiny_config())
    with pytest.raises(ValueError, match="is wrapped .*unwrap_model"):
        export_checkpoint(torch.compile(model), tmp_path / "x", format)
    with pytest.raises(ValueError, match="DataParallel"):
        export_checkpoint(torch.nn.DataParallel(model), tmp_path / "x", format)
    assert not (tmp_path / "x").exists()


def test_our_own_format_is_said_to_be_written_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="got 'hf_vitfm'.*`model.save_pretrained"):
        export_checkpoint(ViTForImageClassification(tiny_config()), tmp_path / "x", "hf_vitfm")


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "0GB", "-1GB", "5", "big", ""])
def test_sizes_of_shards_that_are_none_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match="`max_shard_size` must be .* such as '5GB'"):
        export_checkpoint(ViTForImageClassification(tiny_config()), tmp_path, max_shard_size=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [20000, "20KB", "0.02 MB", "20kb"])
def test_sizes_of_shards_are_bytes_or_texts(tmp_path, size):
    export_checkpoint(ViTForImageClassification(tiny_config()), tmp_path, max_shard_size=size)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    transformers.ViTForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, monkeypatch, value):
    said = []
    monkeypatch.setattr(export.logger, "warning", lambda text, *values: said.append(text % values))
    model = ViTForImageClassification(tiny_config())
    export_checkpoint(model, tmp_path)
    assert not said
    model.vit.layernorm.bias.data[3] = value
    export_checkpoint(model, tmp_path)
    assert len(said) == 1 and said[0].startswith(
        "1 weights hold NaN or infinite values, the first 'vit.layernorm.bias'"
    )
