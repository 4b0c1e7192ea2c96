"""The fine-tuning recipe: its command line, a whole small run, and the files that it leaves."""

import json
from pathlib import Path

import datasets
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, pipeline
from transformers import ViTForImageClassification as TheirViT

from hf_vitfm import ViTConfig as OurConfig
from hf_vitfm import ViTForImageClassification, load_image_processor
from hf_vitfm.data.samples import load_sample
from hf_vitfm.evaluation.predict import load_classifier
from hf_vitfm.training import fine_tuning
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.fine_tuning import ModelArguments, build_classifier
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, load_for_fine_tuning, parse_recipe
from hf_vitfm.training.targets import SINGLE, Targets
from recipes.vit import finetune
from tests.conversion.timm_models import images_for, save_timm, timm_model
from tests.data.images import encode, noise


CONFIGS = sorted(Path("recipes/vit/configs").glob("*.yaml"))
ANIMALS = Targets(SINGLE, ["cat", "dog", "bird"])
# The others differ from these in numbers alone.
ALIKE = {
    "finetune_l16_in1k_512",
    "transfer_cifar10",
    "transfer_cifar100",
    "transfer_pets",
    "transfer_flowers",
    "transfer_in1k",
}
SMOKED = [path for path in CONFIGS if path.stem not in ALIKE]
CLASSES = (ModelArguments, DataArguments, VisionTrainingArguments)


def parse(*argv: str):
    return parse_recipe(CLASSES, argv)


def with_dataset(path: Path) -> list[str]:
    """The command line of a configuration, which may leave the data set to it."""
    return [str(path), *([] if "dataset" in yaml.safe_load(path.read_text()) else ["--dataset", "fashion-mnist"])]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_is_and_parses(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("run:", "expect:", "measured:", "differs:"):
        assert any(line.startswith(f"# {word}") for line in header), word
    model, data, training = parse(*with_dataset(path), "--use_cpu", "--bf16", "false")
    assert training.output_dir == f"outputs/{path.stem}"
    assert set(yaml.safe_load(path.read_text())["model"]) <= set(OurConfig.__dataclass_fields__)


@pytest.mark.parametrize("path", SMOKED, ids=lambda path: path.stem)
def test_every_config_smokes(path, tmp_path):
    metrics = finetune.main([*with_dataset(path), "--smoke", "--use_cpu", "--output_dir", str(tmp_path)])
    assert 0 <= metrics["eval_top1"] <= 1
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "all_results.json", "run.json"):
        assert (tmp_path / name).exists(), name
    for name in ("curves.png", "confusion.png", "examples.png"):
        assert (tmp_path / name).stat().st_size > 5_000, name
    card = ModelCard.load(tmp_path / "README.md")
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert card.data.eval_results[0].metric_value == pytest.approx(results["eval_top1"], abs=1e-3)
    rows = load_sample("fashion-mnist")["test"]
    assert len(pipeline("image-classification", model=str(tmp_path), device="cpu")(rows[0]["image"])) == 5


def test_the_file_that_says_that_a_run_is_finished_is_written_after_the_card(tmp_path, monkeypatch):
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_vitfm.training.report.create_model_card", die)
    with pytest.raises(KeyboardInterrupt):
        finetune.main([*with_dataset(SMOKED[0]), "--smoke", "--use_cpu", "--output_dir", str(tmp_path)])
    assert (tmp_path / "all_results.json").exists() and not (tmp_path / "run.json").exists()


