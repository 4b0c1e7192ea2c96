"""Classification losses against torch's own formulas, whole and in micro-batches."""

import pytest
import torch
from torch.nn import functional as F

from hf_vitfm import ViTForImageClassification
from hf_vitfm.models.modeling_losses import classification_loss, resolve_problem_type
from tests.tiny import random_images, randomize, tiny_config


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
K = 5


def ids(rows=6):
    return torch.arange(rows) % K


def probabilities(rows=6):
    return torch.rand(rows, K).softmax(dim=-1)


def several(rows=6):
    return (torch.rand(rows, K) > 0.5).float()


# kind: (labels, problem type, label smoothing, torch's formula for a mean)
KINDS = {
    "hard": (ids, None, 0.0, F.cross_entropy),
    "hard smoothed": (ids, SINGLE, 0.1, lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1)),
    "soft": (probabilities, SINGLE, 0.0, lambda x, y: -(y * x.log_softmax(dim=-1)).sum(dim=-1).mean()),
    "soft smoothed": (
        probabilities,
        SINGLE,
        0.1,
        lambda x, y: -((0.9 * y + 0.1 / K) * x.log_softmax(dim=-1)).sum(dim=-1).mean(),
    ),
    "multi-label": (several, None, 0.0, lambda x, y: F.binary_cross_entropy_with_logits(x, y.to(x.dtype))),
    "multi-label integers": (
        lambda rows=6: several(rows).long(),
        MULTI,
        0.0,
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.to(x.dtype)),
    ),
    "regression": (lambda rows=6: torch.randn(rows, K), REGRESSION, 0.0, lambda x, y: F.mse_loss(x, y.to(x.dtype))),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def loss_of(kind, logits, labels, **arguments):
    _, problem_type, smoothing, _ = KINDS[kind]
    return classification_loss(logits, labels, problem_type, label_smoothing=smoothing, **arguments)


@kinds
def test_loss_and_gradient_are_torchs(kind):
    labels, formula = KINDS[kind][0](), KINDS[kind][3]
    logits = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    loss, expected = loss_of(kind, logits, labels), formula(logits, labels)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)


@kinds
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_divided_by_the_total_equal_the_big_batch(kind, as_tensor):
    labels, logits = KINDS[kind][0](), torch.randn(6, K, dtype=torch.float64)
    total = labels.ne(-100).sum()  # as transformers' Trainer counts
    total = total if as_tensor else int(total)
    parts = [loss_of(kind, logits[part], labels[part], num_items_in_batch=total) for part in (slice(4), slice(4, 6))]
    torch.testing.assert_close(sum(parts), loss_of(kind, logits, labels))


