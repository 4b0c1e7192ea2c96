"""Attention in bfloat16 on a CPU: as exact as torch's, less is kept, and it stays out of the way everywhere else."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from hf_vitfm.models.modeling_cpu_attention import is_quicker_recomputed, recomputed_attention


MODULE = SimpleNamespace(training=True, is_causal=False)


def inputs(dtype=torch.bfloat16, queries=7):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, count, 8, generator=generator).to(dtype).requires_grad_() for count in (queries, 7, 7)]


def gradients(output, tensors):
    return torch.autograd.grad(output.float().square().sum(), tensors)


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("is_causal", "queries"), [(False, 7), (True, 7), (False, 4)])
@pytest.mark.parametrize("scaling", [None, 0.2])
def test_output_and_gradients_are_as_close_to_float64_as_torchs(is_causal, queries, scaling):
    module = SimpleNamespace(training=True, is_causal=is_causal)
    tensors = inputs(queries=queries)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    compute = lambda *given: F.scaled_dot_product_attention(*given, is_causal=is_causal, scale=scaling)  # noqa: E731
    expected, torchs = compute(*exact).transpose(1, 2), compute(*tensors).transpose(1, 2)
    output, weights = recomputed_attention(module, *tensors, scaling=scaling)
    assert weights is None and output.dtype == torch.bfloat16
    assert torch.equal(output, torchs)
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    for ours, theirs, want in zip(gradients(output, tensors), gradients(torchs, tensors), wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        assert error(ours, want) < 1.1 * error(theirs, want) + 1e-3 < 0.05


def test_only_queries_keys_and_values_are_kept():
    kept = []
    tensors = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        recomputed_attention(MODULE, *tensors)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in tensors}


def test_second_derivatives_are_refused():
    tensors = inputs()
    (first,) = torch.autograd.grad(
        recomputed_attention(MODULE, *tensors)[0].square().sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"training": False}, False),
        ({"dtype": torch.float32}, False),
        ({"dtype": torch.float16}, False),
        ({"mask": torch.ones(2, 1, 7, 7)}, False),
        ({"dropout": 0.1}, False),
    ],
)
def test_it_is_taken_in_plain_bfloat16_training_alone(change, taken):
    query = inputs(change.get("dtype", torch.bfloat16))[0]
    module = SimpleNamespace(training=change.get("training", True))
    assert is_quicker_recomputed(module, query, change.get("mask"), change.get("dropout", 0.0)) is taken


def test_functional_transforms_go_past_it():
    query = inputs()[0].detach()

    def is_taken(tensor):
        taken.append(is_quicker_recomputed(MODULE, tensor, None, 0.0))
        return tensor.float().sum()

    taken = []
    torch.func.grad(is_taken)(query)
    assert taken == [False]