def test_a_smoke_run_says_what_it_was(tmp_path):
    token = "hf_" + "a" * 34
    argv = [
        "recipes/vit/configs/finetune_b16_in1k.yaml",
        "--smoke",
        "--use_cpu",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    finetune.main([*argv, "--hub_token", token])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Fashion-MNIST (smoke run)" in card
    assert "imagenet" not in card.split("---")[1] and "base_model" not in card.split("---")[1]
    run = (tmp_path / "run" / "run.json").read_text()
    assert token not in run and str(tmp_path) not in run


def test_a_stream_with_a_bad_image_goes_through_to_the_card(tmp_path):
    feature = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for split, rows in (("train", 24), ("test", 8)):
        images = [encode(noise(16, 16, seed=i)) if i else b"not an image" for i in range(rows)]
        columns = {"image": [{"bytes": data, "path": None} for data in images], "label": [i % 3 for i in range(rows)]}
        datasets.Dataset.from_dict(columns, features=feature).to_parquet(tmp_path / "data" / f"{split}.parquet")
    (tmp_path / "run.yaml").write_text(
        f"dataset: {tmp_path / 'data'}\nmodel: {SMOKE_MODEL}\nimage_size: 16\n".replace("'image_size': 16, ", "")
    )
    options = [
        "--streaming",
        "--on_bad_image",
        "skip",
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
        "--per_device_train_batch_size",
        "8",
    ]
    output = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "--report_to", "none"]
    metrics = finetune.main([str(tmp_path / "run.yaml"), *options, *output])
    assert 0 <= metrics["eval_top1"] <= 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["dataset"]["evaluation_rows"] == 7
    assert (tmp_path / "run" / "examples.png").stat().st_size > 5_000


def test_somebody_elses_readme_stops_the_run_before_training(tmp_path):
    (tmp_path / "README.md").write_text("my notes")
    with pytest.raises(FileExistsError, match="Move it away"):
        finetune.main(["recipes/vit/configs/fashion_scratch.yaml", "--smoke", "--output_dir", str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == "my notes"


def test_another_data_set_does_not_inherit_title_and_licence():
    _, data, _ = parse("recipes/vit/configs/fashion_scratch.yaml", "--dataset", "some/where", "--use_cpu")
    assert data.describe() == {"name": "some/where", "id": "some/where", "license": None}


def test_two_processes_make_one_run(two_processes, tmp_path):
    argv = ["recipes/vit/configs/fashion_scratch.yaml", "--smoke", "--output_dir", str(tmp_path)]
    first, second = two_processes.run(finetune.main, argv)
    assert first["eval_top1"] == second["eval_top1"]
    assert json.loads((tmp_path / "run.json").read_text())["hyperparameters"]["global_batch_size"] == 8
    assert (tmp_path / "README.md").exists()


def test_the_papers_fine_tuning_is_the_papers():
    model, data, training = parse("recipes/vit/configs/finetune_b16_in1k.yaml", "--use_cpu", "--bf16", "false")
    assert (training.optim, training.momentum, training.weight_decay) == ("sgd", 0.9, 0.0)
    assert (training.max_steps, training.warmup_steps, training.max_grad_norm) == (20_000, 500, 1.0)
    assert training.global_batch_size == 512
    assert training.lr_scheduler_type == "cosine"
    assert (model.image_size, model.model["head_init"]) == (384, "zeros")


def write(path: Path, **settings) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


BASE = {"dataset": "fashion-mnist", "output_dir": "out"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 0.1}, "unknown key 'learning_rat'. Did you mean 'learning_rate'"),
        ({"learning_rate": "1e-4"}, "is text, not a number"),
        ({"layer_decay": "0,5"}, "is text, not a number"),
    ],
)
def test_mistakes_in_a_config_are_named(tmp_path, capsys, settings, message):
    with pytest.raises(SystemExit):
        parse(write(tmp_path / "config.yaml", **BASE, **settings))
    assert message in capsys.readouterr().err


