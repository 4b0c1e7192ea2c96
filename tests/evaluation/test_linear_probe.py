"""Linear probes, compared with scikit-learn and with the search done by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hf_vitfm import linear_probe
from hf_vitfm.evaluation.multi_label import mean_eleven_point_precision
from tests.evaluation.test_neighbours import clusters


GRID = 10.0 ** (np.arange(-48, 49) / 8)  # of lambda


def two_classes(rows: int, seed: int):
    features, labels = clusters(rows, seed)
    return features, (labels > 5).long()


def several_labels(rows: int, seed: int):
    features, labels = clusters(rows, seed)
    targets = torch.stack([labels == 2, labels != 7, features[:, 0] > 0], dim=1).long()
    targets[::5, 1] = -1
    return features, targets


def test_given_c_gives_the_predictions_of_scikit_learn():
    train, (test, labels) = clusters(150, 0), clusters(300, 1)
    result = linear_probe(*train, test, labels, C=0.316)
    peer = LogisticRegression(C=0.316, max_iter=5000, tol=1e-9).fit(train[0].double(), train[1])
    assert result.classes == tuple(peer.classes_) and result.coefficients.shape == (4, 12)
    assert result.score == result.accuracy == pytest.approx(peer.score(test.double(), labels), abs=1e-12)
    assert np.linalg.norm(result.coefficients.numpy() - peer.coef_) < 1e-3 * np.linalg.norm(peer.coef_)
    assert result.C == 0.316 and result.searched == {} and result.solution.is_converged


def test_the_search_halves_its_steps_around_the_peak_and_never_sees_test_rows():
    train, held_out, (test, labels) = clusters(60, 0), clusters(80, 2), clusters(50, 1)
    result = linear_probe(*train, test, labels, validation=held_out)
    assert all(np.isclose(1 / C, GRID, rtol=1e-9).any() for C in result.searched)
    scores = {round(8 * np.log10(1 / C)): score for C, score in result.searched.items()}
    visited = set(range(-48, 49, 16))
    for spacing in (8, 4, 2, 1):
        peak = max(sorted(visited, reverse=True), key=scores.get)
        visited |= {step for step in (peak - spacing, peak + spacing) if -48 <= step <= 48}
    assert set(scores) == visited
    best = max(scores.values())
    assert 1 / result.C == pytest.approx(10 ** (max(k for k, v in scores.items() if v == best) / 8))
    for C, score in list(result.searched.items())[::4]:  # warm starts change nothing
        assert linear_probe(*train, *held_out, C=C).score == pytest.approx(score, abs=1 / 80 + 1e-9)
    other = linear_probe(*train, test.flip(0) * 3, labels, validation=held_out)
    assert (other.searched, other.C) == (result.searched, result.C)
    # The last fit is of both.
    whole = tuple(torch.cat(both) for both in zip(train, held_out, strict=True))
    assert torch.equal(linear_probe(*whole, test, labels, C=result.C).coefficients, result.coefficients)
    joined = linear_probe(*train, test, labels, C=result.C, validation=held_out)
    assert torch.equal(joined.coefficients, result.coefficients)


def test_a_share_is_drawn_from_every_class_and_by_seed():
    train, test = clusters(100, 0), clusters(100, 1)
    keep = torch.cat([torch.where(train[1] == label)[0][: 2 if label == 7 else 50] for label in (2, 3, 7, 40)])
    few = train[0][keep], train[1][keep]
    results = [linear_probe(*few, *test, validation=0.3, seed=seed) for seed in (0, 0, 1)]
    assert results[0].searched == results[1].searched != results[2].searched
    assert results[0].classes == (2, 3, 7, 40)


def test_metrics_of_the_score():
    train, (test, labels) = clusters(150, 0), clusters(300, 1)
    result = linear_probe(*train, test, labels, C=1.0, metric="mean_per_class")
    scores = (test.double() @ result.coefficients.T + result.intercept).numpy()
    predicted = np.array(result.classes)[scores.argmax(1)]
    assert result.score == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    top5 = linear_probe(*train, test, labels, C=1.0, metric="mean_top1_top5")
    assert top5.score == pytest.approx((result.accuracy + 1) / 2)  # of four classes all are the top five
    (features, pair), (unseen, truth) = two_classes(150, 0), two_classes(300, 1)
    result = linear_probe(features, pair, unseen, truth, C=1.0, metric="roc_auc")
    peer = LogisticRegression(C=1.0, tol=1e-9, max_iter=3000).fit(features.double(), pair)
    assert result.score == pytest.approx(roc_auc_score(truth, peer.decision_function(unseen.double())), abs=1e-4)


def test_several_labels_are_scored_by_class_without_difficult_rows():
    train, (test, targets) = several_labels(150, 0), several_labels(300, 1)
    result = linear_probe(*train, test, targets, metric="map11")
    columns = []
    for k in range(3):
        known = train[1][:, k] >= 0
        peer = LogisticRegression(C=result.C, tol=1e-9, max_iter=5000).fit(
            train[0][known].double(), train[1][known, k]
        )
        columns.append(peer.decision_function(test.double()))
    expected = mean_eleven_point_precision(torch.from_numpy(np.stack(columns, axis=1)), targets)
    assert result.score == pytest.approx(expected, abs=2e-3) and result.accuracy is None
    assert result.classes == (0, 1, 2) and len(result.searched) >= 11


@pytest.mark.parametrize("seed", range(4))
def test_classes_of_few_rows_stay_among_the_training_rows(seed):
    (features, targets), test = several_labels(40, 0), several_labels(40, 1)
    targets[:, 0], targets[:, 2] = 0, 1
    targets[[3, 30], 0], targets[7, 2] = 1, 0  # two rows of the first class, one that is not of the last
    result = linear_probe(features, targets, *test, validation=0.6, metric="map11", seed=seed)
    assert 0 < result.score <= 1 and result.classes == (0, 1, 2)


def test_a_class_never_seen_counts_as_wrong():
    (train, labels), (test, truth) = clusters(150, 0), clusters(100, 1)
    known = labels != 7
    result = linear_probe(train[known], labels[known], test, truth, C=1.0)
    assert result.classes == (2, 3, 40) and result.score <= (truth != 7).double().mean()
    assert linear_probe(train[known], labels[known], test[truth == 7], truth[truth == 7], C=1.0).score == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "f1"}, "accuracy, map11, mean_per_class"),
        ({"metric": "map11"}, "several labels"),
        ({"metric": "roc_auc", "C": 1.0}, "two classes; got 4"),
        ({"validation": 1.5}, r"in \(0, 1\)"),
        ({"validation": 0.001}, "no validation rows"),
        ({"C": -1.0}, "above 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(*clusters(40, 0), *clusters(20, 1), **options)


def test_wrong_labels():
    train, test = clusters(40, 0), clusters(20, 1)
    with pytest.raises(ValueError, match="all training rows are of class 3"):
        linear_probe(train[0], torch.full((40,), 3), *test, C=1.0)
    with pytest.raises(ValueError, match="one class per row"):
        linear_probe(*several_labels(40, 0), *test)
    with pytest.raises(ValueError, match="1, 0 or -1"):
        linear_probe(train[0], torch.full((40, 2), 2), *several_labels(20, 1), metric="map11")
