"""Few-shot accuracy, compared with float64 formulas and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from hf_vitfm import few_shot
from hf_vitfm.evaluation.few_shot import EquivalentShots, equivalent_shots
from hf_vitfm.evaluation.neighbours import knn_accuracy
from tests.evaluation.test_neighbours import clusters


IDS = (2, 3, 7, 40)


def draw(labels: torch.Tensor, shots: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.permutation(np.where(labels.numpy() == label)[0])[:shots] for label in IDS])


def formula(train, labels, test, l2: float) -> np.ndarray:
    """Predicted class ids by the normal equations, one class after the other."""
    train, test, labels = train.double().numpy(), test.double().numpy(), labels.numpy()
    mean, std = train.mean(0), np.sqrt(((train - train.mean(0)) ** 2).mean(0)) + 1e-5
    train, test = (np.hstack([(x - mean) / std, np.full((len(x), 1), 100.0)]) for x in (train, test))
    gram = train.T @ train + l2 * np.eye(train.shape[1])
    scores = [test @ np.linalg.solve(gram, train.T @ np.where(labels == label, 1.0, -1.0)) for label in IDS]
    return np.array(IDS)[np.argmax(scores, axis=0)]


@pytest.mark.parametrize("l2", [2.0**10, 1.0, 1e-3])
def test_ridge_is_the_formula_in_float64(l2):
    # 12 features and the constant: 1 and 3 shots give fewer rows than unknowns, 10 give more.
    (train, labels), (test, test_labels) = clusters(200, 0), clusters(300, 1)
    found = few_shot(train, labels, test, test_labels, shots=(1, 3, 10), seeds=(0, 4), l2=l2)
    for shots, accuracies in found.items():
        for seed, accuracy in zip((0, 4), accuracies, strict=True):
            few = draw(labels, shots, seed)
            expected = formula(train[few], labels[few], test, l2)
            assert accuracy == pytest.approx((expected == test_labels.numpy()).mean(), abs=1e-12)
    assert list(found) == [1, 3, 10] and max(found[10]) > 0.4


def test_more_shots_help_and_seeds_differ():
    found = few_shot(*clusters(400, 0), *clusters(1000, 1))
    assert list(found) == [1, 5, 10, 25] and [len(accuracies) for accuracies in found.values()] == [3] * 4
    means = [np.mean(accuracies) for accuracies in found.values()]
    assert means == sorted(means) and len(set(found[1])) == 3
    assert few_shot(*clusters(400, 0), *clusters(1000, 1)) == found


def test_a_class_with_fewer_images_gives_what_it_has():
    train, labels = clusters(200, 0)
    keep = torch.cat([torch.where(labels == label)[0][: 2 if label == 7 else 50] for label in IDS])
    test, test_labels = clusters(300, 1)
    found = few_shot(train[keep], labels[keep], test, test_labels, shots=[10], seeds=[0])
    few = draw(labels[keep], 10, 0)
    assert len(few) == 32
    expected = formula(train[keep][few], labels[keep][few], test, 2.0**10)
    assert found == {10: [pytest.approx((expected == test_labels.numpy()).mean(), abs=1e-12)]}


def test_a_test_class_that_was_never_seen_counts_as_wrong():
    train, labels = clusters(200, 0)
    test, test_labels = clusters(300, 1)
    known = labels != 7
    for method in ("ridge", "knn", "nearest_mean", "logistic"):
        (accuracy,) = few_shot(train[known], labels[known], test, test_labels, [10], [0], method)[10]
        assert accuracy <= (test_labels != 7).double().mean()
        assert few_shot(
            train[known], labels[known], test[test_labels == 7], test_labels[test_labels == 7], [10], [0], method
        ) == {10: [0.0]}


def test_nearest_mean_is_that_of_scikit_learn():
    (train, labels), (test, test_labels) = clusters(200, 0), clusters(300, 1)
    (accuracy,) = few_shot(train + 5, labels, test + 5, test_labels, [5], [2], "nearest_mean")[5]
    few = draw(labels, 5, 2)
    reference = NearestCentroid().fit(train[few].double() + 5, labels[few])
    assert accuracy == pytest.approx(reference.score(test.double() + 5, test_labels), abs=1e-12)


@pytest.mark.parametrize("C", [0.316, 10.0])
def test_logistic_is_that_of_scikit_learn_on_the_few(C):
    (train, labels), (test, test_labels) = clusters(200, 0), clusters(300, 1)
    found = few_shot(train, labels, test, test_labels, (1, 2, 8), (0, 3), "logistic", C=C)
    for shots, accuracies in found.items():
        for seed, accuracy in zip((0, 3), accuracies, strict=True):
            few = draw(labels, shots, seed)
            peer = LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(train[few].double(), labels[few])
            assert accuracy == pytest.approx(peer.score(test.double(), test_labels), abs=1e-12)
    again = few_shot(train, labels, test, test_labels, (1, 2, 8), (0, 3), "logistic", C=C)
    assert again == found and found[1][0] != found[1][1]


def test_the_few_of_fewer_shots_are_among_those_of_more():
    (train, labels), test = clusters(200, 0), clusters(300, 1)
    # What lies outside of the rows of 4 shots plays no part for any number of them.
    for seed in (0, 1):
        drawn = [set(draw(labels, shots, seed).tolist()) for shots in (1, 2, 4)]
        assert drawn[0] < drawn[1] < drawn[2]
        outside = torch.ones(200, dtype=torch.bool)
        outside[list(drawn[2])] = False
        spoilt = torch.where(outside[:, None], torch.tensor(1e6), train)
        shots, seeds = (1, 2, 4), (seed,)
        assert few_shot(spoilt, labels, *test, shots, seeds) == few_shot(train, labels, *test, shots, seeds)


def test_equivalent_shots_are_interpolated_in_the_logarithm():
    curve = {1: [0.2, 0.3], 4: 0.45, 2: [0.35], 16: 0.65}
    between = equivalent_shots(curve, 0.55)  # half way from 4 to 16 on a logarithmic axis
    assert between.shots == pytest.approx(8) and between.bound == "" and str(between) == "8"
    assert equivalent_shots(curve, 0.375).shots == pytest.approx(2 ** (1 + 0.25))
    assert equivalent_shots(curve, 0.35).shots == pytest.approx(2)
    assert equivalent_shots(curve, 0.25) == EquivalentShots(1.0)
    assert str(equivalent_shots(curve, 0.1)) == "<1" and str(equivalent_shots(curve, 0.7)) == ">16"
    assert equivalent_shots({1: 0.1, 2: 0.5, 4: 0.3, 8: 0.6}, 0.4).shots < 2  # the first time counts
    for accuracies, zero_shot in (({}, 0.5), ({1: float("nan")}, 0.5), ({1: 0.5}, float("nan")), ({0: 0.5}, 0.5)):
        with pytest.raises(ValueError, match="finite"):
            equivalent_shots(accuracies, zero_shot)


@pytest.mark.parametrize(("shots", "k"), [(1, 4), (10, 20)])
def test_neighbours_are_those_of_the_few(shots, k):
    (train, labels), (test, test_labels) = clusters(200, 0), clusters(300, 1)
    few = draw(labels, shots, 1)
    expected = knn_accuracy(train[few], labels[few], test, test_labels, k=k)
    assert few_shot(train, labels, test, test_labels, [shots], [1], "knn") == {shots: [expected]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svm"}, "ridge, knn, nearest_mean, logistic"),
        ({"method": "logistic", "C": 0.0}, "above 0"),
        ({"shots": (0, 5)}, "at least 1"),
        ({"shots": ()}, "at least 1"),
        ({"l2": 0.0}, "above 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        few_shot(*clusters(40, 0), *clusters(5, 1), **options)