def test_a_misspelt_option_is_named(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", **BASE)
    for option in ("--layer_dekay", "--layer_dekay=0.5"):
        with pytest.raises(SystemExit):
            parse(config, option, "0.5")
        assert "unknown option --layer_dekay. Did you mean '--layer_decay'?" in capsys.readouterr().err


def test_a_missing_config_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("nowhere.yaml", "--dataset", "fashion-mnist")
    assert "cannot read the configuration 'nowhere.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold `key: value` lines; got list"),
        ("1: 2\n", "must hold `key: value` lines"),
        ("dataset: x\nsave_strategy: no\n", 'write save_strategy: "no"'),
        ("dataset: x\nmodel: [1]\n", "model must be a mapping"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, capsys, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse(str(tmp_path / "config.yaml"))
    assert message in capsys.readouterr().err


def test_the_configuration_comes_first(capsys):
    with pytest.raises(SystemExit):
        parse("--smoke", "recipes/vit/configs/fashion_scratch.yaml")
    assert "the configuration file comes first" in capsys.readouterr().err


def test_smoke_is_what_the_parsed_value_says():
    _, data, training = parse("recipes/vit/configs/fashion_scratch.yaml", "--smoke", "false")
    assert (data.smoke, training.max_steps) == (False, -1)
    _, data, training = parse(
        "recipes/vit/configs/fashion_scratch.yaml", "--smoke=true", "--resume_from_checkpoint", "true"
    )
    assert (data.smoke, training.max_steps, training.output_dir) == (True, 2, "outputs/fashion_scratch-smoke")
    assert training.resume_from_checkpoint is True


def test_options_go_over_the_file(tmp_path):
    path = write(tmp_path / "config.yaml", **BASE, learning_rate=0.5, crop_scale=[0.2, 1.0])
    _, data, training = parse(path, "--learning_rate", "0.25", "--dataset", "emoji", "--use_cpu")
    assert (training.learning_rate, training.crop_scale, data.dataset) == (0.25, [0.2, 1.0], "emoji")


def test_a_mapping_goes_over_the_entries_of_the_file(tmp_path, capsys):
    path = write(tmp_path / "config.yaml", **BASE, model={"patch_size": 7, "pooling": "mean"})
    model, _, _ = parse(path, "--use_cpu", "--model", "{pooling: cls, drop_path_rate: 0.1}")
    assert model.model == {"patch_size": 7, "pooling": "cls", "drop_path_rate": 0.1}
    assert parse(path, "--use_cpu", "--model", "{}")[0].model == {}
    with pytest.raises(SystemExit):
        parse(path, "--model", "pooling")
    assert "'pooling' is not a mapping" in capsys.readouterr().err


def test_holdout_evaluates_on_training_images():
    train, held_out, name = DataArguments(dataset="fashion-mnist", holdout=0.1).load(seed=0)
    assert (len(train), len(held_out), name) == (3_600, 400, "0.1 of train")
    assert sorted(held_out["label"]) == sorted(list(range(10)) * 40)


def test_holdout_takes_a_number_of_rows_too():
    data = DataArguments(dataset="fashion-mnist", train_rows=1_000, holdout=200)
    train, held_out, name = data.load(seed=0)
    assert (len(train), len(held_out), name) == (800, 200, "200 of train")
    other_seed, _, _ = DataArguments(dataset="fashion-mnist", train_rows=1_000, eval_split="test").load(seed=1)
    pixels = {row["image"].tobytes() for row in other_seed}
    assert all(row["image"].tobytes() in pixels for row in train)  # the seed does not choose the 1,000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 1.5}, "from 1 to 3999; got 1.5"),
        ({"holdout": 4_000}, "from 1 to 3999; got 4000"),
        ({"holdout": 0.0}, "got 0"),
        ({"train_rows": 5_000}, "between 1 and the 4000 rows"),
    ],
)
def test_rows_that_are_not_there_are_not_held_out(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(dataset="fashion-mnist", **options).load(seed=0)


def test_holdout_as_an_option_goes_over_the_evaluation_split_of_the_file(tmp_path):
    path = write(tmp_path / "config.yaml", **BASE, eval_split="test")
    _, data, _ = parse(path, "--use_cpu", "--holdout", "0.1")
    assert (data.holdout, data.eval_split) == (0.1, None)
    _, data, _ = parse(path, "--use_cpu", "--holdout", "0.1", "--eval_split", "test")
    with pytest.raises(ValueError, match="not both"):
        data.load(seed=0)


def test_a_file_without_a_data_set_keeps_its_split(tmp_path):
    path = write(tmp_path / "config.yaml", output_dir="out", eval_split="test")
    _, data, _ = parse(path, "--use_cpu", "--dataset", "emoji")
    assert data.eval_split == "test"


def test_an_image_processor_from_scratch_takes_fields():
    fields = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    args = ModelArguments(variant="Ti/16", image_size=32, image_processor=fields)
    _, processor = build_classifier(args, ANIMALS, smoke=False)
    image = Image.new("RGB", (80, 60))
    assert processor(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert processor.size["shortest_edge"] == 40


def test_a_missing_split_is_named():
    with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
        DataArguments(dataset="fashion-mnist", eval_split="val").load(seed=0)


def test_a_checkpoint_of_transformers_gets_a_new_head_and_size(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    TheirViT(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    args = ModelArguments(checkpoint=str(tmp_path), image_size=32, model={"drop_path_rate": 0.1})
    model, processor = build_classifier(args, ANIMALS, smoke=False)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "bird"}
    assert torch.count_nonzero(model.classifier.weight) == 0
    assert (model.config.image_size, processor.size["height"], model.config.drop_path_rate) == (32, 32, 0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"hidden_size": 32}, "do not fit"), ({"num_hidden_layers": 4}, "vit.encoder.layers.2")],
)
def test_fine_tuning_refuses_weights_that_would_start_at_random(tmp_path, fields, message):
    model, _ = build_classifier(ModelArguments(), ANIMALS, smoke=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_for_fine_tuning(str(tmp_path), **fields)
    assert load_for_fine_tuning(str(tmp_path), pooling="mean", num_labels=5).config.num_labels == 5


@pytest.mark.parametrize("load", [load_for_fine_tuning, load_image_processor, load_classifier])
def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path, load):
    for source in (str(tmp_path / "nope"), "./nope", "../nope", "runs/of/nope"):
        with pytest.raises(FileNotFoundError, match=f"{source}' does not exist"):
            load(source)


