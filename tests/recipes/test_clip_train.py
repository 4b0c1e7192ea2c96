"""The recipe that trains CLIP: whole small runs, the files that they leave, and what it refuses."""

import io
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, ViTConfig, ViTImageProcessor, ViTModel, pipeline

from hf_vitfm import CLIPTrainingArguments, load_pairs, load_sample
from hf_vitfm.data.tokenizers import train_tokenizer
from hf_vitfm.training import clip_report
from hf_vitfm.training.clip_start import CLIPModelArguments
from hf_vitfm.training.pair_arguments import PairArguments, ZeroShotArguments, ZeroShotSet, captions_of
from hf_vitfm.training.recipe import parse_recipe
from recipes.clip import train
from tests.data.images import write_tar


CONFIGS = sorted(
    path for path in Path("recipes/clip/configs").glob("*.yaml") if "python recipes/clip/train.py" in path.read_text()
)
EMOJI = "recipes/clip/configs/emoji.yaml"
FILES = (
    "README.md run.json all_results.json config.json preprocessor_config.json processor_config.json tokenizer.json "
    "tokenizer_config.json model.safetensors"
).split()
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TINY = {
    "image_size": 16,
    "vision_config": {**TOWER, "patch_size": 8},
    "text_config": {**TOWER, "max_position_embeddings": 12},
    "model": {"projection_dim": 8},
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1.0e-3,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
}


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs without pictures, which take longer than the training of these tests."""
    for name in ("draw_best_captions", "draw_history"):
        monkeypatch.setattr(clip_report, name, lambda *args: None)


def sample_rows(count: int, split: str = "google") -> list[tuple[bytes, str]]:
    """(PNG, caption) of the first emoji."""
    rows = []
    for row in load_sample("emoji")[split].select(range(count)):
        file = io.BytesIO()
        row["image"].save(file, format="png")
        rows.append((file.getvalue(), row["caption"]))
    return rows


@pytest.fixture
def pairs(tmp_path):
    """A folder of images with a table of captions."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = ["file_name,caption,kind"]
    for number, (image, caption) in enumerate(sample_rows(16)):
        (folder / f"{number}.png").write_bytes(image)
        lines.append(f'{number}.png,"{caption}",{"odd" if number % 2 else "even"}')
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def shards(tmp_path):
    """A folder of tars with a .txt beside each image."""
    folder = tmp_path / "shards"
    folder.mkdir()
    rows = sample_rows(20)
    for name, part in {"train-0": rows[:8], "train-1": rows[8:14], "validation-0": rows[14:]}.items():
        members = {
            f"{i}.{end}": content
            for i, row in enumerate(part)
            for end, content in zip(("png", "txt"), row, strict=True)
        }
        write_tar(folder / f"{name}.tar", members)
    return folder


