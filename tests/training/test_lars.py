"""LARS against timm's."""

import numpy as np
import pytest
import timm.optim
import torch

from hf_vitfm.training.lars import LARS
from tests.training.runs import make_args, make_model, make_rows


def test_steps_equal_timms():
    ours, theirs = (torch.nn.Linear(6, 4, bias=False).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = LARS(ours.parameters(), lr=0.5, momentum=0.9)
    reference = timm.optim.Lars(theirs.parameters(), lr=0.5, momentum=0.9, always_adapt=True)
    for _ in range(5):
        inputs = torch.randn(8, 6, dtype=torch.float64)
        for model, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            model(inputs).square().sum().backward()
            stepper.step()
    # timm adds 1e-8 to the norms
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-8)


def test_the_ratio_is_that_of_the_decayed_gradient():
    # MAE's util/lars.py; timm has norm(gradient) + decay * norm(weight) in its place
    generator = np.random.default_rng(0)
    expected, gradient = generator.normal(size=(2, 3, 4))
    weight = torch.nn.Parameter(torch.tensor(expected))
    optimizer, velocity = LARS([weight], lr=2.0, weight_decay=0.3, trust_coefficient=0.01), 0.0
    for _ in range(3):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        decayed = gradient + 0.3 * expected
        velocity = 0.9 * velocity + decayed * 0.01 * np.linalg.norm(expected) / np.linalg.norm(decayed)
        expected = expected - 2.0 * velocity
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-12)


def test_biases_take_plain_momentum_steps_without_decay():
    bias = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    reference = bias.detach().clone().requires_grad_()
    optimizer = LARS([bias], lr=0.1, momentum=0.9, weight_decay=0.5)
    plain = torch.optim.SGD([reference], lr=0.1, momentum=0.9)
    for _ in range(3):
        for weight, stepper in ((bias, optimizer), (reference, plain)):
            stepper.zero_grad()
            weight.square().sum().backward()
            stepper.step()
    torch.testing.assert_close(bias, reference)


def test_zero_weights_start_to_move():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))


def test_arguments_choose_it(tmp_path):
    from hf_vitfm import ImageClassificationTrainer

    args = make_args(tmp_path, optim="lars", momentum=0.8, weight_decay=0.1)
    trainer = ImageClassificationTrainer(model=make_model(), args=args, train_dataset=make_rows())
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is LARS
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    trainer.train()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="momentum"):
        LARS([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=1.0)