def test_positions_that_cannot_be_resized_are_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.DeiTConfig(**sizes, image_size=16, patch_size=8)
    transformers.DeiTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="position_embeddings"):
        load_for_fine_tuning(str(tmp_path), image_size=32)
    with pytest.raises(ValueError, match="has no field pooling"):
        load_for_fine_tuning(str(tmp_path), pooling="mean")


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_other_checkpoints_get_a_new_head_too(tmp_path, kind):
    if kind == "swin":
        config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2])
        transformers.SwinForImageClassification(config).save_pretrained(tmp_path)
    else:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    args = ModelArguments(checkpoint=str(tmp_path), image_size=64)
    model, processor = build_classifier(args, ANIMALS, smoke=False)
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 3)
    assert (model.config.model_type, processor.size["height"]) == (kind, 64)


def test_the_reload_check_notices_a_wrong_model(tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "pipeline", lambda *args, **kwargs: lambda image: [{"label": "?", "score": 1.0}])
    with pytest.raises(RuntimeError, match="disagree"):
        finetune.main(["recipes/vit/configs/fashion_scratch.yaml", "--smoke", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("family", ["augreg", "clip", "deit distilled"])
@pytest.mark.parametrize("source", ["folder", "weights alone"])
def test_timms_models_are_fine_tuned_as_ours(tmp_path, family, source):
    theirs = timm_model(family)
    folder = save_timm(theirs, tmp_path / "timm")
    path = folder if source == "folder" else folder / "model.safetensors"
    if source == "weights alone":
        (folder / "config.json").unlink()
    fields = {"num_labels": 3, "num_attention_heads": 4, "drop_path_rate": 0.1}
    model = load_for_fine_tuning(str(path), **fields).eval()
    assert isinstance(model, ViTForImageClassification) and model.config.num_labels == 3
    theirs.reset_classifier(0)
    images = images_for(theirs)
    with torch.no_grad():
        assert (model.vit(images).pooler_output - theirs.eval().forward_features(images)[:, 0]).abs().max() < 1e-5
