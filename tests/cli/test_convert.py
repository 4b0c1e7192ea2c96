"""`hf-vitfm convert`: models, preprocessing and their verification, there and back."""

import logging

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm import ViTForImageClassification
from hf_vitfm.cli.main import main
from hf_vitfm.conversion import verify
from tests.tiny import FIELDS, randomize, tiny_clip, tiny_config, tiny_mae


@pytest.fixture
def theirs(tmp_path):
    model = randomize(transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS)))
    model.save_pretrained(tmp_path / "theirs")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def convert(*argv):
    return main(["convert", *map(str, argv)])


def test_there_and_back_gives_the_same_weights_and_preprocessing(theirs, tmp_path, capsys):
    assert convert(theirs, tmp_path / "ours", "--to", "hf_vitfm") == 0
    assert convert(tmp_path / "ours", tmp_path / "back", "--to", "transformers", "--verify") == 0
    assert "largest difference to transformers: " in capsys.readouterr().out
    assert isinstance(ViTForImageClassification.from_pretrained(tmp_path / "ours"), ViTForImageClassification)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", theirs))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "back").size["height"] == 32
    assert not list((tmp_path / "back").glob(".export-*"))


@pytest.mark.parametrize("build", [tiny_mae, tiny_clip])
def test_mae_and_clip_are_verified_on_masks_and_texts(tmp_path, capsys, build):
    build().save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--to", "transformers", "--verify") == 0
    assert "largest difference to transformers: " in capsys.readouterr().out


def test_a_difference_is_found(tmp_path, monkeypatch, capsys):
    randomize(ViTForImageClassification(tiny_config())).save_pretrained(tmp_path / "ours")
    compare = verify.verify

    def damage_first(model, directory, format):
        weights = load_file(directory + "/model.safetensors")
        weights["vit.layernorm.bias"] += 0.1
        save_file(weights, directory + "/model.safetensors", metadata={"format": "pt"})
        return compare(model, directory, format)

    monkeypatch.setattr(verify, "verify", damage_first)
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--to", "transformers", "--verify") == 1
    assert "largest difference" in capsys.readouterr().out


def test_what_the_target_cannot_hold_is_refused_and_nothing_written(tmp_path, capsys):
    ViTForImageClassification(tiny_config(pooling="mean")).save_pretrained(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--to", "transformers") == 2
    assert "cannot hold `pooling='mean'`" in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()


def test_wrong_target_is_refused_before_weights_are_read(theirs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ViTForImageClassification, "from_pretrained", None)
    assert convert("no/such/source", tmp_path / "out", "--to", "jaxx") == 2
    assert "`--to` must be one of dinov2, jax, " in capsys.readouterr().err
    assert convert(theirs, tmp_path / "out", "--to", "openai") == 2
    assert "must be one of dinov2, jax, mae, timm, transformers and the model" in capsys.readouterr().err
    assert convert("no/such/source", theirs / "config.json", "--to", "timm") == 2
    assert "`directory` must be a folder to write into" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["hf_vitfm", "timm"])
def test_files_that_were_written_are_listed_with_their_sizes(theirs, tmp_path, capsys, target):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for _ in range(2):  # new, and over what is there
        assert convert(theirs, out, "--to", target, "--set", "layer_norm_eps=1e-6") == 0
        listed = {line.strip() for line in capsys.readouterr().out.splitlines() if line.endswith(" bytes)")}
        written = [path for path in out.iterdir() if path.name != "notes.txt"]
        assert listed == {f"{path} ({path.stat().st_size:,} bytes)" for path in written} and len(written) >= 2


def test_choice_between_formats_is_said_once(tmp_path, capsys, caplog):
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=192, depth=1, num_heads=3, num_classes=4
    )
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        assert convert(tmp_path / "x.pth", tmp_path / "out", "--to", "transformers", "--verify") == 0
    assert caplog.text.count("is read as deit; `source_format=` would take timm") == 1


def test_fields_are_changed_for_a_target_that_cannot_hold_them(theirs, tmp_path, capsys):
    assert convert(theirs, tmp_path / "mae", "--to", "mae") == 2
    assert "`layer_norm_eps=1e-12` (only 1e-06)" in capsys.readouterr().err
    assert convert(theirs, tmp_path / "mae", "--to", "mae", "--set", "layer_norm_eps=1e-6", "--verify") == 0
    assert "tokenizer" not in capsys.readouterr().err
    assert convert(theirs, tmp_path / "mae", "--to", "mae", "--set", "layer_norm_eps") == 2
    assert "`--set` takes FIELD=VALUE" in capsys.readouterr().err
