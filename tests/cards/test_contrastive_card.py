"""The card of a CLIP: what it says, and that its code runs."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPImageProcessor

from hf_vitfm.cards.model_card import create_model_card
from hf_vitfm.data.tokenizers import train_tokenizer
from tests.cards.test_model_card import RUN as CLASSIFIER_RUN
from tests.data.images import noise
from tests.tiny import tiny_clip


RECALLS = {
    f"eval_{direction}_recall@{k}": share
    for direction, shares in {"image_to_text": (0.8, 0.9, 0.95), "text_to_image": (0.7, 0.85, 0.925)}.items()
    for k, share in zip((1, 5, 10), shares, strict=True)
}
RESULTS = {
    **RECALLS,
    "eval_image_to_text_median_rank": 1.0,
    "eval_text_to_image_median_rank": 2.5,
    "eval_loss": 0.51234,
    "eval_zero_shot_top1": 0.5,
    "eval_zero_shot_top5": 0.75,
    "eval_zero_shot_mean_per_class": 0.45,
    "train_loss": 0.6,
    "train_runtime": 62.0,
    "epoch": 60.0,
}
RUN = {key: value for key, value in CLASSIFIER_RUN.items() if key != "per_class"} | {
    "task": "contrastive-image-text",
    "recipe": "recipes/clip/train.py",
    "dataset": {
        **CLASSIFIER_RUN["dataset"],
        "evaluation_rows": 1000,
        "evaluation_captions": 2000,
        "credit": "A, CC-BY",
        "train_split": "google",
    },
    "zero_shot": {"dataset": "the evaluation set", "rows": 1000, "classes": 9, "templates": ["a photo of {}"]},
}


@pytest.fixture
def write_run(tmp_path):
    """Write a folder as a run leaves it: a tiny model, results and run.json changed."""

    def write(results=None, run=None):
        tokenizer = train_tokenizer(["a cat in a house"], 300, 12)
        text = {"vocab_size": 300, "pad_token_id": 297, "bos_token_id": 298, "eos_token_id": 299}
        tiny_clip(text=text).save_pretrained(tmp_path)
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        for name, content in {
            "all_results.json": {**RESULTS, **(results or {})},
            "run.json": {**RUN, **(run or {})},
        }.items():
            kept = {key: value for key, value in content.items() if value is not ...}
            (tmp_path / name).write_text(json.dumps(kept))
        return tmp_path

    return write


def test_card_states_the_facts_of_the_files(write_run):
    directory = write_run(run={"half_weights": True, "truncated_captions": 1234})
    (directory / "retrieval.png").touch()
    text = create_model_card(directory).read_text()
    for fact in (
        "# CLIP of ",
        "1,000 evaluation images and their 2,000 captions",
        # Wilson's intervals, by scipy.stats.binomtest(800, 1000) and (1400, 2000) .proportion_ci(method="wilson")
        "| Recall@1, captions found by an image | 80.0 % | 77.4 to 82.4 % |",
        "| Recall@1, images found by a caption | 70.0 % | 68.0 to 72.0 % |",
        "| Median rank, images found by a caption | 2.5 |  |",
        "guessing would find 0.5 % of the captions at k = 10",
        "into 9 classes, whose labels no training saw: the texts are `a photo of {}`",
        "Guessing would be right in 11.1 %",
        "| Mean per-class (balanced) accuracy | 45.0 % |  |",
        "| Layers | 3 | 3 |",
        "| Image size, pixels | 32x32 |  |",
        "| Tokens of the vocabulary |  | 300 |",
        "The images shown: A, CC-BY.",
        "images of the split `google` of ",
        "cut, 1,234 times in the run",
        "rounded to half precision",
        "Radford, Alec",
    ):
        assert fact in text, fact
    assert text.index("](retrieval.png)") < text.index("## Results")


@pytest.mark.parametrize(("known", "words"), [(2000, "All 2,000 captions"), (7, "7 of the 2,000 captions"), (0, None)])
def test_captions_that_training_saw_are_a_limitation(write_run, known, words):
    text = create_model_card(write_run(run={"dataset": {**RUN["dataset"], "known_captions": known}})).read_text()
    assert ("are captions of training images too" in text) == (known > 0)
    assert words is None or f"- {words} of the evaluation are captions of training images too" in text


def test_a_locked_tower_is_named(write_run):
    text = create_model_card(write_run(run={"locked_towers": ["image"]})).read_text()
    assert "Training left the image tower as it was." in text


def test_the_largest_class_is_a_baseline(write_run):
    text = create_model_card(write_run(run={"zero_shot": {**RUN["zero_shot"], "largest_class": 0.25}})).read_text()
    assert "Guessing would be right in 11.1 %, always naming the largest class in 25.0 %." in text


def test_metadata_has_every_recall_and_the_pipeline(write_run):
    card = ModelCard.load(create_model_card(write_run()))
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {name.removeprefix("eval_"): value for name, value in RECALLS.items()} | {"accuracy": 0.5}


def test_a_run_without_a_zero_shot_set(write_run):
    directory = write_run(results={"eval_zero_shot_top1": ...}, run={"zero_shot": None, "base_model": "owner/clip"})
    card = ModelCard.load(create_model_card(directory))
    assert "Zero-shot classification of" not in card.content and "starting from `owner/clip`" in card.content
    assert len(card.data.eval_results) == 6 and card.data.base_model == "owner/clip"


def test_the_cards_code_runs(write_run, tmp_path, monkeypatch, capsys):
    directory = write_run()
    text = create_model_card(directory).read_text()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise(40, 40)).save("picture.jpg")
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("path/to/this/folder", str(directory)), names)
    assert names["cosines"].shape == (1, 2)
    shares = (names["cosines"][0] * names["clip"].logit_scale.exp()).softmax(0)
    found = {answer["label"]: answer["score"] for answer in eval(capsys.readouterr().out)}
    torch.testing.assert_close(torch.tensor([found["a cat"], found["a house"]]), shares.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": {"eval_text_to_image_recall@5": ...}}, "has no field `eval_text_to_image_recall@5`"),
        (
            {"results": {"eval_image_to_text_recall@1": 80}},
            r"`eval_image_to_text_recall@1` in all_results.json must be a",
        ),
        ({"results": {"eval_zero_shot_top1": ...}}, "all_results.json has no field `eval_zero_shot_top1`"),
        ({"results": {"eval_loss": float("nan")}}, "`eval_loss` in all_results.json must be a finite number"),
        (
            {"run": {"zero_shot": {**RUN["zero_shot"], "classes": 0}}},
            "`zero_shot.classes` in run.json must be a whole",
        ),
        ({"run": {"dataset": CLASSIFIER_RUN["dataset"]}}, "run.json has no field `dataset.evaluation_captions`"),
    ],
)
def test_bad_field_is_named_and_nothing_is_written(write_run, changes, message):
    directory = write_run(**changes)
    with pytest.raises(ValueError, match=message):
        create_model_card(directory)
    assert not (directory / "README.md").exists()
