"""Mixup and CutMix: timm's maths, addressed by (seed, step)."""

import numpy as np
import pytest
import timm.data.mixup as timm_mixup
import torch
from scipy.stats import ks_2samp, kstest

from hf_vitfm.data.mixing import Mixing
from hf_vitfm.models.modeling_losses import classification_loss


CLASSES = 5
BOTH = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def batch(size=8, dtype=torch.float32):
    return torch.randn(size, 3, 12, 10).to(dtype), torch.randint(0, CLASSES, (size,))


def neighbours(size):
    """timm pairs row i with row -1 - i; in this order those are our rows 2k and 2k + 1."""
    return [k for pair in zip(range(size // 2), range(size - 1, -1, -1), strict=False) for k in pair]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}, BOTH])
def test_images_and_targets_are_those_of_timm(alphas, smoothing, monkeypatch):
    mixing = Mixing(**alphas, seed=3)
    theirs = timm_mixup.Mixup(**alphas, label_smoothing=smoothing, num_classes=CLASSES)
    for step in range(12):
        images, labels = batch()
        share, box = mixing.draw(step, 12, 10)
        theirs._params_per_batch = lambda share=share, box=box: (share, box is not None)
        if box is not None:
            monkeypatch.setattr(
                timm_mixup,
                "rand_bbox",
                lambda *args, box=box, **kwargs: tuple(map(np.int64, box)),
            )
        expected, expected_targets = theirs(images.clone(), labels)
        order = neighbours(len(images))
        mixed, targets = mixing(images[order], labels[order], CLASSES, step)
        assert torch.equal(mixed, expected[order])
        assert targets.dtype == torch.float32
        smoothed = targets * (1 - smoothing) + smoothing / CLASSES
        torch.testing.assert_close(smoothed, expected_targets[order], rtol=0, atol=1e-6)
        # The loss smooths after mixing, timm before.
        logits = torch.randn(len(images), CLASSES)
        loss = classification_loss(logits, targets, "single_label_classification", label_smoothing=smoothing)
        reference = -(expected_targets[order] * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0)


def test_parts_of_a_global_batch_are_mixed_as_the_whole():
    images, labels = batch(12)
    mixing = Mixing(**BOTH, seed=1)
    for step in range(8):
        mixed, targets = mixing(images, labels, CLASSES, step)
        for part in (slice(0, 4), slice(4, 12)):
            mixed_part, targets_part = mixing(images[part], labels[part], CLASSES, step)
            assert torch.equal(mixed_part, mixed[part]) and torch.equal(targets_part, targets[part])


def test_mixing_is_a_function_of_seed_and_step():
    images, labels = batch()
    before, images_before = torch.get_rng_state(), images.clone()
    numpy_before = np.random.get_state()[1].copy()
    results = [Mixing(**BOTH, seed=seed)(images, labels, CLASSES, step)[0] for seed, step in ((0, 4), (0, 5), (1, 4))]
    assert torch.equal(results[0], Mixing(**BOTH, seed=0)(images, labels, CLASSES, 4)[0])
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(images, images_before)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_shares_follow_their_beta_distributions_and_boxes_are_as_timms():
    draws = [Mixing(mixup_alpha=0.8, seed=0).draw(step, 200, 300) for step in range(3000)]
    assert all(box is None for _, box in draws)
    assert kstest([share for share, _ in draws], "beta", args=(0.8, 0.8)).pvalue > 1e-3
    draws = [Mixing(cutmix_alpha=1.0, seed=0).draw(step, 200, 300) for step in range(3000)]
    for share, (top, bottom, left, right) in draws:
        assert 0 <= top <= bottom <= 200 and 0 <= left <= right <= 300
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / 60_000, abs=1e-12)
    inside = [(b, share) for share, b in draws if 0 < b[0] and b[1] < 200 and 0 < b[2] and b[3] < 300]
    for (top, bottom, left, right), _ in inside:  # a box that is not cut off has the shape of the image
        assert abs((bottom - top) / 200 - (right - left) / 300) < 0.01
    shares = np.random.beta(1.0, 1.0, size=3000)
    theirs = np.array([timm_mixup.cutmix_bbox_and_lam((3, 200, 300), share)[0] for share in shares]).T
    ours = np.array([box for _, box in draws]).T
    assert all(ks_2samp(a, b).pvalue > 1e-3 for a, b in zip(ours, theirs, strict=True))


def test_probabilities_of_mixing_and_of_cutmix():
    draws = [Mixing(**BOTH, probability=0.7, switch_probability=0.25).draw(step, 50, 50) for step in range(3000)]
    unmixed = sum(draw == (1.0, None) for draw in draws)
    cut = sum(box is not None for _, box in draws)
    assert abs(unmixed / 3000 - 0.3) < 0.03
    assert abs(cut / (3000 - unmixed) - 0.25) < 0.03
    images, labels = batch()
    mixed, targets = Mixing(**BOTH, probability=0.0)(images, labels, CLASSES, 0)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, CLASSES).float())


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_an_ignored_row_stays_out_and_leaves_its_neighbour_alone(alphas):
    images, labels = batch()
    labels[3] = -100
    step = next(s for s in range(99) if 0.1 < Mixing(**alphas).draw(s, 12, 10)[0] < 0.9)
    mixed, targets = Mixing(**alphas)(images, labels, CLASSES, step)
    assert torch.equal(mixed[2:4], images[2:4])
    assert torch.equal(targets[2], torch.nn.functional.one_hot(labels[2], CLASSES).float())
    assert targets[3].isnan().all()
    others = [0, 1, 4, 5, 6, 7]
    expected = Mixing(**alphas)(images[others], labels[others], CLASSES, step)
    assert torch.equal(mixed[others], expected[0]) and torch.equal(targets[others], expected[1])
    logits, kind = torch.randn(8, CLASSES), "single_label_classification"
    assert torch.equal(
        classification_loss(logits, targets, kind, label_smoothing=0.1),
        classification_loss(logits[[0, 1, 2, 4, 5, 6, 7]], targets[[0, 1, 2, 4, 5, 6, 7]], kind, label_smoothing=0.1),
    )
    soft = torch.nn.functional.one_hot(labels.clamp(min=0), CLASSES).float()
    soft[3, 0] = torch.nan  # a soft target that is not known is treated alike
    assert torch.equal(Mixing(**alphas)(images, soft, CLASSES, step)[0], mixed)


