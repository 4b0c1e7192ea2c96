"""bfloat16 training on a CPU: attention in float32 is as exact as torch's own, keeps no more, and is used there only."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_vitfm.models import modeling_encoder
from hf_vitfm.models.modeling_cpu_attention import float32_attention
from hf_vitfm.models.modeling_encoder import Attention
from tests.tiny import random_images, randomize, relative_error, tiny_config, tiny_mae


def parts(dtype: torch.dtype, tokens: int = 37) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A fused projection of bfloat16 values, and its queries, keys and values: 2 images, 4 heads of 8."""
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(2, tokens, 96, generator=generator).bfloat16().to(dtype).requires_grad_()
    return fused, [part.view(2, tokens, 4, 8).transpose(1, 2) for part in fused.chunk(3, dim=-1)]


def torchs(query, key, value, is_causal):
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(1, 2)


def ours(query, key, value, is_causal):
    output, weights = float32_attention(None, query, key, value, scaling=8**-0.5, is_causal=is_causal)
    assert weights is None and output.dtype == query.dtype
    return output


def run(attend, dtype, is_causal, num_queries=37):
    """Output and gradient of the fused projection."""
    fused, (query, key, value) = parts(dtype)
    output = attend(query[:, :, -num_queries:], key, value, is_causal)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    (output * weights.to(dtype)).sum().backward()
    return output.detach(), fused.grad


@pytest.mark.parametrize(("is_causal", "num_queries"), [(False, 37), (True, 37), (False, 11)])
def test_it_is_closer_to_float64_than_torchs_own_in_bfloat16(is_causal, num_queries):
    expected = run(torchs, torch.float64, is_causal, num_queries)
    found, peer = (run(attend, torch.bfloat16, is_causal, num_queries) for attend in (ours, torchs))
    for mine, other, exact in zip(found, peer, expected, strict=True):
        assert relative_error(mine, exact) < 4e-3  # bfloat16 has eight bits
        assert relative_error(mine, exact) < 1.05 * relative_error(other, exact)
    for mine, exact in zip(run(ours, torch.float32, is_causal, num_queries), expected, strict=True):
        assert relative_error(mine, exact) < 1e-6


def test_it_keeps_no_more_than_torchs_own():
    def saved(attend) -> int:
        storages, (_, tensors) = {}, parts(torch.bfloat16)
        with saved_tensors_hooks(lambda x: storages.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x):
            output = attend(*tensors, False)  # noqa: F841 - kept, so that its storage is not used again
        return sum(x.untyped_storage().nbytes() for x in storages.values())

    assert saved(ours) <= saved(torchs)


@pytest.mark.parametrize(
    ("expected", "training", "dtype", "fields", "mask"),
    [
        (True, True, torch.bfloat16, {}, None),
        (False, False, torch.bfloat16, {}, None),
        (False, True, torch.float32, {}, None),
        (False, True, torch.bfloat16, {"attention_probs_dropout_prob": 0.1}, None),
        (False, True, torch.bfloat16, {}, torch.ones(2, 1, 9, 9, dtype=torch.bool)),
    ],
)
def test_it_is_used_for_bfloat16_training_alone(monkeypatch, expected, training, dtype, fields, mask):
    calls = []
    monkeypatch.setattr(
        modeling_encoder, "float32_attention", lambda *args, **kw: calls.append(1) or float32_attention(*args, **kw)
    )
    for implementation in ("sdpa", "eager"):
        config = tiny_config(**fields)
        config._attn_implementation = implementation
        attention = randomize(Attention(config)).to(dtype).train(training)
        attention(torch.randn(2, 9, 32, dtype=dtype), mask)
        assert bool(calls) == (expected and implementation == "sdpa")
        calls.clear()
        attention(torch.randn(2, 9, 32, dtype=dtype), mask, output_attentions=True)
        assert not calls


def test_the_models_losses_and_gradients_stay_those_of_float32():
    model, images, noise = tiny_mae().train(), random_images(), torch.rand(2, 16)

    def gradients():
        model.zero_grad()
        loss = model(images, noise).loss
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    loss, expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()
        model.activation_checkpointing_enable()
        with FlopCounterMode(display=False):  # it counts our operations as torch's
            recomputed = gradients()
    assert found[0] == pytest.approx(loss, rel=0.02) and relative_error(found[1], expected) < 0.05
    assert recomputed[0] == found[0] and torch.equal(recomputed[1], found[1])


def test_it_compiles():
    model, images, noise = tiny_mae(num_hidden_layers=1).train(), random_images(), torch.rand(2, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (model, compiled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(images, noise).loss
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
