"""`hf-vitfm info`: what it says of checkpoints, and that it reads no weights."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm.cli.main import main
from hf_vitfm.conversion import archives
from tests.tiny import FIELDS, randomize, tiny_clip, tiny_mae


@pytest.fixture
def folder(tmp_path):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS))
    randomize(model).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    return tmp_path


def info(capsys, *argv):
    code = main(["info", *map(str, argv)])
    output = capsys.readouterr().out
    return code, {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in output.splitlines()}


def test_all_is_said_without_reading_weights(folder, capsys, monkeypatch):
    monkeypatch.setattr(archives, "load_file", None)
    monkeypatch.setattr(archives, "_READERS", {})
    code, rows = info(capsys, folder)
    count = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert code == 0
    assert rows == {
        "format": "transformers (config.json, model.safetensors)",
        "model": "ViTForImageClassification",
        "layers": "3, width 32, 4 heads, MLP 48",
        "image size": "32 pixels, patches of 8",
        "classes": "5",
        "parameters": f"{count:,}",
        "FLOPs, encoder": rows["FLOPs, encoder"],
        "preprocessing": "resize to 32x32 (bilinear); mean 0.5 0.5 0.5, standard deviation 0.5 0.5 0.5",
        "licence": "apache-2.0",
        "missing weights": "none",
        "unused weights": "none",
        "note": rows["note"],
    }
    assert "`layer_norm_eps` is 1e-12" in rows["note"]
    assert "(17 tokens, " in rows["FLOPs, encoder"] and rows["FLOPs, encoder"].endswith("M per token)")


def test_one_weight_file_is_enough(folder, capsys):
    assert info(capsys, folder / "model.safetensors")[1]["format"] == "transformers (config.json, model.safetensors)"


def test_pooler_makes_it_a_base_model(tmp_path, capsys):
    transformers.ViTModel(transformers.ViTConfig(**FIELDS)).save_pretrained(tmp_path)
    code, rows = info(capsys, tmp_path)
    assert (code, rows["model"], rows["missing weights"], rows["unused weights"]) == (0, "ViTModel", "none", "none")
    assert rows["licence"] == "not stated" and rows["preprocessing"].startswith("none (")


def test_both_parts_of_mae_and_clip_are_described(tmp_path, capsys):
    tiny_mae().save_pretrained(tmp_path / "mae")
    _, rows = info(capsys, tmp_path / "mae")
    assert (rows["model"], rows["decoder layers"]) == ("MAEForPreTraining", "2, width 24, 2 heads, MLP 40")
    assert "(17 tokens" in rows["FLOPs, decoder"] and "(5 tokens" in rows["FLOPs, encoder"]
    tiny_clip().save_pretrained(tmp_path / "clip")
    _, rows = info(capsys, tmp_path / "clip")
    assert rows["model"] == "CLIPModel" and {"vision layers", "text layers", "FLOPs, text tower"} <= set(rows)


def test_wrong_shapes_and_missing_weights_of_our_own_files_are_listed(tmp_path, capsys):
    tiny_mae().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["vit.layernorm.bias"] = torch.zeros(33)
    weights["strange"] = torch.zeros(1)
    del weights["vit.layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    code, rows = info(capsys, tmp_path)
    assert code == 1
    assert rows["missing weights"] == "vit.layernorm.weight"
    assert rows["wrong shapes"] == "vit.layernorm.bias (33,), not (32,)"
    assert rows["unused weights"] == "strange"


def timm_file(folder, width=192, **arguments):
    """Weights alone of one of timm's models."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=width, depth=1, num_heads=3, num_classes=4, **arguments
    )
    torch.save(model.state_dict(), folder / "x.pth")
    return folder / "x.pth"


def notes(output):
    return [line for line in output.splitlines() if line.startswith("note ")]


def test_file_that_may_be_timms_or_deits_says_what_was_assumed_and_how_to_change_it(tmp_path, capsys):
    path = timm_file(tmp_path)
    assert main(["info", str(path)]) == 0
    output = capsys.readouterr().out
    assert "mean 0.485 0.456 0.406" in output
    assert any("ImageNet's mean" in note and '`source_format="timm"`' in note for note in notes(output))
    assert main(["info", str(path), "--source-format", "timm"]) == 0
    assert not any("look the same" in note for note in notes(capsys.readouterr().out))


def test_numbers_that_weights_do_not_tell_can_be_given(tmp_path, capsys):
    path = str(timm_file(tmp_path, width=48))
    assert main(["info", path]) == 2
    assert "do not tell `num_attention_heads`" in capsys.readouterr().err
    assert main(["info", path, "--set", "num_attention_heads=3"]) == 0
    assert "1, width 48, 3 heads, MLP 192" in capsys.readouterr().out
    assert main(["info", path, "--set", "image_size=64"]) == 2
    assert "`--set` takes num_attention_heads and decoder_num_attention_heads here" in capsys.readouterr().err


def test_what_cannot_be_read_is_an_error_with_its_reason(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    assert main(["info", str(tmp_path)]) == 2
    assert "load it with transformers' `SwinModel`" in capsys.readouterr().err


def test_licence_is_shown_in_one_line_and_never_unfolded(tmp_path, capsys):
    transformers.ViTModel(transformers.ViTConfig(**FIELDS)).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text('---\nlicense: "mit\\e[2J\\nformat  fake"\n---\n')
    main(["info", str(tmp_path)])
    out = capsys.readouterr().out
    assert "mit" in out and "\x1b" not in out and "\nformat  fake" not in out
    names = "abcdefghijkl"
    rows = [
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]" for before, name in zip(names, names[1:], strict=False)
    ]
    bomb = "\n".join(["a: &a [x]", *rows, "license: *l"])  # 9^11 times x
    (tmp_path / "README.md").write_text(f"---\n{bomb}\n---\n")
    main(["info", str(tmp_path)])
    assert "not stated" in capsys.readouterr().out
