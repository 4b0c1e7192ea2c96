"""Zero-shot accuracy at the evaluations of CLIP's trainer: which weights, which rows, on any number of processes."""

import os
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPProcessor

from hf_vitfm import CLIPTrainer, ZeroShotClassifier, evaluate_zero_shot
from hf_vitfm.data.tokenizers import train_tokenizer
from tests.data.images import encode, noise
from tests.training.clip_runs import collate, make_args, make_model, make_pairs


NAMES = ["ox", "cat", "black bear", "hen", "dog", "ibex of the Alps", "mouse"]
TEMPLATES = ["a photo of a {}.", "{}"]
METRICS = ("top1", "top5", "mean_per_class")
ROWS = 13  # two processes have shares of 7


def make_tokenizer():
    return train_tokenizer([template.format(name) for name in NAMES for template in TEMPLATES], 280, 20)


def make_rows(count: int = ROWS) -> list[dict]:
    return [{"image": encode(noise(10, 10, seed=i)), "label": i * i % 7} for i in range(count)]


def build_trainer(directory, processing_class="processor", collator=collate, **options) -> CLIPTrainer:
    """A trainer of pairs that are tokenised already, and of labelled images."""
    tokenizer = make_tokenizer()
    if processing_class == "processor":
        images = CLIPImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
        processing_class = CLIPProcessor(images, tokenizer)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 20, "eos_token_id": tokenizer.eos_token_id}
    task = {"labelled_dataset": make_rows(), "classnames": NAMES, "templates": TEMPLATES}
    task |= {name: options.pop(name) for name in task if name in options}
    return CLIPTrainer(
        model=make_model(text=text),
        args=make_args(directory, **{"per_device_eval_batch_size": 4, **options}),
        train_dataset=make_pairs(),
        eval_dataset=make_pairs(5, seed=1),
        data_collator=collator,
        processing_class=processing_class,
        **task,
    )


def zero_shot_of(metrics: dict) -> dict[str, float]:
    return {name.removeprefix("eval_zero_shot_"): value for name, value in metrics.items() if "zero_shot" in name}


def expected_of(trainer: CLIPTrainer, rows: list[dict]) -> dict[str, float]:
    classifier = ZeroShotClassifier.build(trainer.model, make_tokenizer(), NAMES, TEMPLATES)
    return evaluate_zero_shot(trainer.model, rows, classifier, trainer.eval_transform)


def run(directory: str, **options) -> dict:
    """Train, evaluate at every step, and once more at the end."""
    directory = Path(directory) / os.environ.get("RANK", "0")
    options = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "eval_strategy": "steps", **options}
    trainer = build_trainer(directory, eval_steps=1, **options)
    trainer.train()
    during = [zero_shot_of(log) for log in trainer.state.log_history if "eval_loss" in log]
    return {
        "during": during,
        "after": zero_shot_of(trainer.evaluate()),
        "expected": expected_of(trainer, make_rows()),
        "predicted": sorted(trainer.predict(make_pairs(3)).metrics),
    }


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_evaluations_report_the_accuracy_on_any_number_of_processes(two_processes, tmp_path, ema_decay):
    alone = run(str(tmp_path / "one"), ema_decay=ema_decay)
    assert len(alone["during"]) == 3 and all(tuple(found) == METRICS for found in alone["during"])
    # After the training the model holds the weights that evaluations use, averaged or not.
    assert alone["during"][-1] == alone["after"] == alone["expected"]
    assert 0 < alone["after"]["top1"] < alone["after"]["top5"] <= 1 and len({*map(str, alone["during"])}) > 1
    assert not [name for name in alone["predicted"] if "zero_shot" in name]
    for found in two_processes.run(run, str(tmp_path / "two"), ema_decay=ema_decay, per_device_train_batch_size=4):
        assert found == alone


class Recording:
    """Rows that know which of them were read."""

    def __init__(self, rows: list[dict]):
        self.rows, self.read = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        self.read.append(index)
        return self.rows[index]


def read_rows(directory: str, count: int) -> tuple[list[int], dict]:
    rows = Recording(make_rows(count))
    trainer = build_trainer(directory, labelled_dataset=rows)
    found = zero_shot_of(trainer.evaluate())
    return list(dict.fromkeys(rows.read)), found


@pytest.mark.parametrize(("count", "shares"), [(5, ([0, 1, 2, 3], [0, 4])), (1, ([0], [0]))])
def test_processes_share_the_images(two_processes, tmp_path, count, shares):
    read, expected = read_rows(str(tmp_path), count)
    assert read == list(range(count))
    answers = two_processes.run(read_rows, str(tmp_path), count)
    assert tuple(read for read, _ in answers) == shares
    assert [found for _, found in answers] == [expected] * 2


def evaluate_with_a_bad_image(directory: str) -> dict:
    good = make_rows(6)
    rows = [*good[:2], {"image": b"no image", "label": 3}, *good[2:]]
    trainer = build_trainer(directory, labelled_dataset=rows, on_bad_image="skip")
    return {"found": zero_shot_of(trainer.evaluate()), "expected": expected_of(trainer, good)}


def test_bad_images_that_are_skipped_count_on_no_process(two_processes, tmp_path, caplog):
    found = evaluate_with_a_bad_image(str(tmp_path))
    assert found["found"] == found["expected"]
    assert "1 of 7 images were skipped in zero-shot evaluation: row 2" in caplog.text
    for other in two_processes.run(evaluate_with_a_bad_image, str(tmp_path)):
        assert other == found


def test_the_best_checkpoint_can_be_chosen_by_it_in_bfloat16(tmp_path):
    options = {"save_strategy": "best", "metric_for_best_model": "zero_shot_top5", "load_best_model_at_end": True}
    trainer = build_trainer(
        tmp_path, eval_strategy="steps", eval_steps=1, bf16=True, greater_is_better=True, **options
    )
    trainer.model.float()
    dtypes = set()
    trainer.model.text_projection.register_forward_hook(lambda module, arguments, output: dtypes.add(output.dtype))
    trainer.train_dataset, trainer.eval_dataset = (make_pairs(count, torch.float32) for count in (27, 5))
    trainer.train()
    found = [log["eval_zero_shot_top5"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.state.best_metric == max(found) and len(found) == 3
    assert dtypes == {torch.bfloat16}


def test_without_labelled_images_nothing_is_reported(tmp_path):
    trainer = build_trainer(tmp_path, labelled_dataset=None, classnames=None, templates=None)
    assert zero_shot_of(trainer.evaluate()) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classnames": None, "templates": None}, "got `labelled_dataset` without `classnames` and `templates`"),
        ({"labelled_dataset": None, "templates": None}, "got `classnames` without `labelled_dataset` and `templates`"),
        ({"labelled_dataset": None}, "got `classnames`, `templates` without `labelled_dataset`"),
        ({"labelled_dataset": []}, "`labelled_dataset` must hold at least one row; got none"),
        ({"templates": ["a photo"]}, "got 'a photo'"),
        ({"processing_class": None}, "Class names need a tokenizer"),
    ],
)
def test_what_is_missing_is_said_before_the_training(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(tmp_path, **options)


def test_labels_beyond_the_names_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"class ids in 0..1, since there are 2 class names; got 0 to 4"):
        build_trainer(tmp_path, classnames=NAMES[:2]).evaluate()
