"""The configuration for the winner of a comparison: the recipe takes it, on the images of the comparison."""

import shlex

import pytest
import yaml

from hf_vitfm.evaluation.compare_data import open_comparison
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.fine_tuning import ModelArguments, build_classifier
from hf_vitfm.training.fine_tuning_config import write_fine_tuning_config
from hf_vitfm.training.recipe import DataArguments, parse_recipe
from hf_vitfm.training.targets import read_targets
from recipes.vit import finetune
from tests.evaluation.compared import a_comparison, a_model, a_score, save_folder, save_resnet, save_vit


CLASSES = (ModelArguments, DataArguments, VisionTrainingArguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("pictures"), alone=8)


@pytest.fixture
def compared(folder):
    """Compare models by their sources, the best first."""

    def compare(*sources, **fields):
        models = [
            a_model(source.rpartition("/")[2], {"linear_probe": a_score(0.9 - 0.1 * place)}, source)
            for place, source in enumerate(sources)
        ]
        return a_comparison(open_comparison(folder), models, **fields)

    return compare


def header(text: str) -> dict[str, str]:
    lines = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    return {line.partition(": ")[0]: line.partition(": ")[2].strip() for line in lines}


def test_the_recipe_takes_it_in_a_smoke_run(compared, tmp_path):
    path = tmp_path / "finetune.yaml"
    written = write_fine_tuning_config(compared("fashion-mae", "emoji-clip"), path, "outputs/x")
    assert written.model.name == "fashion-mae" and not written.passed_over
    metrics = finetune.main([str(path), "--smoke", "--use_cpu", "--output_dir", str(tmp_path / "run")])
    assert 0 <= metrics["eval_top1"] <= 1 and (tmp_path / "run" / "model.safetensors").exists()
    found = header(path.read_text())
    assert found["run"] == f"python recipes/vit/finetune.py {path}"
    assert "linear probe reached 90.0 %" in found["expect"] and "interval 85.0 to 94.0" in found["expect"]
    assert found["measured"] == "not run"
    assert "folder.yaml" in found["differs"]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_it_trains_the_winner_on_the_same_images(kind, compared, tmp_path):
    source = {"vit": save_vit, "resnet": save_resnet}[kind](tmp_path / "model")
    comparison, path = compared(source, skipped={"train": ["row 0"]}), tmp_path / "finetune.yaml"
    write_fine_tuning_config(comparison, path, str(tmp_path / "run"))
    model_args, data_args, args = parse_recipe(CLASSES, [str(path), "--use_cpu"])
    assert args.learning_rate == pytest.approx(5e-4 / 32) and args.per_device_train_batch_size == 1
    assert (args.num_train_epochs, args.on_bad_image) == (100, "skip")
    train, test, _ = data_args.load(args.seed)
    assert train["label"] == comparison.data.train["label"] and len(test) == len(comparison.data.test) == 6
    model, _ = build_classifier(model_args, read_targets(train, None, None), smoke=False)
    assert model.config.num_labels == 3
    assert (getattr(model.config, "drop_path_rate", None) == 0.1) == (kind == "vit") == (args.layer_decay < 1)


def test_a_winner_that_the_recipe_cannot_train_is_passed_over_and_named(compared, tmp_path):
    path = tmp_path / "finetune.yaml"
    written = write_fine_tuning_config(compared("emoji-clip", "fashion-mae"), path, "outputs/x")
    assert written.model.name == "fashion-mae"
    assert "no image classifier of the type 'vitfm_clip'" in written.passed_over["emoji-clip"]
    assert "not emoji-clip" in path.read_text().splitlines()[0]
    assert write_fine_tuning_config(compared("emoji-clip"), tmp_path / "none.yaml", "outputs/x") is None
    assert not (tmp_path / "none.yaml").exists()


@pytest.mark.parametrize(
    ("rows", "epochs", "batch_size"), [(12, 100, 1), (450, 100, 32), (3_000, 20, 32), (90_000, 5, 32)]
)
def test_small_sets_are_seen_more_often(rows, epochs, batch_size, compared, tmp_path, monkeypatch):
    comparison = compared("fashion-mae")
    monkeypatch.setattr(type(comparison.data.train), "__len__", lambda self: rows)
    written = write_fine_tuning_config(comparison, tmp_path / "finetune.yaml", "outputs/x")
    found = yaml.safe_load(written.text)
    assert (found["num_train_epochs"], found["per_device_train_batch_size"]) == (epochs, batch_size)
    assert isinstance(found["learning_rate"], float)


@pytest.mark.parametrize(("parameters", "rate"), [(5_000_000, 5e-4), (86_000_000, 1e-4)])
def test_small_encoders_take_a_larger_learning_rate(parameters, rate, compared, tmp_path, monkeypatch):
    comparison = compared("fashion-mae")
    comparison.models[0] = a_model("fashion-mae", comparison.winner.scores, parameters=parameters)
    monkeypatch.setattr(type(comparison.data.train), "__len__", lambda self: 3_000)
    written = write_fine_tuning_config(comparison, tmp_path / "finetune.yaml", "outputs/x")
    assert yaml.safe_load(written.text)["learning_rate"] == pytest.approx(rate)


def test_a_place_with_spaces_can_be_pasted(compared, tmp_path):
    path = tmp_path / "my results" / "finetune.yaml"
    write_fine_tuning_config(compared("fashion-mae"), path, "outputs/x")
    assert shlex.split(header(path.read_text())["run"])[-1] == str(path)
