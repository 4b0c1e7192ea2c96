"""What a masked autoencoder is trained on: pixel values, folders without classes, streams, sets with bad images."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitfm.data.order import ImageView
from hf_vitfm.data.sources.stream import open_stream
from hf_vitfm.training.recipe import DataArguments
from tests.data.images import encode, noise, write_tar
from tests.training.mae_runs import make_trainer, mean_loss, record_losses
from tests.training.runs import make_images


def test_rows_may_hold_pixel_values(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [{"pixel_values": torch.randn(3, 32, 32, generator=generator)} for _ in range(16)]
    options = {"eval_dataset": rows[:3], "processing_class": None}
    trainer = make_trainer(tmp_path, rows, trainer_options=options, save_strategy="no")
    losses = record_losses(trainer)
    trainer.train()
    assert len(losses) == 3 and np.isfinite(losses).all() and len(set(losses)) == 3
    assert trainer.evaluate()["eval_loss"] > 0
    assert not (tmp_path / "reconstructions").exists()  # without a processor nobody knows the colours


def test_a_folder_needs_no_classes(tmp_path):
    (tmp_path / "images" / "deeper").mkdir(parents=True)
    for i in range(20):
        Image.fromarray(noise(20, 24, seed=i)).save(tmp_path / "images" / ("deeper" if i % 2 else "") / f"{i}.png")
    folder = str(tmp_path / "images")
    rows, eval_rows, split = DataArguments(folder, holdout=4).load(seed=0, labels=False)
    assert (len(rows), len(eval_rows), split) == (16, 4, "4 of train") and "label" not in rows[0]
    trainer = make_trainer(tmp_path / "run", rows, trainer_options={"eval_dataset": eval_rows})
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert DataArguments(folder).load(seed=0, labels=False)[1:] == (None, None)


def test_a_split_with_labels_is_evaluated_on_only_if_it_is_named(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(noise(8, 8, seed=i)).save(tmp_path / split / name / f"{i}.png")
    rows, eval_rows, split = DataArguments(str(tmp_path)).load(seed=0, labels=False)
    assert (len(rows), eval_rows, split) == (6, None, None)  # test images are for tests
    _, eval_rows, split = DataArguments(str(tmp_path), eval_split="test").load(seed=0, labels=False)
    assert (len(eval_rows), split) == (6, "test")
    for options in ({"label_column": ["label"]}, {"class_names": ["a", "b"], "streaming": True}):
        with pytest.raises(ValueError, match="are for data with labels, which are not read here"):
            DataArguments(str(tmp_path), **options).load(seed=0, labels=False)


def write_unlabelled_shards(folder) -> str:
    folder.mkdir()
    for shard, rows in enumerate((range(12), range(12, 32))):
        members = {f"{row:04d}.png": encode(noise(20, 24, seed=row)) for row in rows}
        write_tar(folder / f"train-{shard}.tar", members)
    return str(folder)


def test_a_stream_needs_no_labels(tmp_path):
    folder = write_unlabelled_shards(tmp_path / "shards")
    rows, eval_rows, split = DataArguments(folder, streaming=True).load(seed=0, labels=False)
    assert (len(rows), eval_rows, split) == (32, None, None)
    masks = []
    for workers in (0, 1):
        stream = open_stream(folder, window=8)
        trainer = make_trainer(tmp_path / str(workers), stream, dataloader_num_workers=workers, max_steps=4)
        masks.append([batch["noise"] for batch in trainer.get_train_dataloader()])
    assert len(masks[0]) == 4 and len(torch.cat(masks[0]).unique(dim=0)) == 32
    assert all(torch.equal(*pair) for pair in zip(*masks, strict=True))
    losses = record_losses(trainer)
    trainer.train()
    assert len(losses) == 4 and np.isfinite(losses).all()


BAD = (0, 4, 12)  # in evaluation one process has the first, the other one the others


def rows_with_bad_images(bad=BAD, count=16) -> list[dict]:
    images = [b"" if i in bad else encode(noise(20, 24, seed=i)) for i in range(count)]
    return [{"image": {"bytes": image, "path": f"{i}.png"}} for i, image in enumerate(images)]


def train_with_bad_images(output_dir: str, labelled: bool = False, **options) -> dict:
    data = {"eval_dataset": rows_with_bad_images()}
    if labelled:
        labels = [{**row, "label": i % 3} for i, row in enumerate(rows_with_bad_images())]
        data["labelled_datasets"] = (labels, labels)
    rows = rows_with_bad_images(count=24)
    trainer = make_trainer(output_dir, rows, trainer_options=data, on_bad_image="skip", **options)
    shapes, training_step = set(), trainer.training_step

    def record(model, inputs, *args):
        shapes.add(tuple(inputs["noise"].shape))
        assert list(inputs) == ["pixel_values", "noise"] and inputs["pixel_values"].flatten(1).std(dim=1).min() > 0
        return training_step(model, inputs, *args)

    trainer.training_step = record
    before = trainer.evaluate()
    trainer.train()
    return {
        "shapes": shapes,
        "skipped": trainer.num_skipped_images,
        "loss": before["eval_loss"],
        "top1": before.get("eval_knn_top1"),
    }


def test_bad_images_do_not_count(two_processes, tmp_path):
    alone = train_with_bad_images(str(tmp_path / "one"), labelled=True, per_device_eval_batch_size=5)
    assert alone["shapes"] == {(8, 16)} and alone["skipped"] == len(BAD)
    expected = mean_loss(rows_with_bad_images(), make_trainer(tmp_path).eval_transform, BAD)
    assert alone["loss"] == pytest.approx(expected, rel=1e-5)
    assert 0 < alone["top1"] <= 1
    options = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    for run in two_processes.run(train_with_bad_images, str(tmp_path / "two"), **options):
        assert run["shapes"] == {(4, 16)} and run["skipped"] == len(BAD)
        assert run["loss"] == pytest.approx(expected, rel=1e-5)


def test_bad_images_are_not_drawn(tmp_path):
    trainer = make_trainer(tmp_path)
    pictures = []
    for number, bad in enumerate(((), BAD)):
        view = ImageView(rows_with_bad_images(bad), trainer.eval_transform, on_bad_image="skip")
        rows = view if bad else [view[i] for i in range(16) if i not in BAD]
        trainer.draw_reconstructions(rows, tmp_path / f"{number}.png")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_predictions_are_the_losses_of_images(tmp_path):
    result = make_trainer(tmp_path, per_device_eval_batch_size=2).predict(make_images(5))
    assert result.predictions.shape == (5,) and result.label_ids.tolist() == [1] * 5
    assert result.metrics["test_loss"] == pytest.approx(result.predictions.mean(), rel=1e-6)
