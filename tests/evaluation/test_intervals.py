"""Bootstrap intervals, compared with scipy's and with the variance that a two-way bootstrap has in closed form."""

import numpy as np
import pytest
from scipy import stats

from hf_vitfm.evaluation.intervals import (
    accuracy_interval,
    bootstrap_accuracies,
    percentile_interval,
    wilson_interval,
)


def answers(images: int, share: float, seeds: int = 1, seed: int = 0) -> np.ndarray:
    """(seeds, images): some images are hard for every seed, and some seeds are luckier than others."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(size=images)
    luck = generator.normal(size=(seeds, 1))
    noise = generator.normal(size=(seeds, images))
    return hard + 0.3 * luck + 0.5 * noise < stats.norm.ppf(share) * 1.2


def test_one_accuracy_has_the_interval_of_scipy():
    correct = answers(200, 0.8)
    found = bootstrap_accuracies({"a": correct}, 20_000)["a"]
    expected = stats.bootstrap(
        (correct[0].astype(float),), np.mean, method="percentile", n_resamples=20_000, random_state=1
    )
    assert percentile_interval(found) == pytest.approx(tuple(expected.confidence_interval), abs=0.0051)  # an image
    assert found.std() == pytest.approx(expected.standard_error, rel=0.03)


def test_a_difference_is_paired():
    first, noise = answers(300, 0.7), np.random.default_rng(1).random(300) < 0.05
    second = first ^ noise
    found = bootstrap_accuracies({"a": first, "b": second}, 20_000)
    difference = found["b"] - found["a"]
    scipys = stats.bootstrap(
        (second[0].astype(float), first[0].astype(float)),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        random_state=1,
    )
    assert percentile_interval(difference) == pytest.approx(tuple(scipys.confidence_interval), abs=0.0034)
    unpaired = np.hypot(found["a"].std(), found["b"].std())
    assert difference.std() < 0.5 * unpaired


@pytest.mark.parametrize("seeds", [2, 5])
def test_seeds_and_images_add_up_to_the_variance_of_both(seeds):
    correct = answers(60, 0.6, seeds).astype(float)
    of_seeds, of_images = correct.mean(axis=1), correct.mean(axis=0)
    rest = correct - of_seeds[:, None] - of_images[None] + correct.mean()
    # S - 1 seeds are drawn of S, and all images.
    expected = (
        of_seeds.var() / (seeds - 1) + of_images.var() / correct.shape[1] + rest.var() / (seeds - 1) / correct.shape[1]
    )
    found = bootstrap_accuracies({"a": correct > 0}, 40_000)["a"]
    assert found.var() == pytest.approx(expected, rel=0.04)
    assert found.mean() == pytest.approx(correct.mean(), abs=0.002)
    assert of_seeds.var() / (seeds - 1) == pytest.approx(of_seeds.var(ddof=1) / seeds)  # what it is unbiased for


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth, held = 0.75, 0
    for trial in range(300):
        correct = np.random.default_rng((7, trial)).random((1, 150)) < truth
        low, high = accuracy_interval(correct.mean(), bootstrap_accuracies({0: correct}, 500)[0], 150)
        held += low <= truth <= high
    assert 0.91 <= held / 300 <= 0.98


def test_draws_are_the_same_whatever_else_is_compared():
    first, second = answers(100, 0.5), answers(100, 0.7, seeds=3, seed=2)
    alone, together = (
        bootstrap_accuracies(entries, 50) for entries in ({"b": second}, {"a": first, "b": second, "c": first})
    )
    np.testing.assert_allclose(alone["b"], together["b"], atol=1e-6)
    assert (together["a"] == together["c"]).all()
    assert not np.allclose(alone["b"], bootstrap_accuracies({"b": second}, 50, seed=1)["b"])


def test_many_images_are_resampled_in_chunks(monkeypatch):
    correct = {"a": answers(90, 0.5)}
    whole = bootstrap_accuracies(correct, 50)["a"]
    monkeypatch.setattr("hf_vitfm.evaluation.intervals._CHUNK", 700)
    np.testing.assert_allclose(bootstrap_accuracies(correct, 50)["a"], whole, atol=1e-6)


@pytest.mark.parametrize(("right", "count"), [(50, 50), (0, 20), (3, 10)])
def test_wilson_is_scipys(right, count):
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_error_seen_is_no_proof_of_none():
    correct = np.ones((1, 40), dtype=bool)
    found = accuracy_interval(1.0, bootstrap_accuracies({0: correct}, 100)[0], 40)
    assert found == pytest.approx((0.912, 1.0), abs=0.001)


def test_entries_are_about_the_same_images():
    with pytest.raises(ValueError, match="same test images.*\\[3, 4\\] images in 2 entries"):
        bootstrap_accuracies({"a": np.ones(3), "b": np.ones(4)})
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_accuracies({})
