"""Training and evaluating on a data set with bad images."""

import logging

import pytest
import torch
from transformers import ViTImageProcessor

from hf_vitfm import ImageClassificationTrainer
from hf_vitfm.data.decode import BadImageError
from tests.data.images import encode, noise
from tests.training.runs import make_args, make_model


BAD = (3, 4, 12)  # in evaluation the first two are of one process, the third of the other


def make_rows(bad=BAD):
    return [
        {"image": {"bytes": b"" if i in bad else encode(noise(seed=i)), "path": f"{i}.png"}, "label": i % 3}
        for i in range(24)
    ]


def train(output_dir, on_bad_image="skip", train_rows=None, eval_rows=None, **options) -> dict:
    """Train two epochs and evaluate; losses, metrics and what was logged about the images."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("hf_vitfm")
    logger.addHandler(handler)
    trainer = ImageClassificationTrainer(
        model=make_model(),
        args=make_args(output_dir, max_steps=6, on_bad_image=on_bad_image, **options),
        train_dataset=make_rows() if train_rows is None else train_rows,
        eval_dataset=make_rows() if eval_rows is None else eval_rows,
        processing_class=ViTImageProcessor(size={"height": 8, "width": 8}),
    )
    shapes = []
    training_step = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: (
        shapes.append(tuple(inputs["pixel_values"].shape)) or training_step(model, inputs, *rest)
    )
    try:
        trainer.train()
        metrics = trainer.evaluate()
    finally:
        logger.removeHandler(handler)
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "metrics": {name: metrics[name] for name in ("eval_loss", "eval_top1", "eval_mean_per_class")},
        "reports": [message for message in messages if "were skipped" in message],
        "shapes": sorted(set(shapes)),
    }


def test_by_default_a_bad_image_stops_the_run(tmp_path):
    with pytest.raises(BadImageError, match=r"row (3|4|12) \((3|4|12)\.png\) cannot be decoded: it is empty"):
        train(tmp_path, on_bad_image="error")


def test_skipped_images_are_reported_and_left_out_of_the_metrics(tmp_path):
    result = train(tmp_path, dataloader_num_workers=2)
    names = "row 3 (3.png), row 4 (4.png), row 12 (12.png)"
    assert result["reports"] == [
        f"3 of 24 images were skipped in training: {names}",
        f"3 of 24 images were skipped in evaluation: {names}",
    ]
    assert result["shapes"] == [(8, 3, 8, 8)]
    assert all(torch.isfinite(torch.tensor(result["losses"])))
    good = [row for i, row in enumerate(make_rows()) if i not in BAD]
    expected = train(tmp_path, eval_rows=good)["metrics"]
    assert result["metrics"] == pytest.approx(expected, rel=1e-6)


def test_two_processes_skip_as_one_does(two_processes, tmp_path):
    alone = train(tmp_path)
    runs = two_processes.run(train, str(tmp_path), per_device_train_batch_size=4)
    for run in runs:
        assert run["shapes"] == [(4, 3, 8, 8)]
        assert run["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert run["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
    assert [run["reports"] for run in runs] == [alone["reports"], []]


def test_an_unknown_choice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`on_bad_image` must be one of error, skip; got 'ignore'"):
        make_args(tmp_path, on_bad_image="ignore")