def test_soft_labels_are_mixed_like_class_ids():
    images, labels = batch()
    soft = torch.nn.functional.one_hot(labels, CLASSES).double()
    for step in range(4):
        from_ids = Mixing(**BOTH)(images, labels, CLASSES, step)
        from_soft = Mixing(**BOTH)(images, soft, CLASSES, step)
        assert all(torch.equal(a, b) for a, b in zip(from_ids, from_soft, strict=True))
        assert from_soft[1].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_keep_their_dtype(dtype):
    images, labels = batch(dtype=dtype)
    mixed, _ = Mixing(mixup_alpha=1.0)(images, labels, CLASSES, 2)
    assert mixed.dtype == dtype
    expected, _ = Mixing(mixup_alpha=1.0)(images.double(), labels, CLASSES, 2)
    torch.testing.assert_close(mixed.double(), expected, rtol=2e-2, atol=2e-2)


def test_what_cannot_be_mixed_is_refused():
    images, labels = batch()
    mixing = Mixing(**BOTH)
    with pytest.raises(ValueError, match="got 7. Use an even `per_device_train_batch_size`"):
        mixing(images[:7], labels[:7], CLASSES, 0)
    with pytest.raises(ValueError, match=r"must be 0 to 3 .*got \["):
        mixing(images, labels.fill_(4), 4, 0)
    with pytest.raises(ValueError, match="must be 0 to 4"):
        mixing(images, labels.fill_(-1), CLASSES, 0)
    with pytest.raises(ValueError, match=r"\(8, 5\).*got \(8, 4\)"):
        mixing(images, torch.rand(8, 4), CLASSES, 0)
    with pytest.raises(ValueError, match=r"\(8,\).*got \(8, 1\)"):
        mixing(images, labels.view(8, 1), CLASSES, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of them above"),
        ({"mixup_alpha": -1.0, "cutmix_alpha": 1.0}, "mixup_alpha"),
        ({"mixup_alpha": float("nan")}, "mixup_alpha"),
        ({**BOTH, "probability": 1.5}, "`probability`"),
        ({**BOTH, "switch_probability": -0.5}, "`switch_probability`"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mixing(**options)
