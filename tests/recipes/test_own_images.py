"""The recipe on data of one's own: a folder of images, several labels per image, numbers."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import ViTImageProcessor, pipeline

from hf_vitfm import ViTConfig, ViTForImageClassification
from hf_vitfm.cli.main import main as command
from hf_vitfm.data.samples import load_sample
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, parse_recipe
from recipes.vit import finetune
from tests.data.images import encode, noise, write_tar


FOLDER = "recipes/vit/configs/folder.yaml"
QUICK = ["--use_cpu", "--dataloader_num_workers", "0", "--per_device_train_batch_size", "8", "--image_size", "16"]


@pytest.fixture(scope="module")
def emoji_folder(tmp_path_factory) -> Path:
    """Few pictures in three classes of unequal size, in a subfolder each, as somebody would bring them."""
    folder = tmp_path_factory.mktemp("emoji")
    rows = load_sample("emoji")["google"]
    categories = rows.features["category"].names
    ids = np.array(rows["category"])
    for name, count in (("Animals & Nature", 20), ("Food & Drink", 10), ("Flags", 5)):
        (folder / name).mkdir()
        for index in np.flatnonzero(ids == categories.index(name))[:count]:
            rows[int(index)]["image"].save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory) -> str:
    """A stand-in for the checkpoint of the Hub."""
    folder = tmp_path_factory.mktemp("checkpoint")
    ViTForImageClassification(ViTConfig(**SMOKE_MODEL)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def run(output, dataset, checkpoint, *options) -> tuple[dict, dict, str]:
    """Run the folder recipe; returns its metrics, its run.json and its card."""
    argv = [FOLDER, "--dataset", str(dataset), "--checkpoint", checkpoint, "--output_dir", str(output), *QUICK]
    metrics = finetune.main([*argv, *options])
    return metrics, json.loads((output / "run.json").read_text()), (output / "README.md").read_text()


def test_a_folder_is_trained_evaluated_and_used(tmp_path, emoji_folder, tiny_checkpoint):
    output = tmp_path / "run"
    options = ["--num_train_epochs", "2", "--class_weights", "balanced"]
    metrics, record, card = run(output, emoji_folder, tiny_checkpoint, *options)
    assert (record["dataset"]["train_rows"], record["dataset"]["evaluation_rows"]) == (28, 7)
    assert record["dataset"]["evaluation_split"] == "0.2 of train"
    assert record["hyperparameters"]["class_weights"] == "balanced"
    assert set(metrics) >= {"eval_top1", "eval_mean_per_class", "eval_calibration_error"}
    assert list(record["per_class"]) == ["Animals & Nature", "Flags", "Food & Drink"]
    assert "Calibration error" in card and "best one on these evaluation images" not in card
    for name in ("curves.png", "confusion.png", "examples.png"):
        assert (output / name).stat().st_size > 5_000, name
    assert len(list(output.glob("checkpoint-*"))) == 1
    table = tmp_path / "table.csv"
    assert command(["predict", str(output), str(emoji_folder / "Flags"), "--output", str(table)]) == 0
    with open(table, encoding="utf-8", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} <= set(record["per_class"])


def test_the_card_says_that_an_epoch_was_chosen(tmp_path, emoji_folder, tiny_checkpoint):
    options = ["--num_train_epochs", "2", "--load_best_model_at_end", "true"]
    options += ["--metric_for_best_model", "eval_mean_per_class"]
    _, record, card = run(tmp_path, emoji_folder, tiny_checkpoint, *options)
    assert record["hyperparameters"]["load_best_model_at_end"] is True
    assert "the best one on these evaluation images was kept" in card


def pictures(count: int = 24) -> list[dict]:
    return [load_sample("emoji")["google"][i]["image"] for i in range(count)]


def write_table(path: Path, labels: list, feature=None) -> Path:
    table = datasets.Dataset.from_dict(
        {"image": pictures(len(labels)), "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": feature}),
    )
    path.mkdir()
    table.to_parquet(path / "train.parquet")
    return path


def write_csv(folder: Path, columns: dict[str, list[int]]) -> None:
    """A table of pictures beside it, with one value of each column per picture."""
    folder.mkdir(exist_ok=True)
    lines = [",".join(["file", *columns])]
    for i, (image, *values) in enumerate(zip(pictures(), *columns.values(), strict=True)):
        image.save(folder / f"{i}.png")
        lines.append(",".join([f"{i}.png", *map(str, values)]))
    (folder / "data.csv").write_text("\n".join(lines))


def results(output: Path) -> tuple[dict, list]:
    metrics = json.loads((output / "all_results.json").read_text())
    return metrics, ModelCard.load(output / "README.md").data.eval_results


def test_several_labels_from_data_to_card(tmp_path, tiny_checkpoint):
    labels = [["odd"] * (i % 2) + ["third"] * (i % 3 == 0) + ["all"] for i in range(24)]
    data = write_table(tmp_path / "data", labels, datasets.List(datasets.Value("string")))
    output = tmp_path / "run"
    metrics, record, card = run(output, data, tiny_checkpoint, "--num_train_epochs", "1", "--holdout", "0.25")
    assert record["problem_type"] == "multi_label_classification"
    assert json.loads((output / "config.json").read_text())["problem_type"] == "multi_label_classification"
    assert list(record["per_class"]) == ["all", "odd", "third"]
    saved, reported = results(output)
    assert {r.metric_type: r.metric_value for r in reported} == {
        "mean_average_precision": saved["eval_mean_average_precision"],
        "f1_micro": saved["eval_micro_f1"],
        "f1_macro": saved["eval_macro_f1"],
    }
    assert metrics["eval_macro_f1"] == saved["eval_macro_f1"]
    assert "Average precision by class" in card and ".sigmoid()" in card and "Top-1" not in card
    assert (output / "average_precision.png").stat().st_size > 5_000
    assert not (output / "confusion.png").exists()
    scores = pipeline("image-classification", model=str(output), device="cpu")(pictures(1)[0])
    assert len(scores) == 3 and all(0 < score["score"] < 1 for score in scores)


def test_numbers_from_data_to_card(tmp_path, tiny_checkpoint):
    data = write_table(tmp_path / "data", [1900.0 + i for i in range(24)], datasets.Value("float32"))
    output = tmp_path / "run"
    metrics, record, card = run(output, data, tiny_checkpoint, "--num_train_epochs", "1", "--holdout", "0.25")
    assert record["problem_type"] == "regression" and list(record["per_output"]) == ["output 0"]
    saved, reported = results(output)
    assert {r.metric_type: r.metric_value for r in reported} == {
        "rmse": saved["eval_rmse"],
        "mae": saved["eval_mae"],
        "r_squared": saved["eval_r2"],
        "pearsonr": saved["eval_pearson"],
    }
    assert {r.task_type for r in reported} == {"image-regression"}
    # In the unit of the data, though a run this short has not left the mean: the deviation of 0 to 23 is 6.9.
    assert 4 < metrics["eval_rmse"] < 10 and "standardised for training" in card
    assert "mean squared error" in card and ".softmax(" not in card
    assert (output / "scatter.png").stat().st_size > 5_000
    table = tmp_path / "table.csv"
    assert command(["predict", str(output), str(output / "scatter.png"), "--output", str(table)]) == 0
    assert table.read_text().splitlines()[0] == "file,output 0,error"


def test_numbers_keep_the_name_of_their_column(tmp_path, tiny_checkpoint):
    write_csv(tmp_path / "homes", {"price": [100 + i for i in range(24)]})
    options = ["--label_column", "price", "--problem_type", "regression", "--max_steps", "1", "--logging_steps", "1"]
    output = tmp_path / "run"
    _, record, card = run(output, tmp_path / "homes" / "data.csv", tiny_checkpoint, *options)
    assert list(record["per_output"]) == ["price"] and "output 0" not in card
    assert json.loads((output / "config.json").read_text())["id2label"] == {"0": "price"}
    table = tmp_path / "table.csv"
    assert command(["predict", str(output), str(output / "scatter.png"), "--output", str(table)]) == 0
    assert table.read_text().splitlines()[0] == "file,price,error"


def test_several_columns_are_several_labels(tmp_path, tiny_checkpoint):
    write_csv(tmp_path, {"coat": [i % 2 for i in range(24)], "bright": [int(i % 3 == 0) for i in range(24)]})
    options = ["--label_column", "coat", "bright", "--max_steps", "1"]
    _, record, _ = run(tmp_path / "run", tmp_path / "data.csv", tiny_checkpoint, *options)
    assert record["problem_type"] == "multi_label_classification" and list(record["per_class"]) == ["coat", "bright"]


@pytest.mark.parametrize(
    ("written", "option", "expected"),
    [
        (["coat", "bright"], [], ["coat", "bright"]),
        ("coat", [], "coat"),
        (["coat"], [], "coat"),
        ("price", ["--label_column", "coat", "bright"], ["coat", "bright"]),
        (["coat", "bright"], ["--label_column", "price"], "price"),
    ],
)
def test_one_name_is_one_column_of_labels(tmp_path, written, option, expected):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"dataset": "data.csv", "label_column": written}))
    (arguments,) = parse_recipe([DataArguments], [str(config), *option])
    assert arguments.label_column == expected


def test_a_run_too_short_to_log_has_a_card_without_curves(tmp_path, emoji_folder, tiny_checkpoint):
    (tmp_path / "curves.png").touch()  # of a longer run
    options = ["--max_steps", "2", "--logging_steps", "5", "--eval_strategy", "no", "--save_strategy", "no"]
    _, record, card = run(tmp_path, emoji_folder, tiny_checkpoint, *options)
    assert record["hyperparameters"]["steps"] == 2
    assert "confusion.png" in card and "curves.png" not in card
    assert (tmp_path / "confusion.png").exists() and not (tmp_path / "curves.png").exists()


def test_vectors_without_names_get_numbers(tmp_path, tiny_checkpoint):
    data = write_table(tmp_path / "data", [[i % 2, 1] for i in range(24)], datasets.List(datasets.Value("int64")))
    _, record, _ = run(tmp_path / "run", data, tiny_checkpoint, "--max_steps", "1")
    assert list(record["per_class"]) == ["output 0", "output 1"]


def test_bad_images_are_skipped_on_request(tmp_path, emoji_folder, tiny_checkpoint):
    data = tmp_path / "data"
    shutil.copytree(emoji_folder, data / "train")
    shutil.copytree(emoji_folder, data / "test")
    (data / "test" / "Animals & Nature" / "0.png").touch()  # the first of all evaluation images
    (data / "train" / "Flags" / "0.png").write_text("no image")
    options = ["--num_train_epochs", "1", "--dataloader_drop_last", "false", "--on_bad_image", "skip"]
    metrics, record, card = run(tmp_path / "run", data, tiny_checkpoint, *options)
    assert metrics["eval_samples"] == record["dataset"]["evaluation_rows"] == 35
    assert record["dataset"]["train_rows"] == 35 and "35 (1 more could not be read)" in card
    assert (tmp_path / "run" / "examples.png").stat().st_size > 5_000


def test_the_card_says_which_part_of_a_run_its_time_is_of(tmp_path, emoji_folder, tiny_checkpoint):
    options = ["--save_strategy", "steps", "--save_steps", "1"]
    _, record, card = run(tmp_path / "run", emoji_folder, tiny_checkpoint, "--max_steps", "2", *options)
    assert record["resumed_at_step"] == 0 and "since the resume" not in card
    more = ["--max_steps", "3", "--resume_from_checkpoint", "true"]
    _, record, card = run(tmp_path / "run", emoji_folder, tiny_checkpoint, *options, *more)
    assert record["resumed_at_step"] == 2
    assert "Training time since the resume at step 2" in card and "Mean training loss since the resume" in card


def test_a_stream_is_trained_on_and_drawn(tmp_path, tiny_checkpoint):
    data = write_table(tmp_path / "data", [i % 2 for i in range(24)], datasets.ClassLabel(names=["even", "odd"]))
    shutil.copy(data / "train.parquet", data / "test.parquet")
    options = ["--max_steps", "2", "--streaming", "true"]
    metrics, record, _ = run(tmp_path / "run", data, tiny_checkpoint, *options)
    assert list(record["per_class"]) == ["even", "odd"] and metrics["eval_samples"] == 24
    with pytest.raises(ValueError, match="without `streaming`"):
        run(tmp_path / "other", data, tiny_checkpoint, *options, "--problem_type", "regression")


def test_tars_are_streamed_where_the_names_of_the_classes_are_given(tmp_path, tiny_checkpoint):
    data, names = tmp_path / "data", ["even", "odd"]
    data.mkdir()
    for split, classes in (("train", "01"), ("test", names)):  # ids and names
        members = {}
        for i in range(24):
            members |= {f"{i:02d}.png": encode(noise(16, 16, seed=i)), f"{i:02d}.cls": classes[i % 2]}
        write_tar(data / f"{split}.tar", members)
    options = ["--max_steps", "2", "--streaming", "true"]
    output = tmp_path / "run"
    metrics, record, _ = run(output, data, tiny_checkpoint, *options, "--class_names", *names)
    assert list(record["per_class"]) == names and metrics["eval_samples"] == 24
    with pytest.raises(ValueError, match="give `class_names`"):
        run(tmp_path / "other", data, tiny_checkpoint, *options)


def test_class_names_can_be_in_a_file(tmp_path):
    write_tar(tmp_path / "train.tar", {"0.png": encode(noise(16, 16, seed=0)), "0.cls": "tabby cat"})
    shutil.copy(tmp_path / "train.tar", tmp_path / "test.tar")
    names = tmp_path / "names.txt"
    names.write_text("goldfish\ntabby cat\n\n")
    options = {"dataset": str(tmp_path), "streaming": True}
    train, test, _ = DataArguments(class_names=[str(names)], **options).load(seed=0)
    assert train.label_names == test.label_names == ["goldfish", "tabby cat"]
    assert train[0]["label"] == 1
    with pytest.raises(FileNotFoundError, match="one name per line"):
        DataArguments(class_names=["missing.txt"], **options).load(seed=0)


def test_options_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`class_names` are for `streaming`"):
        DataArguments(dataset="fashion-mnist", class_names=["a", "b"]).load(seed=0)
    with pytest.raises(ValueError, match="one column of labels; got coat, bright"):
        DataArguments(dataset="x", streaming=True, label_column=["coat", "bright"]).load(seed=0)


def test_folders_named_by_numbers_can_be_numbers(tmp_path, tiny_checkpoint):
    for i, image in enumerate(pictures()):
        folder = tmp_path / "ages" / ("7", "31.5")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")
    options = ["--num_train_epochs", "1", "--problem_type", "regression"]
    metrics, record, _ = run(tmp_path / "run", tmp_path / "ages", tiny_checkpoint, *options)
    # Half the pictures are 12.25 below the mean and half above, and a run this short has not left the mean.
    assert record["problem_type"] == "regression" and 8 < metrics["eval_rmse"] < 16


@pytest.mark.parametrize(
    ("splits", "options", "expected"),
    [
        (["train"], {"holdout_if_missing": 0.2}, "0.2 of train"),
        (["train", "test"], {"holdout_if_missing": 0.2}, "test"),
        (["train", "validation", "test"], {"holdout_if_missing": 0.2}, "validation"),
        (["train", "test"], {"holdout_if_missing": 0.2, "holdout": 0.3}, "0.3 of train"),
        (["train", "test"], {"holdout_if_missing": 0.2, "eval_split": "train"}, "train"),
    ],
)
def test_rows_are_held_out_only_where_a_split_is_missing(tmp_path, splits, options, expected):
    for split in splits:
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, image in enumerate(pictures(5)):
                image.save(tmp_path / split / name / f"{i}.png")
    train, held_out, name = DataArguments(dataset=str(tmp_path), **options).load(seed=0)
    assert name == expected
    if expected == "0.2 of train":
        assert (len(train), sorted(held_out["label"])) == (8, [0, 1])


def test_the_folder_config_asks_for_a_folder():
    settings = yaml.safe_load(Path(FOLDER).read_text())
    with pytest.raises(FileNotFoundError, match="path/to/folder"):
        DataArguments(dataset=settings["dataset"]).load(seed=0)
