"""Weighted cosine neighbours, compared with scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from hf_vitfm.evaluation import neighbours
from hf_vitfm.evaluation.neighbours import knn_accuracy, knn_predict


def clusters(rows: int, seed: int, ids=(2, 3, 7, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds around one centre per class."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(len(ids), 12))
    classes = generator.integers(0, len(ids), rows)
    features = centres[classes] + 1.5 * generator.normal(size=(rows, 12))
    return torch.from_numpy(features).float(), torch.tensor(ids)[torch.from_numpy(classes)]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (200, 0.3)])
def test_predictions_are_those_of_scikit_learn(k, temperature, monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK", 1000)  # 5 test rows at a time
    (train, labels), (test, test_labels) = clusters(200, 0), clusters(101, 1)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(train.double(), labels)
    expected = reference.predict(test.double())
    assert knn_predict(train, labels, test, k, temperature).tolist() == expected.tolist()
    accuracy = knn_accuracy(train, labels, test, test_labels, k, temperature)
    assert accuracy == pytest.approx(reference.score(test.double(), test_labels), abs=1e-12)
    assert 0.3 < accuracy < 1


def test_a_low_temperature_does_not_overflow():
    (train, labels), (test, test_labels) = clusters(200, 0), clusters(50, 1)
    nearest = knn_accuracy(train, labels, test, test_labels, k=1)
    assert knn_accuracy(train, labels, test, test_labels, k=20, temperature=1e-6) == nearest


def test_the_matrix_of_similarities_is_never_whole(monkeypatch):
    sizes = []
    plain = torch.Tensor.topk
    monkeypatch.setattr(neighbours, "_CHUNK", 600)
    monkeypatch.setattr(
        torch.Tensor,
        "topk",
        lambda self, *args, **options: sizes.append(self.numel()) or plain(self, *args, **options),
    )
    knn_accuracy(*clusters(200, 0), *clusters(50, 1))
    assert max(sizes) <= 600 and sum(sizes) == 200 * 50


@pytest.mark.parametrize(
    ("options", "message"), [({"k": 0}, "`k`"), ({"k": 201}, "200 training rows"), ({"temperature": 0.0}, "above 0")]
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*clusters(200, 0), *clusters(5, 1), **options)