@pytest.fixture
def write_config(tmp_path):
    def write(dataset, **settings) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps({**TINY, "dataset": str(dataset), **settings}))  # JSON is YAML
        return str(path)

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_has_its_header_and_smokes(path, tmp_path, no_pictures):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("run:", "expect:", "measured:", "differs:"):
        assert any(line.startswith(f"# {word}") for line in header), word
    metrics = train.main([str(path), "--smoke", "--use_cpu", "--output_dir", str(tmp_path / "run")])
    assert 0 <= metrics["eval_text_to_image_recall@10"] <= 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["hyperparameters"]["steps"] == 2 and record["dataset"]["evaluation_rows"] == 32
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    (last,) = (entry for entry in log if "eval_loss" in entry)
    assert last["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-3) and not any("runtime" in k for k in last)
    assert (
        ("eval_zero_shot_top1" in metrics) == (record["zero_shot"] is not None) == ("zero_shot:" in path.read_text())
    )


def test_smoke_run_leaves_a_model_that_the_pipeline_takes(tmp_path):
    run = tmp_path / "run"
    metrics = train.main([EMOJI, "--smoke", "--output_dir", str(run)])
    assert all((run / name).exists() for name in FILES)
    for name in ("curves.png", "retrieval.png"):
        assert (run / name).stat().st_size > 5_000, name
    card = ModelCard.load(run / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert len(values) == 7
    assert values["image_to_text_recall@10"] == metrics["eval_image_to_text_recall@10"]
    assert values["accuracy"] == metrics["eval_zero_shot_top1"]
    assert "Twitter and contributors, CC-BY 4.0" in card.content and "(retrieval.png)" in card.content
    record = json.loads((run / "run.json").read_text())
    assert 1 / 9 < record["zero_shot"].pop("largest_class") < 1
    assert 0 <= record["dataset"]["known_captions"] <= 32
    assert record["zero_shot"] == {"dataset": "the evaluation set", "rows": 32, "classes": 9, "templates": ["{}"]}
    weights = load_file(run / "model.safetensors")
    assert weights["text_projection.weight"].dtype == torch.float16
    answers = pipeline("zero-shot-image-classification", model=str(run))(
        load_sample("emoji")["twitter"][0]["image"], candidate_labels=["a cat", "a flag"], hypothesis_template="{}"
    )
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)


def test_held_out_rows_of_google_are_the_zero_shot_set_too_and_none_of_twitter_is_seen():
    classes = (CLIPModelArguments, PairArguments, ZeroShotArguments, CLIPTrainingArguments)
    for argv, expected in (([], "twitter"), (["--holdout", "0.2"], "0.2 of google")):
        _, data, zero_shot, _ = parse_recipe(classes, [EMOJI, *argv])
        data.keep_in_memory = False
        train_rows, eval_rows, split = data.load(seed=0)
        assert split == expected
        chosen, about = zero_shot.load(eval_rows, data)
        drawings = [_bytes(row) for row in chosen["labelled_dataset"]]
        assert drawings == [_bytes(row) for row in eval_rows]
        assert list(chosen["labelled_dataset"]["label"]) == list(eval_rows["category"])
        if argv:
            assert about["rows"] == len(eval_rows) == 381
            assert not set(eval_rows["emoji"]) & set(train_rows["emoji"])
            assert set(drawings) <= {_bytes(row) for row in load_sample("emoji")["google"]}


def test_streaming_tars_with_captions_in_text_files(shards, write_config, tmp_path, no_pictures):
    tokenizer = tmp_path / "tokenizer"
    train_tokenizer([caption for _, caption in sample_rows(20)], 300, 12).save_pretrained(tokenizer)
    argv = [write_config(shards, streaming=True), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="give `tokenizer`, a Hub id or a folder"):
        train.main(argv)
    train.main([*argv, "--tokenizer", str(tokenizer)])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    about = {name: record["dataset"][name] for name in ("train_rows", "evaluation_rows", "evaluation_split")}
    assert about == {"train_rows": 14, "evaluation_rows": 6, "evaluation_split": "validation"}
    pattern = str(shards / "train-{0..1}.tar")
    with pytest.raises(ValueError, match="no split of it to evaluate on"):
        PairArguments(pattern, streaming=True).load(0)
    rows, evaluation, split = PairArguments(pattern, streaming=True, eval_dataset=str(shards)).load(0)
    assert (len(rows), len(evaluation)) == (14, 6) and split.startswith("validation of ")
    options = {"streaming": True, "eval_dataset": "emoji", "eval_split": "twitter"}
    assert len(PairArguments(pattern, **options).load(0)[1]) == 1906


def test_locked_image_tower_stays_and_any_text_tower_learns(pairs, write_config, tmp_path, no_pictures):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision, text, run = tmp_path / "vision", tmp_path / "text", tmp_path / "run"
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(vision)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(vision)
    tokenizer = train_tokenizer(load_pairs(pairs)["train"]["caption"], 300, 512)
    BertModel(BertConfig(**sizes, vocab_size=300, max_position_embeddings=20)).save_pretrained(text)
    tokenizer.save_pretrained(text)
    towers = {"vision_checkpoint": str(vision), "text_checkpoint": str(text), "lock_image": True}
    model = {"projection_dim": 8, "vision_pooling": "cls", "text_pooling": "mean"}
    config = write_config(pairs, **{**towers, "model": model, "vision_config": {}, "text_config": {}, "holdout": 4})
    train.main([config, "--output_dir", str(run)])
    before = {name: weight for name, weight in ViTModel.from_pretrained(vision).named_parameters()}
    after = load_file(run / "model.safetensors")
    shared = [name for name in before if not name.startswith("pooler.")]
    assert shared and all(torch.equal(after[f"vision_model.{name}"], before[name]) for name in shared)
    learned = BertModel.from_pretrained(text).embeddings.word_embeddings.weight
    assert not torch.equal(after["text_model.embeddings.word_embeddings.weight"], learned)
    record = json.loads((run / "run.json").read_text())
    assert record["base_model"] == "vision and text"
    assert json.loads((run / "tokenizer_config.json").read_text())["model_max_length"] == 20


def test_going_on_from_a_finished_run_with_classes_by_a_column(pairs, write_config, tmp_path, no_pictures):
    first, second = tmp_path / "first", tmp_path / "second"
    zero_shot = {"label_column": "kind", "templates": ["an {} one", "{}"]}
    start = write_config(pairs, holdout=4, zero_shot=zero_shot)
    metrics = train.main([start, "--output_dir", str(first)])
    assert json.loads((first / "run.json").read_text())["zero_shot"]["classes"] == 2
    again = {name: TINY[name] for name in TINY if name not in ("vision_config", "text_config", "model", "image_size")}
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps({**again, "dataset": str(pairs), "holdout": 4, "checkpoint": str(first)}))
    continued = train.main([str(path), "--learning_rate", "0", "--output_dir", str(second)])
    assert continued["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    card = (second / "README.md").read_text()
    assert "starting from `first`" in card and str(tmp_path) not in card


def test_rows_without_captions_and_tokenizers_that_are_too_large_are_refused(pairs, write_config, tmp_path):
    argv = [write_config(pairs, holdout=4), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="caption_column"):
        train.main([*argv, "--caption_column", "nothing"])
    tokenizer = tmp_path / "tokenizer"
    train_tokenizer(["some words"], 300, 12).save_pretrained(tokenizer)
    small = '{"vocab_size": 100}'
    with pytest.raises(ValueError, match="`vocab_size` = 100 tokens"):
        train.main([*argv, "--tokenizer", str(tokenizer), "--text_config", small])
    with pytest.raises(ValueError, match="Give `eval_split`, or `holdout`"):
        train.main([write_config(pairs), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "README.md").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lock_image": True}, "would keep random weights. Give `vision_checkpoint`"),
        ({"checkpoint": "a", "variant": "B/32"}, "leave `variant`"),
        ({"text_checkpoint": "a", "variant": "B/32"}, "`variant` is a model from scratch"),
        ({"vision_checkpoint": "a", "image_processor": {"resample": 2}}, "`image_processor` is for"),
        ({"tokenizer": "a", "vocab_size": 300}, "`vocab_size` is of a tokenizer that is trained"),
    ],
)
def test_models_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CLIPModelArguments(**fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "nothing"}, "one of image, caption, emoji, category, subcategory; got 'nothing'"),
        (
            {"label_column": "category", "templates": ["a photo"]},
            r'texts with "{}" for the class; got \[\'a photo\'\]',
        ),
        (
            {"label_column": "category", "classnames": ["a", "b"]},
            "must name the 9 classes of the evaluation set; got 2",
        ),
        ({"label_column": "category", "split": "test"}, "go with its `dataset`"),
        ({"labels": "category"}, "`zero_shot` takes templates, dataset"),
        ({"label_column": "category", "classnames": "no/file.txt"}, "`zero_shot.classnames` 'no/file.txt' is no file"),
    ],
)
def test_zero_shot_sets_that_cannot_be_are_refused(options, message):
    rows = load_pairs("emoji")["twitter"].select(range(40))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ZeroShotArguments(options).load(rows, PairArguments("emoji"))


def test_zero_shot_set_of_its_own_with_names_and_templates_from_files(tmp_path):
    names, templates = tmp_path / "names.txt", tmp_path / "templates.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(10)) + "\n")
    templates.write_text("a {}\nthe {}\n")
    rows, classnames, name = ZeroShotSet(
        dataset="fashion-mnist", split="test", templates=str(templates), classnames=str(names)
    ).load([])
    assert (len(rows), classnames[3], name) == (1000, "thing 3", "fashion-mnist (test)")
    assert ZeroShotSet(templates=str(templates)).templates == ["a {}", "the {}"]


def test_captions_are_read_without_decoding_images():
    rows = load_pairs("emoji")["google"]
    assert captions_of(rows)[0] == captions_of([{"caption": "grinning face"}])[0] == "grinning face"


def _bytes(row: dict) -> bytes:
    return row["image"].tobytes()