def test_ignored_rows_count_neither_in_the_mean_nor_in_micro_batches():
    logits = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, -100, 2, 3, -100, 1])
    expected = F.cross_entropy(logits[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(classification_loss(logits, labels), expected)
    total = labels.ne(-100).sum()
    parts = [classification_loss(logits[part], labels[part], None, total) for part in (slice(2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), expected)
    (gradient,) = torch.autograd.grad(sum(parts), logits)
    assert (gradient[labels == -100] == 0).all() and (gradient[labels >= 0] != 0).any(dim=-1).all()


def test_ignored_rows_are_left_out_of_label_smoothing_too():
    logits, labels = torch.randn(4, K), torch.tensor([0, -100, 2, -100])
    expected = F.cross_entropy(logits[::2], labels[::2], label_smoothing=0.2)
    torch.testing.assert_close(classification_loss(logits, labels, label_smoothing=0.2), expected)


def test_batch_of_ignored_rows_only_has_loss_zero():
    logits = torch.randn(2, K, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@kinds
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_low_precision_logits_give_a_float32_loss_and_float64_stays(kind, dtype, expected):
    labels, logits = KINDS[kind][0](), torch.randn(6, K).to(dtype)
    loss = loss_of(kind, logits, labels)
    assert loss.dtype == expected
    torch.testing.assert_close(loss, loss_of(kind, logits.to(expected), labels), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_class_ids_of_any_integer_type_are_taken(dtype):
    logits = torch.randn(6, K)
    assert torch.equal(classification_loss(logits, ids().to(dtype)), classification_loss(logits, ids()))


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_single_output_is_regression_with_labels_of_either_shape(shape):
    logits, labels = torch.randn(6, 1), torch.randn(shape)
    expected = ((logits.flatten() - labels.flatten()) ** 2).mean()
    torch.testing.assert_close(classification_loss(logits, labels), expected)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "expected"),
    [
        (None, 1, torch.zeros(2), REGRESSION),
        (None, 1, torch.zeros(2, dtype=torch.long), REGRESSION),
        (None, 3, torch.zeros(2, dtype=torch.long), SINGLE),
        (None, 3, torch.zeros(2, 3), MULTI),
        (SINGLE, 3, torch.zeros(2, 3), SINGLE),
        (REGRESSION, 3, torch.zeros(2, 3), REGRESSION),
    ],
)
def test_kind_of_targets_is_the_given_one_else_told_from_the_labels(problem_type, num_labels, labels, expected):
    assert resolve_problem_type(problem_type, num_labels, labels) == expected


@pytest.mark.parametrize("first", [ids, several])
def test_one_batchs_labels_do_not_decide_the_next_batchs_loss(first):
    model = randomize(ViTForImageClassification(tiny_config()))
    saved = model.config.to_dict()
    model(random_images(6), labels=first())
    assert model.config.to_dict() == saved
    hard, soft = (model(random_images(6), labels=labels) for labels in (ids(), several()))
    torch.testing.assert_close(hard.loss, F.cross_entropy(hard.logits, ids()))
    assert model.config.problem_type is None
    assert soft.loss > 0


@pytest.mark.parametrize("kind", ["hard", "soft", "multi-label", "regression"])
def test_model_divides_by_the_items_that_trainer_counts(kind):
    make_labels, problem_type, _, formula = KINDS[kind]
    model = randomize(ViTForImageClassification(tiny_config(problem_type=problem_type)))
    images, labels = random_images(6), make_labels()
    whole = model(images, labels=labels)
    torch.testing.assert_close(whole.loss, formula(whole.logits, labels))
    total = labels.ne(-100).sum()
    parts = [model(images[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=total).loss for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), whole.loss)
    assert model.accepts_loss_kwargs


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (torch.tensor([0, 5]), None, "must be 0 to 4 .* got 0 to 5.* `num_labels=6`"),
        (torch.tensor([-1, 2]), None, "must be 0 to 4 .* got -1 to 2"),
        (torch.tensor([[0], [1]]), None, r"Class ids must have shape \(2,\); got \(2, 1\)"),
        (torch.zeros(2, K, dtype=torch.long), None, 'with `problem_type="multi_label_classification"`'),
        (torch.zeros(3, dtype=torch.long), None, r"Class ids must have shape \(2,\); got \(3,\)"),
        (torch.zeros(2, 4), SINGLE, r"Soft targets of shape \(2, 4\) do not fit logits of shape \(2, 5\)"),
        (torch.zeros(2), SINGLE, "one probability per class"),
        (torch.zeros(2, 4), None, r"do not fit 5 outputs for multi_label.*expected \(2, 5\).*`num_labels`"),
        (torch.zeros(2), REGRESSION, r"do not fit 5 outputs for regression; expected \(2, 5\)"),
        (torch.zeros(2, K), "soft", "`problem_type` must be one of .*got 'soft'"),
    ],
)
def test_labels_that_do_not_fit_are_refused_saying_what_is_wrong(labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(torch.zeros(2, K), labels, problem_type)


def test_class_weights_are_torchs_divided_by_the_number_of_rows():
    logits, labels = torch.randn(6, K, dtype=torch.float64), torch.tensor([0, 4, -100, 2, 2, 1])
    weights = torch.tensor([0.5, 2.0, 3.0, 1.0, 0.1], dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="sum") / 5
    torch.testing.assert_close(classification_loss(logits, labels, class_weights=weights), expected)
    parts = [classification_loss(logits[i : i + 2], labels[i : i + 2], None, 5, 0.0, weights) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), expected)


def test_class_weights_of_soft_targets_are_mixed_as_the_targets_are():
    logits, labels, weights = torch.randn(6, K), probabilities(), torch.rand(K)
    losses = F.cross_entropy(logits, labels, reduction="none")
    found = classification_loss(logits, labels, SINGLE, class_weights=weights)
    torch.testing.assert_close(found, (losses * (labels @ weights)).mean())
    one_hot = classification_loss(logits, F.one_hot(ids(), K).float(), SINGLE, class_weights=weights)
    torch.testing.assert_close(one_hot, classification_loss(logits, ids(), class_weights=weights))


def test_class_weights_are_refused_where_there_is_no_single_class():
    with pytest.raises(ValueError, match="one class per row; got the problem type 'regression'"):
        classification_loss(torch.zeros(2, K), torch.zeros(2, K), REGRESSION, class_weights=torch.ones(K))


@pytest.mark.parametrize("kind", ["soft", "soft smoothed", "multi-label", "regression"])
def test_rows_with_nan_targets_count_nowhere_and_have_no_gradient(kind):
    labels, logits = KINDS[kind][0](), torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    known = torch.tensor([True, False, True, True, False, True])
    expected = loss_of(kind, logits[known], labels[known])
    labels = torch.where(known[:, None], labels, torch.tensor([float("nan"), *[0.0] * (K - 1)]))
    loss = loss_of(kind, logits, labels)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~known] == 0).all() and gradient.isfinite().all() and (gradient[known] != 0).any(dim=-1).all()
    parts = [loss_of(kind, logits[i : i + 2], labels[i : i + 2], num_items_in_batch=4 * K) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), expected)


def test_a_global_batch_without_any_target_has_a_loss_of_zero():
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.full((4,), -100)
    loss = classification_loss(logits, labels, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
