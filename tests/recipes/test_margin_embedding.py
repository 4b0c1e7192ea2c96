"""The margin-loss example: its pairs, its score, a whole run in small, and that the loss does what it is for."""

import json

import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from hf_vitfm import ViTForImageClassification
from hf_vitfm.data.samples import load_sample
from recipes.clip import margin_embedding
from tests.tiny import random_images, tiny_config


CONFIG = "recipes/clip/configs/margin_embedding.yaml"


def test_pairs_are_all_of_one_class_and_as_many_of_two():
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 3, 4])
    first, second, dissimilar = margin_embedding.balanced_pairs(labels)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) and all(i < j for i, j in pairs)
    assert ((labels[first] != labels[second]) == dissimilar).all()
    assert {pair for pair, apart in zip(pairs, dissimilar, strict=True) if not apart} == {
        (0, 2),
        (0, 4),
        (2, 4),
        (1, 5),
    }
    assert dissimilar.sum() == 4
    others = [margin_embedding.balanced_pairs(labels)[0].tolist() for _ in range(5)]
    assert any(other != first.tolist() for other in others)


def test_accuracy_in_the_plane_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (160,), generator=generator)
    points = torch.randn(160, 2, generator=generator) + 1.2 * labels[:, None] + 5  # one direction from the origin
    found = margin_embedding.plane_accuracy(points[:100], labels[:100], points[100:], labels[100:], k=7)
    judge = KNeighborsClassifier(7).fit(points[:100], labels[:100])
    assert found == pytest.approx(judge.score(points[100:], labels[100:]))
    assert 0.5 < found < 1


def test_training_gathers_classes_and_parts_them():
    torch.manual_seed(0)
    model = ViTForImageClassification(tiny_config(num_labels=2))
    model.classifier.reset_parameters()
    labels = torch.arange(48) % 3
    images = 0.3 * random_images(48) + torch.tensor([-1.0, 0.0, 1.0])[labels][:, None, None, None]
    args = margin_embedding.MarginArguments("out", "none", max_steps=60, warmup_steps=6, images_per_step=24)
    margin_embedding.train(model, images, labels, args)
    points = margin_embedding.embed(model, images)
    distances, same = torch.cdist(points, points), labels[:, None] == labels
    assert distances[same].mean() < 0.3 and distances[~same].min() > 0.5


def test_smoke(tmp_path):
    record = margin_embedding.main([CONFIG, "--smoke", "--output_dir", str(tmp_path / "out")])
    out = tmp_path / "out"
    assert json.loads((out / "margin_embedding.json").read_text()) == record
    assert record["dataset"]["train_rows"] == record["dataset"]["eval_rows"] == 32 and record["knn_accuracy"] <= 1
    with Image.open(out / "margin_embedding.png") as image:
        assert min(image.size) > 500
    model = ViTForImageClassification.from_pretrained(out)
    assert model.config.num_labels == 2 and model.config.pooling == "mean"


def test_data_without_classes_are_refused(tmp_path):
    rows = load_sample("fashion-mnist")["train"].select(range(4)).remove_columns("label")
    rows.add_column("label", [0.5, 1.0, 2.0, 3.0]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="one class per image"):
        margin_embedding.main([CONFIG, "--dataset", str(tmp_path), "--holdout", "0.5", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="`streaming`"):
        margin_embedding.main([CONFIG, "--streaming", "true", "--output_dir", str(tmp_path)])
