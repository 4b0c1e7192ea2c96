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
    extract_features,
    load_image_processor,
    load_sample,
    sample_checkpoint,
)
from hf_vitfm.data.samples import CHECKPOINT_NAMES
from hf_vitfm.evaluation.neighbours import knn_accuracy
from hf_vitfm.hub.verify import verify
from model_cards import regenerate


CARDS = Path("model_cards")
MEASURED = {
    "emoji-clip": {"eval_loss", "eval_image_to_text_recall@1", "eval_text_to_image_recall@10", "eval_zero_shot_top1"},
    "fashion-mae": {"eval_loss", "eval_knn_top1"},
    "fashion-vit": {"eval_loss", "eval_top1", "eval_calibration_error"},
}


@pytest.fixture(scope="module")
def folder():
    return sample_checkpoint("fashion-mae")


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_at_most_four_megabytes(name):
    assert 0 < sum(file.stat().st_size for file in sample_checkpoint(name).iterdir()) <= 4e6


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_the_card_is_the_one_of_its_files(name, tmp_path):
    assert regenerate.render(name, tmp_path / name) == (CARDS / name / "README.md").read_text()


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_verify_confirms_it_with_its_card(name, tmp_path):
    for folder in (sample_checkpoint(name), CARDS / name):
        shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True)
    result = verify(tmp_path / name)
    assert result.verdict == "matches" and not result.notes, result
    assert any("README.md" in line for line in result.confirmed)
    assert {check.name for check in result.metrics} >= MEASURED[name]


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_the_results_that_ship_are_those_of_the_card(name):
    for file in regenerate.SHIPPED:
        assert (sample_checkpoint(name) / file).read_bytes() == (CARDS / name / file).read_bytes(), file


def test_the_card_says_where_a_training_learnt_its_images_by_heart():
    said = {name: "far better than others" in (CARDS / name / "README.md").read_text() for name in CHECKPOINT_NAMES}
    assert said == {"emoji-clip": True, "fashion-mae": False, "fashion-vit": False}


def test_measuring_again_finds_what_is_recorded(tmp_path, monkeypatch):
    shutil.copytree(CARDS / "fashion-vit", tmp_path / "fashion-vit")
    monkeypatch.setattr(regenerate, "CARDS", tmp_path)
    run = json.loads((CARDS / "fashion-vit" / "run.json").read_text())
    measured = ("evaluation", "splits", "weights", "loss_trace", "sources", "seeds", "model_type")
    kept = {name: value for name, value in run.items() if name not in measured}
    (tmp_path / "fashion-vit" / "run.json").write_text(json.dumps(kept))
    regenerate.measure_again("fashion-vit")
    found = json.loads((tmp_path / "fashion-vit" / "run.json").read_text())
    metrics, known = (each["evaluation"].pop("metrics") for each in (found, run))
    assert metrics == pytest.approx(known, rel=1e-4)
    assert found == run


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_the_log_ends_with_the_results(name):
    log = json.loads((CARDS / name / "log.json").read_text())
    results = json.loads((CARDS / name / "all_results.json").read_text())
    run = json.loads((CARDS / name / "run.json").read_text())
    last = [entry for entry in log if "eval_loss" in entry][-1]
    assert last["step"] == run["hyperparameters"]["steps"]
    assert last["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-3)  # before the weights were rounded


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
