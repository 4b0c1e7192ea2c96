"""Fine-tuning and linear probes of masked autoencoders: from the checkpoint's folder to the model on disk."""

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTImageProcessor

from hf_vitfm import MAEForPreTraining, ViTConfig, ViTForImageClassification, export_checkpoint
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.fine_tuning import ModelArguments, build_classifier
from hf_vitfm.training.linear_probe import load_linear_probe
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, load_for_fine_tuning, parse_recipe
from hf_vitfm.training.targets import SINGLE, Targets
from recipes.mae import finetune, linear_probe
from tests.recipes.quick_report import use_quick_report
from tests.tiny import tiny_mae


CONFIGS = [
    path
    for path in sorted(Path("recipes/mae/configs").glob("*.yaml"))
    if path.stem.startswith(("finetune", "linear_probe", "scratch"))
]
ANIMALS = Targets(SINGLE, ["cat", "dog", "bird"])
SHORT = [
    *("--dataset", "fashion-mnist", "--train_rows", "40", "--holdout", "10", "--max_steps", "2"),
    *("--per_device_train_batch_size", "8", "--global_batch_size", "16", "--warmup_steps", "0"),
    *("--image_size", "32", "--image_processor", "{do_center_crop: false, size: {height: 32, width: 32}}"),
    *("--dataloader_num_workers", "0", "--bf16", "false", "--use_cpu", "--eval_strategy", "no"),
    *("--save_strategy", "no", "--logging_steps", "1", "--per_device_eval_batch_size", "128"),
]


@pytest.fixture
def mae(tmp_path) -> tuple[str, MAEForPreTraining]:
    """A tiny masked autoencoder in a folder with its image processor."""
    model, folder = tiny_mae(), tmp_path / "mae"
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(folder)
    return str(folder), model


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_is_and_parses(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("run:", "expect:", "measured:", "differs:"):
        assert any(line.startswith(f"# {word}") for line in header), word
    classes = (ModelArguments, DataArguments, VisionTrainingArguments)
    _, _, training = parse_recipe(classes, [str(path), "--use_cpu", "--bf16", "false"])
    assert training.output_dir == f"outputs/{path.stem}"
    assert set(yaml.safe_load(path.read_text())["model"]) <= set(ViTConfig.__dataclass_fields__)


def test_a_smoke_run_of_the_fine_tuning_ends_with_a_card(tmp_path):
    path = "recipes/mae/configs/finetune_b16_in1k.yaml"
    metrics = finetune.main([path, "--smoke", "--use_cpu", "--output_dir", str(tmp_path)])
    assert 0 <= metrics["eval_top1"] <= 1
    assert json.loads((tmp_path / "run.json").read_text())["recipe"] == "recipes/mae/finetune.py"
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.pooling == "mean"
    assert (tmp_path / "README.md").exists()


def test_a_smoke_run_of_the_linear_probe_on_two_processes_ends_with_a_plain_vit(two_processes, tmp_path):
    argv = ["recipes/mae/configs/linear_probe_b16_in1k.yaml", "--smoke", "--output_dir", str(tmp_path)]
    first, second = two_processes.run(linear_probe.main, argv)
    assert first["eval_top1"] == second["eval_top1"]
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is ViTForImageClassification
    assert set(load_file(tmp_path / "model.safetensors")) == set(
        ViTForImageClassification(ViTConfig(**SMOKE_MODEL)).state_dict()
    )
    assert json.loads((tmp_path / "run.json").read_text())["recipe"] == "recipes/mae/linear_probe.py"


def test_fine_tuning_begins_with_the_encoder_and_trains_all_of_it_by_depth(mae, tmp_path, monkeypatch):
    use_quick_report(monkeypatch)
    folder, model = mae
    argv = ["recipes/mae/configs/finetune_b16_in1k.yaml", *SHORT, "--checkpoint", folder]
    finetune.main([*argv, "--base_learning_rate", "0.01", "--output_dir", str(tmp_path / "run")])
    trained, before = load_file(tmp_path / "run" / "model.safetensors"), model.state_dict()
    names = [name for name in trained if name in before]
    assert {"vit.embeddings.position_embeddings", "vit.encoder.layers.0.mlp.fc1.weight"} <= set(names)
    assert "vit.fc_norm.weight" in trained and not any(name.startswith("decoder") for name in trained)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["pooling"], config["position_embedding_type"], config["layer_norm_eps"]) == (
        "mean",
        "learned",
        1e-6,
    )

    def moved(name):
        return (trained[name] - before[name]).abs().max().item()

    # AdamW moves every weight by about its layer's rate: embeddings .65 ** 4, first layer .65 ** 3, ...
    rates = {name: moved(name) for name in names if name.endswith(("position_embeddings", "fc1.weight"))}
    assert 0 < rates["vit.embeddings.position_embeddings"] < rates["vit.encoder.layers.0.mlp.fc1.weight"]
    assert rates["vit.encoder.layers.0.mlp.fc1.weight"] < rates["vit.encoder.layers.2.mlp.fc1.weight"]


def test_a_linear_probe_leaves_the_encoder_as_it_was(mae, tmp_path, monkeypatch):
    use_quick_report(monkeypatch)
    folder, model = mae
    argv = ["recipes/mae/configs/linear_probe_b16_in1k.yaml", *SHORT, "--checkpoint", folder]
    linear_probe.main([*argv, "--output_dir", str(tmp_path / "run")])
    trained, before = load_file(tmp_path / "run" / "model.safetensors"), model.state_dict()
    changed = [name for name in trained if name not in before or not torch.equal(trained[name], before[name])]
    assert changed == ["classifier.bias", "classifier.weight"]
    assert trained["classifier.weight"].any()


@pytest.mark.parametrize("load", [load_for_fine_tuning, load_linear_probe])
def test_transformers_maes_are_taken_too(mae, tmp_path, load):
    folder, model = mae
    export_checkpoint(model, tmp_path / "theirs", "transformers")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "vit_mae"
    theirs = load(str(tmp_path / "theirs"), pooling="cls", num_labels=3).eval()
    ours = load(folder, pooling="cls", num_labels=3).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs.vit(images).pooler_output, ours.vit(images).pooler_output)


def test_the_image_processor_of_a_checkpoint_takes_fields(mae):
    fields = yaml.safe_load(Path("recipes/mae/configs/finetune_b16_in1k.yaml").read_text())["image_processor"]
    args = ModelArguments(checkpoint=mae[0], image_size=32, model={"pooling": "mean"}, image_processor=fields)
    model, processor = build_classifier(args, ANIMALS, smoke=False)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (37, 32)  # 256 / 224 x 32
    assert processor.do_center_crop and processor.resample == 3
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert model.config.image_size == 32


@pytest.mark.parametrize("load", [load_for_fine_tuning, load_linear_probe])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "average"}, "pooling"),
        ({"pooling": "none"}, '`pooling="cls"`, "mean" or'),
        ({"pooling": "mean", "num_hidden_layers": 4}, "would start at random"),
    ],
)
def test_a_wrong_pooling_or_depth_is_named(mae, load, fields, message):
    with pytest.raises(Exception, match=message):
        load(mae[0], **fields)


def test_other_checkpoints_are_refused_by_name(tmp_path):
    config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2])
    transformers.SwinForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a ViT or an MAE .* is 'swin'"):
        load_linear_probe(str(tmp_path), num_labels=3)
    with pytest.raises(ValueError, match="SwinConfig .* has no field pooling"):
        load_for_fine_tuning(str(tmp_path), pooling="mean")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_linear_probe(str(tmp_path / "nowhere"))
