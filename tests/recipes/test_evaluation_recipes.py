"""Zero-shot, linear probe and few-shot: what each configuration says, and runs of them in small and for real."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from hf_vitfm import CLIPModel, build_transform, load_image_processor, load_tokenizer
from hf_vitfm.data.datasets import load_images
from hf_vitfm.data.samples import sample_checkpoint
from hf_vitfm.evaluation import features, zero_shot
from hf_vitfm.training.feature_arguments import EvaluationArguments, FeatureArguments, PromptArguments
from hf_vitfm.training.recipe import DataArguments, parse_recipe
from recipes.clip import few_shot as few_shot_recipe
from recipes.clip import linear_probe as probe_recipe
from recipes.clip import zero_shot as zero_shot_recipe
from tests.recipes.test_configs import CONFIGS, EVALUATION


FASHION = {"dataset": "fashion-mnist", "pooling": "mean", "C": None, "validation": 0.2, "metric": "accuracy"}
CLIP_PROBE = {
    "checkpoint": "openai/clip-vit-base-patch32",
    "pooling": "pre_projection",  # CLIP, appendix A.3
    "eval_split": "validation",
    "C": None,
    "metric": "accuracy",
    "max_iterations": 1000,
}
TABLE = {  # what the sources say: papers, OpenAI's and big_vision's code
    "clip/zero_shot_imagenet": {
        "dataset": "ILSVRC/imagenet-1k",
        "eval_split": "validation",
        "prompts": "imagenet",
        "classnames": None,
        "templates": None,
        "checkpoint": "openai/clip-vit-base-patch32",
        "bf16": False,
    },
    "clip/zero_shot_emoji": {
        "dataset": "emoji",
        "eval_split": "twitter",
        "label_column": "category",
        "prompts": "emoji",
        "checkpoint": "emoji-clip",
    },
    "clip/linear_probe_imagenet": {**CLIP_PROBE, "dataset": "ILSVRC/imagenet-1k", "train_rows": None},
    "clip/linear_probe_food101": {**CLIP_PROBE, "dataset": "ethz/food101", "validation": 0.2},
    "clip/linear_probe_fashion": {**FASHION, "checkpoint": "fashion-mae", "eval_split": None},
    "clip/few_shot_imagenet": {
        "checkpoint": "google/vit-base-patch16-224-in21k",
        "pooling": "pooler",
        "methods": ["ridge"],
        "shots": [1, 5, 10, 25],
        "seeds": [0, 1, 2],
        "l2": 1024,
        "prompts": None,
    },
    "clip/few_shot_emoji": {
        "train_split": "google",
        "eval_split": "twitter",
        "label_column": "category",
        "pooling": "pre_projection",
        "prompts": "emoji",
        "methods": ["logistic", "ridge", "nearest_mean"],
        "shots": [1, 2, 4, 8, 16],
        "C": 0.316,
    },
}
CLASSES = {
    "zero_shot": (EvaluationArguments, PromptArguments, FeatureArguments),
    "linear_probe": (DataArguments, probe_recipe.ProbeArguments, FeatureArguments),
    "few_shot": (DataArguments, PromptArguments, few_shot_recipe.FewShotArguments, FeatureArguments),
}
RECIPES = {"zero_shot": zero_shot_recipe, "linear_probe": probe_recipe, "few_shot": few_shot_recipe}
PICTURES = {
    "zero_shot": {"confusion.png", "per_class.png"},
    "linear_probe": {"confusion.png", "per_class.png", "search.png"},
    "few_shot": {"few_shot.png"},
}


def kind_of(name: str) -> str:
    return next(kind for kind in RECIPES if name.startswith(f"clip/{kind}"))


def run(name: str, *options: str) -> dict:
    return RECIPES[kind_of(name)].main([str(CONFIGS[name]), "--use_cpu", *options])


def result(directory: Path, kind: str) -> dict:
    return json.loads((directory / f"{kind}.json").read_text())


def test_no_configuration_is_forgotten():
    assert set(TABLE) == EVALUATION


@pytest.mark.parametrize("name", TABLE)
def test_the_configuration_is_what_its_source_says(name):
    parsed = parse_recipe(CLASSES[kind_of(name)], [str(CONFIGS[name])])
    values = {item.name: getattr(part, item.name) for part in parsed for item in fields(part)}
    assert {key: values[key] for key in TABLE[name]} == TABLE[name]
    assert values["output_dir"] == f"outputs/{name.partition('/')[2]}"
    header = [line for line in CONFIGS[name].read_text().splitlines() if line.startswith("#")]
    for word in ("run:", "expect:", "measured:", "differs:"):
        assert any(line.startswith(f"# {word}") for line in header), word


@pytest.mark.parametrize("name", TABLE)
def test_smoke(name, tmp_path):
    run(name, "--smoke", "--output_dir", str(tmp_path))
    kind = kind_of(name)
    record = result(tmp_path, kind)
    assert record["recipe"] == f"recipes/clip/{kind}.py" and record["config"] == str(CONFIGS[name])
    assert str(tmp_path.parent) not in json.dumps(record)
    assert record["dataset"]["id"] == "fashion-mnist" and record["model"]["name"] == "emoji-clip"
    assert {path.name for path in tmp_path.glob("*.png")} == PICTURES[kind]
    for picture in tmp_path.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 300
    if kind == "zero_shot":
        assert record["rows"] == sum(row["images"] for row in record["per_class"].values()) == 32
        assert record["prompts"]["source"] == "this library's names for fashion-mnist"
    else:
        assert record["dataset"]["train_rows"] == record["dataset"]["eval_rows"] == 32


@pytest.fixture(scope="module")
def emoji_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("emoji")
    metrics = run("clip/zero_shot_emoji", "--output_dir", str(directory))
    return directory, metrics


@torch.no_grad()
def test_zero_shot_is_that_of_the_formula(emoji_run):
    directory, _ = emoji_run
    rows = load_images("emoji", label_column="category")["twitter"]
    source = sample_checkpoint("emoji-clip")
    model, transform = CLIPModel.from_pretrained(source).eval(), build_transform(load_image_processor(source))
    record = result(directory, "zero_shot")
    images = torch.stack([transform(image) for image in rows["image"]])
    embeds = torch.cat([model.get_image_features(pixel_values=part).pooler_output for part in images.split(300)])
    texts = load_tokenizer(source)(list(record["per_class"]), padding=True, return_tensors="pt")
    names = model.get_text_features(**texts).pooler_output
    cosines = torch.nn.functional.cosine_similarity(embeds[:, None].double(), names[None].double(), dim=-1).numpy()
    predicted, labels = cosines.argmax(1), np.array(rows["label"])
    assert record["top1"] == pytest.approx(accuracy_score(labels, predicted))
    assert record["mean_per_class"] == pytest.approx(recall_score(labels, predicted, average="macro"))
    best = confusion_matrix(labels, predicted, normalize="true").diagonal()
    assert [row["accuracy"] for row in record["per_class"].values()] == pytest.approx(best.tolist())


def test_a_second_run_computes_nothing(emoji_run, monkeypatch):
    directory, metrics = emoji_run

    def refuse(*args, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_compute", refuse)
    monkeypatch.setattr(zero_shot, "embed_prompts", refuse)
    assert run("clip/zero_shot_emoji", "--output_dir", str(directory)) == metrics
    with pytest.raises(AssertionError, match="computed again"):
        run("clip/zero_shot_emoji", "--output_dir", str(directory), "--bf16")


def test_committed_numbers_are_those_of_the_command(emoji_run):
    directory, _ = emoji_run
    committed = json.loads(Path("recipes/results/zero_shot_emoji.json").read_text())
    measured = result(directory, "zero_shot")
    for name in ("top1", "top5", "mean_per_class"):
        assert measured[name] == pytest.approx(committed[name], abs=2e-3)  # four images
    few = json.loads(Path("recipes/results/few_shot_emoji.json").read_text())
    assert few["zero_shot"] == committed["top1"]


def test_documents_tell_the_committed_numbers():
    text = Path("recipes/README.md").read_text()
    committed = {path.stem: json.loads(path.read_text()) for path in Path("recipes/results").glob("*.json")}
    told = {
        "clip/zero_shot_emoji": [committed["zero_shot_emoji"][name] for name in ("top1", "top5", "mean_per_class")],
        "clip/linear_probe_fashion": [
            committed["linear_probe_fashion"]["score"],
            committed["linear_probe_emoji_clip"]["score"],
        ],
        "clip/few_shot_emoji": [
            mean for method in committed["few_shot_emoji"]["methods"].values() for mean in method["mean"].values()
        ],
    }
    for name, numbers in told.items():
        assert [f"{100 * number:.1f}" for number in numbers if f"{100 * number:.1f}" not in text] == []
        header = CONFIGS[name].read_text().partition("# differs:")[0]
        assert f"{100 * numbers[0 if name != 'clip/few_shot_emoji' else 4]:.1f} %" in header
    for method in committed["few_shot_emoji"]["methods"].values():
        assert method["shots_equal_to_zero_shot"] in text


def test_two_processes_give_what_one_gives(two_processes, tmp_path):
    options = ["--smoke", "--use_cpu", "--per_device_eval_batch_size", "5"]
    config = str(CONFIGS["clip/zero_shot_imagenet"])
    one = zero_shot_recipe.main([config, *options, "--output_dir", str(tmp_path / "one")])
    both = two_processes.run(zero_shot_recipe.main, [config, *options, "--output_dir", str(tmp_path / "two")])
    assert both == [one, one]
    files = [result(tmp_path / name, "zero_shot") for name in ("one", "two")]
    assert files[0]["per_class"] == files[1]["per_class"]
    config = str(CONFIGS["clip/few_shot_emoji"])
    first, second = two_processes.run(few_shot_recipe.main, [config, *options, "--output_dir", str(tmp_path / "few")])
    assert first["methods"] and second == {}  # the first one alone fits and writes


def test_a_probe_searches_on_the_split_that_is_named_and_learns_from_it_too(tmp_path):
    rows, data = load_images("fashion-mnist")["train"].shuffle(seed=0), tmp_path / "data"
    data.mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        rows.select(range(60 * number, 60 * (number + 1))).to_parquet(data / f"{split}.parquet")
    config = ["clip/linear_probe_fashion", "--dataset", str(data), "--checkpoint", "emoji-clip", "--pooling", "cls"]
    named = run(
        *config, "--eval_split", "test", "--validation_split", "validation", "--output_dir", str(tmp_path / "a")
    )
    assert named["dataset"]["eval_split"] == "test" and named["searched_on"] == "validation"
    fixed = run(*config, "--eval_split", "test", "--C", str(named["C"]), "--output_dir", str(tmp_path / "b"))
    assert fixed["C"] == named["C"] and fixed["searched"] == [] and not (tmp_path / "b" / "search.png").exists()
    assert named["score"] != fixed["score"]  # twice the images


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, [0, 1, 2]),
        ([f"n{number:08d}" for number in range(1000)], [0, 1, 2]),
        (sorted(map(str, range(1000))), [0, 1, 10]),  # as folders are sorted
        ([f"a class {number}" for number in range(1000)], [0, 1, 2]),
        (["tench", "hammerhead", "goldfish"], [0, 4, 1]),
    ],
)
def test_names_of_imagenet_follow_the_labels(monkeypatch, labels, expected):
    monkeypatch.setattr("hf_vitfm.training.feature_arguments.label_names", lambda rows: labels)
    prompts = PromptArguments(prompts="imagenet")
    found = prompts.read(None, smoke=False)
    everything = PromptArguments(prompts="imagenet")
    monkeypatch.setattr("hf_vitfm.training.feature_arguments.label_names", lambda rows: None)
    names = everything.read(None, smoke=False).names
    assert list(found.names[:3]) == [names[number] for number in expected]
    assert len(found.names) == (1000 if labels is None else len(labels)) and len(found.templates) == 80


def test_names_from_files_beside_the_data_and_of_the_labels(tmp_path):
    rows = load_images("fashion-mnist")["test"]
    (tmp_path / "classnames.txt").write_text("\n".join(f"thing {i}" for i in range(10)))
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    files = [tmp_path / name for name in ("classnames.txt", "zeroshot_classification_templates.txt")]
    beside = PromptArguments(prompts=str(tmp_path)).read(rows, smoke=False)
    given = PromptArguments(classnames=str(files[0]), templates=str(files[1])).read(rows, smoke=False)
    assert beside.names == given.names == tuple(f"thing {i}" for i in range(10))
    assert beside.templates == given.templates == ("a {}", "the {}")
    labels = PromptArguments(prompts="labels").read(rows, smoke=False)
    assert labels.names[1] == "Trouser" and "not CLIP's prompts" in labels.source
    assert PromptArguments().read(rows, smoke=False) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip/zero_shot_emoji", ["--prompts", "fashion-mnist"], "9 classes, and there are 10 names"),
        ("clip/zero_shot_emoji", ["--classnames", "a.txt"], "go together"),
        ("clip/zero_shot_emoji", ["--eval_split", "apple"], "no split apple; it has google, twitter"),
        ("clip/zero_shot_emoji", ["--checkpoint", "fashion-mae"], "embeds no texts"),
        ("clip/few_shot_emoji", ["--methods", "svm"], "`methods` must be one or more of ridge"),
        ("clip/linear_probe_fashion", ["--streaming", "true"], "leave `streaming` out"),
    ],
)
def test_what_does_not_fit_is_an_error(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(name, *options, "--output_dir", str(tmp_path))


def test_zero_shot_needs_to_know_where_names_come_from(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(f"dataset: fashion-mnist\ncheckpoint: emoji-clip\noutput_dir: {tmp_path}\n")
    with pytest.raises(ValueError, match="Give `prompts`"):
        zero_shot_recipe.main([str(config)])
