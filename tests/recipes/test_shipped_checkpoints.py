"""The checkpoints that ship: they open offline, do what their cards say, and the cards are those of their files."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_vitfm import (
    MAEForPreTraining,
    ViTForImageClassification,
    build_transform,
    create_model_card,
    extract_features,
    load_image_processor,
    load_sample,
    sample_checkpoint,
)
from hf_vitfm.data.samples import CHECKPOINT_NAMES
from hf_vitfm.evaluation.neighbours import knn_accuracy


CARDS = Path("model_cards")


@pytest.fixture(scope="module")
def folder():
    return sample_checkpoint("fashion-mae")


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_at_most_four_megabytes(name):
    assert 0 < sum(file.stat().st_size for file in sample_checkpoint(name).iterdir()) <= 4e6


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_the_card_is_the_one_of_its_files(name, tmp_path):
    copy = tmp_path / name
    shutil.copytree(sample_checkpoint(name), copy)
    shutil.copytree(CARDS / name, copy, dirs_exist_ok=True)
    (copy / "README.md").unlink()
    assert create_model_card(copy).read_text() == (CARDS / name / "README.md").read_text()


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_the_log_ends_with_the_results(name):
    log = json.loads((CARDS / name / "log.json").read_text())
    results = json.loads((CARDS / name / "all_results.json").read_text())
    run = json.loads((CARDS / name / "run.json").read_text())
    last = [entry for entry in log if "eval_loss" in entry][-1]
    assert last["step"] == run["hyperparameters"]["steps"]
    assert last["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-3)


def test_masked_autoencoder_predicts_what_it_has_not_seen(folder):
    model = MAEForPreTraining.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    for table in (model.vit.embeddings, model.decoder):
        assert torch.equal(table.position_embeddings, table.initial_positions())
    transform = build_transform(load_image_processor(folder))
    pixels = torch.stack([transform(row["image"]) for row in load_sample("fashion-mnist")["test"].select(range(200))])
    with torch.no_grad():
        loss = model(pixels, noise=torch.rand(200, 16, generator=torch.Generator().manual_seed(0))).loss
        shuffled = model.loss(*(model.patchify(images) for images in (pixels.roll(1, 0), pixels)))
    # 0.426 on its evaluation images; the mean of each patch gives about 1, another image more than that
    assert loss < 0.5 < 1 < shuffled


def test_features_tell_classes_apart_before_any_label_was_seen(folder):
    model, transform = MAEForPreTraining.from_pretrained(folder), build_transform(load_image_processor(folder))
    splits = load_sample("fashion-mnist")
    bank = extract_features(model, splits["train"].select(range(0, 4000, 4)), transform, 250, pooling="mean")
    queries = extract_features(model, splits["test"].select(range(0, 1000, 2)), transform, 250, pooling="mean")
    assert knn_accuracy(*bank, *queries) > 0.75


def test_encoder_goes_into_a_classifier_with_nothing_but_a_new_head(folder):
    model, info = ViTForImageClassification.from_pretrained(
        folder, pooling="mean", num_labels=10, output_loading_info=True
    )
    assert {name.rsplit(".", 1)[0] for name in info["missing_keys"]} == {"vit.fc_norm", "classifier"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the file holds float16
    source = MAEForPreTraining.from_pretrained(folder)
    ours, theirs = model.vit.encoder.state_dict(), source.vit.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
