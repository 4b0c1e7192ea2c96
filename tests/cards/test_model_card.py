import ast
import json
import re

import pytest
from huggingface_hub import ModelCard, metadata_eval_result

from hf_vitfm.cards.model_card import MARKER, create_model_card
from hf_vitfm.cards.redact import redact, redact_command


CLASSES = ["T-shirt/top", "Trouser", "a|b *c* <i>", "Dress", "Coat", "Sandal", "Shirt"]
CONFIG = {
    "model_type": "vitfm_vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 32,
    "patch_size": 4,
    "num_channels": 3,
    "pooling": "mean",
    "id2label": {str(index): name for index, name in enumerate(CLASSES)},
}
PROCESSOR = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
RESULTS = {
    "epoch": 10.0,
    "eval_loss": 0.41234,
    "eval_top1": 0.873,
    "eval_top5": 0.998,
    "eval_mean_per_class": 0.8712,
    "train_loss": 0.52,
    "train_runtime": 83.4,
}
RUN = {
    "task": "image-classification",
    "recipe": "recipes/vit/finetune.py",
    "config": "recipes/vit/configs/fashion_scratch.yaml",
    "command": "python recipes/vit/finetune.py recipes/vit/configs/fashion_scratch.yaml",
    "dataset": {
        "name": "Fashion-MNIST",
        "id": "fashion-mnist",
        "license": "mit",
        "train_rows": 4000,
        "evaluation_split": "test",
        "evaluation_rows": 1000,
    },
    "base_model": None,
    "hyperparameters": {"learning_rate": 0.001, "layer_decay": None, "load_best_model_at_end": True, "seed": 0},
    "versions": {"hf_vitfm": "0.1.0", "transformers": "5.23.0", "torch": "2.11.0"},
    "hardware": "2 CPU cores",
    "parameters": 2_689_354,
    "per_class": dict.fromkeys(CLASSES, 0.9) | {"Shirt": 0.62, "Coat": None},
}


@pytest.fixture
def write_run(tmp_path):
    """Write the four files of a run, with changed or (where the change is `...`) missing fields of any of them."""

    def write(config=None, processor=None, results=None, run=None):
        contents = {
            "config.json": {**CONFIG, **(config or {})},
            "preprocessor_config.json": {**PROCESSOR, **(processor or {})},
            "all_results.json": {**RESULTS, **(results or {})},
            "run.json": {**RUN, **(run or {})},
        }
        for name, content in contents.items():
            kept = {key: value for key, value in content.items() if value is not ...}
            (tmp_path / name).write_text(json.dumps(kept), encoding="utf-8")
        return tmp_path

    return write


def test_metadata_loads_back_and_agrees_with_metadata_eval_result(write_run):
    directory = write_run()
    path = create_model_card(directory)
    assert path == directory / "README.md"
    card = ModelCard.load(path)
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "hf_vitfm"
    assert metadata["pipeline_tag"] == "image-classification"
    assert "license" not in metadata and "datasets" not in metadata and "base_model" not in metadata
    assert [result.metric_value for result in card.data.eval_results] == [0.873, 0.998, 0.8712]
    expected = metadata_eval_result(
        model_pretty_name=directory.name,
        task_pretty_name="Image classification",
        task_id="image-classification",
        metrics_pretty_name="Top-1 accuracy",
        metrics_id="accuracy",
        metrics_value=0.873,
        dataset_pretty_name="Fashion-MNIST",
        dataset_id="fashion-mnist",
        dataset_split="test",
    )["model-index"]
    del expected[0]["results"][0]["metrics"][0]["verified"]
    ours = metadata["model-index"]
    ours[0]["results"][0]["metrics"] = ours[0]["results"][0]["metrics"][:1]
    assert ours == expected


