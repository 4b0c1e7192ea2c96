"""The card of a masked autoencoder: what it says, and that its code runs."""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import ViTImageProcessor

from hf_vitfm.cards.figures import draw_curves
from hf_vitfm.cards.model_card import create_model_card
from tests.cards.test_model_card import RUN as CLASSIFIER_RUN
from tests.tiny import tiny_mae


RUN = {key: value for key, value in CLASSIFIER_RUN.items() if key != "per_class"} | {
    "task": "masked-image-modeling",
    "recipe": "recipes/mae/pretrain.py",
    "labelled": {"dataset": "fashion-mnist", "bank_rows": 3000, "query_rows": 1000},
}
RESULTS = {"eval_loss": 0.51234, "eval_knn_top1": 0.8, "train_loss": 0.6, "train_runtime": 62.0, "epoch": 60.0}


@pytest.fixture
def write_run(tmp_path):
    """Write a folder as a run leaves it: a tiny model with fields of its own, results and run.json changed."""

    def write(results=None, run=None, **fields):
        tiny_mae(**fields).save_pretrained(tmp_path)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        for name, content in {
            "all_results.json": {**RESULTS, **(results or {})},
            "run.json": {**RUN, **(run or {})},
        }.items():
            kept = {key: value for key, value in content.items() if value is not ...}
            (tmp_path / name).write_text(json.dumps(kept))
        return tmp_path

    return write


def test_card_states_the_facts_of_the_files(write_run):
    directory = write_run(norm_pix_loss=True)
    (directory / "reconstructions.png").touch()
    (directory / "curves.png").touch()
    text = create_model_card(directory).read_text()
    for fact in (
        "# Masked autoencoder (MAE) of Fashion-MNIST",
        "75.0 % of the patches",
        "16 patches of 8x8 pixels",
        "12 of these are masked, chosen at random",
        "3 transformer layers of width 32 relate the visible ones",
        "A decoder of width 24 and depth 2",
        "mean squared error of pixels normalised by patch) | 0.5123 |",
        # Wilson's interval of 800 in 1000, by scipy.stats.binomtest(800, 1000).proportion_ci(method="wilson")
        "| k-NN accuracy (top-1) | 80.0 % | 77.4 to 82.4 % |",
        "each of 1,000 images of fashion-mnist is classified by its 20 nearest neighbours among 3,000",
        "It knows no classes",
        "He, Kaiming",
        "1 min 2 s",
    ):
        assert fact in text, fact
    assert text.index("](reconstructions.png)") < text.index("## Results") < text.index("](curves.png)")
    assert "dosovitskiy" not in text and "half precision" not in text


def test_metadata_has_the_neighbours_accuracy_and_promises_no_pipeline(write_run):
    labelled = {**RUN["labelled"], "dataset": "owner/pets", "split": "test"}
    card = ModelCard.load(create_model_card(write_run(run={"labelled": labelled, "license": "mit"})))
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_type, result.dataset_split) == (0.8, "owner/pets", "test")
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "hf_vitfm" and metadata["license"] == "mit"
    assert {"masked-autoencoder", "mae"} <= set(metadata["tags"])
    assert "pipeline_tag" not in metadata


def test_a_run_without_labelled_images_or_normalised_pixels(write_run):
    directory = write_run(results={"eval_knn_top1": ...}, run={"labelled": None}, norm_pix_loss=False)
    path = create_model_card(directory)
    metadata = ModelCard.load(path).data.to_dict()
    assert not {"model-index", "metrics", "license"} & set(metadata)
    text = path.read_text()
    assert (
        "k-NN" not in text
        and "pixels as the image processor normalises them" in text
        and "loss of about 1" not in text
    )


def test_an_accuracy_on_images_that_are_not_named_has_no_interval(write_run):
    path = create_model_card(write_run(run={"labelled": ...}))
    assert "| 80.0 % |  |" in path.read_text()
    assert "model-index" not in ModelCard.load(path).data.to_dict()


def test_rounded_weights_are_told(write_run):
    assert "rounded to half precision" in create_model_card(write_run(run={"half_weights": True})).read_text()


@pytest.mark.parametrize("registers", [0, 2])
def test_the_cards_code_runs(write_run, tmp_path, monkeypatch, registers):
    directory = write_run(num_register_tokens=registers)
    text = create_model_card(directory).read_text()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels).save("picture.jpg")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block.replace("path/to/this/folder", str(directory)), names)
    state, encoder = names["autoencoder"].state_dict(), names["classifier"].vit.state_dict()
    shared = [name for name in encoder if f"vit.{name}" in state]
    assert encoder.keys() - set(shared) == {"fc_norm.weight", "fc_norm.bias"}
    assert all(torch.equal(encoder[name], state[f"vit.{name}"]) for name in shared)
    assert names["classifier"].config.pooling == "mean" and names["classifier"].config.num_labels == 10
    features, tokens = names["features"], names["tokens"]
    assert tokens.shape == (1, 1 + registers + 16, 32)
    torch.testing.assert_close(features, tokens[:, -16:].mean(1))
    assert (tmp_path / "reconstruction.png").stat().st_size > 2_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": {"eval_loss": ...}}, "all_results.json has no field `eval_loss`"),
        ({"results": {"eval_loss": float("nan")}}, "`eval_loss` in all_results.json must be a finite number"),
        ({"results": {"eval_knn_top1": 80.0}}, r"`eval_knn_top1` in all_results.json must be a fraction in 0\.\.1"),
        ({"run": {"labelled": {"dataset": "x"}}}, "run.json has no field `labelled.bank_rows`"),
        ({"run": {"labelled": {**RUN["labelled"], "query_rows": 0}}}, "`labelled.query_rows` in run.json must be a"),
    ],
)
def test_bad_field_is_named_and_nothing_is_written(write_run, changes, message):
    directory = write_run(**changes)
    with pytest.raises(ValueError, match=message):
        create_model_card(directory)
    assert not (directory / "README.md").exists()


def test_curves_show_the_neighbours_accuracy_as_one_of_its_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("hf_vitfm.cards.figures._draw_scores", lambda axes, scores: drawn.append(set(scores)))
    history = [{"step": 1, "eval_loss": 1.0, "eval_knn_top1": 0.5, "eval_pets_knn_top1": 0.4, "eval_pets_top1": 0.3}]
    draw_curves(history, tmp_path / "curves.png", loss_unit="mean squared error")
    assert drawn == [{("knn_top1", ""), ("knn_top1", "pets"), ("top1", "pets")}]


def test_curves_of_nothing_but_a_loss(tmp_path):
    draw_curves([{"step": 1, "eval_loss": 1.0}], tmp_path / "curves.png", loss_unit="mean squared error")
    assert (tmp_path / "curves.png").stat().st_size > 5_000
