"""Learning-rate factors against the papers' formulas."""

import math

import pytest
import torch

from hf_vitfm.training.schedules import warmup_decay


def test_cosine_follows_the_vit_code():
    # vision_transformer's create_learning_rate_schedule: lr * (1 + cos(pi * progress)) / 2 * min(1, step / warmup)
    factor = warmup_decay("cosine", 500, 20_000)
    for step in (1, 2, 250, 499, 500, 501, 10_250, 19_999, 20_000):
        progress = min(1.0, max(0.0, (step - 500) / (20_000 - 500)))
        expected = (1 + math.cos(math.pi * progress)) / 2 * min(1.0, step / 500)
        assert factor(step - 1) == pytest.approx(expected, abs=1e-12)


def test_linear_ends_at_the_minimum():
    factor = warmup_decay("linear", 0, 100, min_ratio=0.01)
    assert factor(99) == pytest.approx(0.01)
    assert factor(49) == pytest.approx(0.01 + 0.99 * 0.5)
    assert factor(500) == pytest.approx(0.01)


def test_cosine_with_a_minimum_follows_the_mae_code():
    # mae/util/lr_sched.py: min_lr + (lr - min_lr) * 0.5 * (1 + cos(pi * progress)) after the warm-up
    factor = warmup_decay("cosine", 10, 110, min_ratio=0.1)
    assert factor(59) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor(4) == pytest.approx(0.5)


def test_no_update_of_the_warmup_has_a_learning_rate_of_zero():
    assert warmup_decay("constant", 4, 10)(0) == 0.25
    assert warmup_decay("constant", 0, 10)(0) == 1.0


@pytest.mark.parametrize("options", [{"decay": "step"}, {"min_ratio": 2.0}])
def test_bad_settings_say_what_is_allowed(options):
    with pytest.raises(ValueError, match="must be"):
        warmup_decay(**{"decay": "cosine", "warmup_steps": 1, "total_steps": 2, **options})


def test_inverse_square_root_follows_transformers_and_cools_down_to_zero():
    from transformers import get_inverse_sqrt_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_inverse_sqrt_schedule(optimizer, num_warmup_steps=10, timescale=40).lr_lambdas[0]
    ours = warmup_decay("inverse_sqrt", 10, 1000, timescale=40)
    cooled = warmup_decay("inverse_sqrt", 10, 1000, timescale=40, cooldown_steps=100)
    for update in (0, 5, 9, 10, 50, 500, 899, 950, 999):
        expected = theirs(update + 1)  # they count the first update as step 0
        assert ours(update) == pytest.approx(expected)
        assert cooled(update) == pytest.approx(expected * min(1.0, (1000 - update - 1) / 100))


def test_a_constant_rate_cools_down():
    factor = warmup_decay("constant", 0, 10, cooldown_steps=4)
    assert [factor(update) for update in range(10)] == pytest.approx([1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"decay": "cosine", "cooldown_steps": 2},
        {"decay": "constant", "min_ratio": 0.1},
        {"decay": "constant", "cooldown_steps": 11},
    ],
)
def test_ends_that_do_not_go_together_are_refused(options):
    with pytest.raises(ValueError, match=r"go with|goes with|between 0 and"):
        warmup_decay(warmup_steps=0, total_steps=10, **options)