def test_saving_the_loaded_card_changes_nothing(write_run, tmp_path):
    path = create_model_card(write_run())
    ModelCard.load(path).save(tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == path.read_text()


def test_hub_identifiers_and_licence_reach_the_metadata(write_run):
    dataset = {**RUN["dataset"], "id": "owner/pets"}
    directory = write_run(run={"base_model": "owner/vit-base", "dataset": dataset, "license": "Apache-2.0"})
    metadata = ModelCard.load(create_model_card(directory, repo_id="me/my-model")).data.to_dict()
    assert metadata["base_model"] == "owner/vit-base" and metadata["base_model_relation"] == "finetune"
    assert metadata["datasets"] == ["owner/pets"]
    assert metadata["license"] == "apache-2.0"
    assert metadata["model-index"][0]["name"] == "my-model"
    assert 'model = "me/my-model"' in (directory / "README.md").read_text()


def test_unusual_licence_is_named_as_other(write_run):
    metadata = ModelCard.load(create_model_card(write_run(run={"license": "My own, v2"}))).data.to_dict()
    assert metadata["license"] == "other" and metadata["license_name"] == "my-own-v2"


def test_body_states_the_facts_of_the_files(write_run):
    text = create_model_card(write_run()).read_text()
    for fact in (
        "87.3 %",
        "85.1 to 89.2 %",
        "99.8 %",
        "| Shirt | 62.0 % |",
        "| Coat | not evaluated |",
        r"a\|b \*c\* \<i\>",
        "2.7 million parameters",
        "64 patches of 4x4 pixels",
        "the mean of the patch tokens",
        "resized to 32x32 (bicubic)",
        "randomly initialised weights",
        "1 min 23 s",
        "| `learning_rate` | `0.001` |",
        "the weakest, Shirt, has an accuracy of 62.0 %",
        "Classes without an image in the evaluation: 1.",
        "best one on these evaluation images was kept",
        "No licence has been stated for the weights",
        "dosovitskiy2021image",
        "| transformers | 5.23.0 |",
    ):
        assert fact in text, fact
    assert "layer_decay" not in text
    assert ".png" not in text


def test_intended_use_and_what_is_not_known_are_said(write_run):
    text = create_model_card(write_run(run={"dataset": {**RUN["dataset"], "license": None}})).read_text()
    for words in ("## Intended use", "## Limitations", "Its licence is not known.", "No licence has been stated"):
        assert words in text
    assert "| Hardware |" in text and "| Training time |" in text


def test_tables_have_equal_columns_in_every_line(write_run):
    text = create_model_card(write_run()).read_text()
    for table in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_code_in_the_card_is_valid_python(write_run):
    text = create_model_card(write_run()).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
        assert block.startswith("import hf_vitfm")


def test_pictures_are_shown_when_they_are_there(write_run):
    directory = write_run()
    (directory / "confusion.png").touch()
    text = create_model_card(directory).read_text()
    assert "](confusion.png)" in text and "curves.png" not in text


def test_many_classes_are_shortened_to_the_best_and_worst(write_run):
    names = [f"class {index}" for index in range(100)]
    directory = write_run(
        config={"id2label": dict(enumerate(names))},
        run={"per_class": {name: index / 100 for index, name in enumerate(names)}},
    )
    text = create_model_card(directory).read_text()
    assert "class 99 |" in text and "class 0 |" in text and "class 50 |" not in text


def test_two_classes_need_neither_top5_nor_id2label(write_run):
    directory = write_run(
        config={"id2label": ...}, results={"eval_top5": ...}, run={"per_class": {"cat": 1.0, "dog": 0.5}}
    )
    assert "Top-5" not in create_model_card(directory).read_text()


def test_other_architectures_are_described_by_what_is_known(write_run):
    config = dict.fromkeys(CONFIG, ...) | {
        "id2label": CONFIG["id2label"],
        "model_type": "convnext",
        "architectures": ["ConvNextForImageClassification"],
    }
    path = create_model_card(write_run(config=config))
    assert ModelCard.load(path).data.library_name == "transformers"
    assert "# ConvNextForImageClassification for Fashion-MNIST" in path.read_text()
    assert "dosovitskiy" not in path.read_text()


def test_no_private_path_or_secret_reaches_the_card(write_run):
    directory = write_run(
        run={
            "recipe": "/srv/alice/work/recipes/vit/finetune.py",
            "config": "C:\\Users\\alice\\quick.yaml",
            "command": "python /srv/alice/finetune.py --output_dir='/srv/alice/my runs/run one' --hub_token hf_abcdefgh123",
            "dataset": {**RUN["dataset"], "name": "~/alice/pets", "id": "/srv/alice/pets"},
            "base_model": "/mnt/alice/vit-base",
            "hyperparameters": {
                "output_dir": "/srv/alice/runs/one",
                "logging_dir": "$HOME/alice/logs",
                "hub_token": "hf_abcdefgh123",
                "nested": {"paths": ["../alice/x.json"]},
                "accelerator": "file:///srv/alice/fsdp.yaml",
            },
            "hardware": "cpu (/srv/alice/driver)",
        }
    )
    text = create_model_card(directory).read_text()
    assert "alice" not in text and "hf_abcdefgh" not in text and "hub_token `" not in text
    for kept in (
        "finetune.py",
        "quick.yaml",
        "'--output_dir=run one'",
        "pets",
        "`vit-base`",
        "logs",
        "x.json",
        "fsdp.yaml",
    ):
        assert kept in text, kept
    metadata = ModelCard.load(directory / "README.md").data.to_dict()
    assert "base_model" not in metadata and "datasets" not in metadata


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/srv/My Name/data", "data"),
        ("/srv/alice/", "alice"),
        ("~/pics", "pics"),
        ("data at /mnt/x/y, and (/opt/z).", "data at y, and (z)."),
        ("data:/mnt/x", "data:x"),
        ("\\\\server\\share\\x", "x"),
        ("https://user:word@host/x/y", "https://host/x/y"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("recipes/vit/finetune.py", "recipes/vit/finetune.py"),
        ("16/32, a / b, T-shirt/top", "16/32, a / b, T-shirt/top"),
        ("/", "/"),
        ("///", "/"),
        (3, 3),
        (None, None),
        ({"hub_token": "abc", "num_tokens": 4}, {"num_tokens": 4}),
    ],
)
def test_redaction_keeps_what_is_public(value, expected):
    assert redact(value) == expected


