"""What a run records of its data and predictions, for `verify`; test_runs_for_others.py has a run of each kind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.trainer_utils import PredictionOutput

from hf_vitfm import ViTForImageClassification
from hf_vitfm.data.samples import load_sample
from hf_vitfm.hub.verify import CANNOT, DIFFERS, MATCHES, verify
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.classification import ImageClassificationTrainer
from hf_vitfm.training.mae import MAETrainer
from hf_vitfm.training.record import fingerprint_splits, hash_predictions
from recipes.vit import finetune
from tests.tiny import tiny_config, tiny_mae


def test_numbers_of_a_folder_of_ones_own_need_its_path(tmp_path):
    generator = np.random.default_rng(0)
    lines = ["file,price"]
    for number in range(40):
        pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{1000 + pixels.mean():.3f}")
    table = tmp_path / "homes.csv"
    table.write_text("\n".join(lines))
    argv = [
        "recipes/vit/configs/fashion_scratch.yaml",
        "--dataset",
        str(table),
        "--label_column",
        "price",
        "--use_cpu",
    ]
    argv += ["--problem_type", "regression", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    argv += ["--holdout", "0.25", "--image_size", "16", "--output_dir", str(tmp_path / "run")]
    model = "{patch_size: 8, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
    finetune.main([*argv, "--model", model, "--warmup_steps", "0"])
    record = (tmp_path / "run" / "run.json").read_text()
    assert json.loads(record)["sources"]["evaluation"]["dataset"] == "a local path" and str(tmp_path) not in record
    assert verify(tmp_path / "run").verdict == CANNOT
    result = verify(tmp_path / "run", table)
    assert result.verdict == MATCHES, result
    assert any("no hash" in note for note in result.notes)

    Image.fromarray(pixels[::-1]).save(tmp_path / "7.png")
    Image.fromarray(pixels[::-1]).save(tmp_path / "8.png")
    for number in range(40):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    result = verify(tmp_path / "run", table)
    assert result.verdict == DIFFERS and "the evaluation rows are not those" in result.differences[0]


def test_fingerprints_know_captions_and_say_what_they_do_not_know():
    rows = load_sample("emoji")["google"].select(range(3))
    other = rows.map(lambda row: {"caption": row["caption"].upper()})
    found = fingerprint_splits({"a": rows, "b": other, "c": rows.select([0, 1, 2]), "none": None})
    assert found.keys() == {"a", "b", "c"}
    assert found["a"] == found["c"] != found["b"] and found["a"]["rows"] == 3
    (odd,) = fingerprint_splits({"x": [{"image": torch.zeros(1), "label": object()}]}).values()
    assert odd["sha256"] is None and odd["reason"]


# Hashes of predictions


def classifier(tmp_path, problem_type: str) -> ImageClassificationTrainer:
    model = ViTForImageClassification(tiny_config(num_labels=3, problem_type=problem_type))
    return ImageClassificationTrainer(model, VisionTrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_hash_of_classes_bears_rounding_and_knows_every_row(kind, tmp_path):
    trainer = classifier(tmp_path, kind)
    logits = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    labels = np.zeros(200, int) if kind.startswith("single") else np.zeros((200, 3), "float32")
    found = hash_predictions(trainer, PredictionOutput(logits, labels, {}))
    assert hash_predictions(trainer, PredictionOutput(logits * (1 + 1e-6), labels, {})) == found
    logits[7] = -logits[7]
    assert hash_predictions(trainer, PredictionOutput(logits, labels, {})) != found


def test_numbers_have_no_hash(tmp_path):
    output = PredictionOutput(np.zeros((4, 3)), np.zeros((4, 3)), {})
    assert hash_predictions(classifier(tmp_path, "regression"), output) is None


def test_hash_of_losses_bears_rounding_whatever_their_size(tmp_path):
    trainer = MAETrainer(tiny_mae(), VisionTrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    losses = np.random.default_rng(0).uniform(0.01, 0.02, 500)
    found = hash_predictions(trainer, PredictionOutput(losses, None, {}))
    assert hash_predictions(trainer, PredictionOutput(losses * (1 + 1e-6), None, {})) == found
    losses[7] *= 1.5
    assert hash_predictions(trainer, PredictionOutput(losses, None, {})) != found
