"""The pre-training recipe: whole small runs, the files that they leave, and what it refuses."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from hf_vitfm import MAEForPreTraining
from hf_vitfm.training import half_weights
from recipes.mae import pretrain
from tests.data.images import encode, noise
from tests.tiny import MAE_FIELDS, tiny_mae


CONFIG = "recipes/mae/configs/pretrain_fashion.yaml"
FILES = "README.md run.json all_results.json config.json preprocessor_config.json model.safetensors".split()


def smoke(tmp_path, *argv: str) -> dict:
    return pretrain.main([CONFIG, "--smoke", "--use_cpu", "--output_dir", str(tmp_path / "run"), *argv])


def test_smoke_run_with_halved_weights(tmp_path, monkeypatch):
    trained = {}

    def halve(directory):
        trained.update(load_file(directory / "model.safetensors"))
        halve_weights(directory)

    halve_weights = half_weights.halve_weights
    monkeypatch.setattr(half_weights, "halve_weights", halve)
    metrics = smoke(tmp_path, "--half_weights")
    run = tmp_path / "run"
    assert all((run / name).exists() for name in FILES)
    for name in ("curves.png", "reconstructions.png"):
        assert (run / name).stat().st_size > 5_000, name

    card = ModelCard.load(run / "README.md")
    assert card.data.eval_results[0].metric_value == pytest.approx(metrics["eval_knn_top1"])
    assert "rounded to half precision" in card.content and "(reconstructions.png)" in card.content
    record = json.loads((run / "run.json").read_text())
    assert record["labelled"] == {
        "dataset": "fashion-mnist",
        "bank_rows": 24,
        "query_rows": 8,
        "split": "0.25 of train",
    }

    for name, weight in load_file(run / "model.safetensors").items():
        assert weight.dtype == (torch.float32 if name.endswith("position_embeddings") else torch.float16), name
    assert json.loads((run / "config.json").read_text())["dtype"] == "float32"
    for model in (MAEForPreTraining.from_pretrained(run), AutoModelForPreTraining.from_pretrained(run)):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        weights = model.state_dict()
        assert weights.keys() == trained.keys()
        for name, weight in trained.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-6)


def test_numbers_that_half_precision_cannot_hold_are_refused(tmp_path):
    model = tiny_mae()
    with torch.no_grad():
        model.decoder.mask_token[0, 0, 0] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"float16 cannot: decoder\.mask_token"):
        half_weights.halve_weights(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["decoder.mask_token"][0, 0, 0] == 1e5


@pytest.fixture
def photos(tmp_path):
    """A folder of images without classes, and the configuration of a run on it."""
    (tmp_path / "photos").mkdir()
    for number in range(12):
        (tmp_path / "photos" / f"{number}.png").write_bytes(encode(noise(32, 32, seed=number)))
    fields = {key: value for key, value in MAE_FIELDS.items() if key != "image_size"}
    settings = {
        "dataset": str(tmp_path / "photos"),
        "image_size": 32,
        "model": fields,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    path = tmp_path / "photos.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def test_images_without_classes_and_going_on_from_a_finished_run(photos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    metrics = pretrain.main([str(photos), "--holdout", "4", "--output_dir", str(first)])
    assert "eval_knn_top1" not in metrics
    card = (first / "README.md").read_text()
    assert "k-NN" not in card and "4 evaluation images (4 of train)" in card and str(tmp_path) not in card

    still = ["--learning_rate", "0"]
    again = pretrain.main(
        [str(photos), "--holdout", "4", "--checkpoint", str(first), *still, "--output_dir", str(second)]
    )
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    before, after = (load_file(each / "model.safetensors") for each in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "going on from `first`" in (second / "README.md").read_text()


def test_nothing_to_evaluate_on_is_an_error(photos, tmp_path):
    with pytest.raises(ValueError, match="Nothing to evaluate on"):
        pretrain.main([str(photos), "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labelled", "{holdoutt: 8}"), "`labelled` takes options of data.*holdoutt"),
        (("--model", "{mask_ratio: 0}"), "`mask_ratio=0` leaves nothing to predict"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        smoke(tmp_path, *options)
    assert not (tmp_path / "run" / "README.md").exists()