def test_commands_are_redacted_word_by_word():
    assert redact_command("python x.py --api-key zzz --token=a --lr 1.0e-3") == (
        "python x.py --api-key *** --token=*** --lr 1.0e-3"
    )
    assert redact_command("python 'unbalanced /srv/alice/b") == "python 'unbalanced b"
    assert redact_command("ROOT=/srv/alice/x python y.py\n--z") == "ROOT=x python y.py --z"


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "all_results.json", "run.json"])
def test_missing_file_is_named(write_run, name):
    directory = write_run()
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        create_model_card(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"patch_size": ...}}, "config.json has no field `patch_size`"),
        ({"results": {"eval_top1": ...}}, "all_results.json has no field `eval_top1`"),
        ({"results": {"eval_top5": ...}}, "all_results.json has no field `eval_top5`"),
        ({"results": {"eval_top1": 87.3}}, r"`eval_top1` in all_results.json must be a fraction in 0\.\.1; got 87.3"),
        ({"results": {"eval_loss": float("nan")}}, "`eval_loss` in all_results.json must be a finite number"),
        ({"run": {"hardware": ...}}, "run.json has no field `hardware`"),
        ({"run": {"dataset": {"name": "x"}}}, "run.json has no field `dataset.id`"),
        ({"run": {"task": "image-segmentation"}}, "`task` in run.json must be 'image-classification'"),
        ({"run": {"parameters": "many"}}, "`parameters` in run.json must be a whole number"),
        ({"run": {"per_class": {"a": 1.0}}}, "must name the 7 classes of config.json; got 1"),
        ({"run": {"per_class": {**RUN["per_class"], "Dress": 62}}}, "'Dress' must be a fraction"),
        ({"run": {"versions": None}}, "`versions` in run.json must be an object"),
    ],
)
def test_bad_field_is_named_and_nothing_is_written(write_run, changes, message):
    directory = write_run(**changes)
    with pytest.raises(ValueError, match=message):
        create_model_card(directory)
    assert not (directory / "README.md").exists()


def test_broken_json_and_bad_repo_id_are_named(write_run):
    directory = write_run()
    with pytest.raises(ValueError, match="`repo_id` must be an owner"):
        create_model_card(directory, repo_id="/srv/alice/model")
    (directory / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not valid JSON"):
        create_model_card(directory)


def test_only_our_own_readme_is_replaced(write_run):
    directory = write_run()
    readme = create_model_card(directory)
    assert MARKER in readme.read_text()
    first = readme.read_text()
    assert create_model_card(directory).read_text() == first
    readme.write_text("# Mine\n")
    with pytest.raises(FileExistsError, match=r"README\.md.*overwrite=True"):
        create_model_card(directory)
    assert readme.read_text() == "# Mine\n"
    assert create_model_card(directory, overwrite=True).read_text() == first
    assert not list(directory.glob("*.partial"))
