"""The encoder: attention functions agree, masks mask, and regularisation does what its rate says."""

import copy

import pytest
import torch
from timm.layers import SwiGLUPacked
from torch import nn
from transformers.utils import is_flash_attn_2_available

from hf_vitfm.models.modeling_encoder import MLP, Attention, DropPath, Encoder, EncoderLayer, LayerScale
from tests.tiny import randomize, tiny_config


def encoder(is_causal=False, implementation="sdpa", **fields) -> Encoder:
    config = tiny_config(**fields)
    config._attn_implementation = implementation
    return randomize(Encoder(config, is_causal=is_causal))


def tokens(batch=2, length=9, width=32):
    return torch.randn(batch, length, width)


PADDED = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
MASKS = [
    pytest.param(None, id="no mask"),
    pytest.param(torch.ones(2, 9), id="ones"),
    pytest.param(PADDED, id="padded"),
]


def switch(model: Encoder, implementation: str) -> Encoder:
    model.config._attn_implementation = implementation
    return model


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_eager_equals_sdpa(is_causal, mask):
    model, x = encoder(is_causal), tokens()
    expected = model(x, mask).last_hidden_state
    found = switch(model, "eager")(x, mask).last_hidden_state
    recorded = switch(model, "sdpa")(x, mask, output_attentions=True).last_hidden_state
    attended = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(found[attended], expected[attended], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recorded[attended], expected[attended], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_eager_and_sdpa_have_the_same_gradients(is_causal):
    model, gradients = encoder(is_causal).double(), []
    x = tokens().double()
    for implementation in ("sdpa", "eager"):
        model.zero_grad()
        switch(model, implementation)(x, PADDED).last_hidden_state[PADDED.bool()].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:flex_attention called:UserWarning", "ignore:_compile flag:DeprecationWarning")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_causal", [False, True])
@torch.no_grad()
def test_flex_equals_sdpa(is_causal, mask):
    model, x = encoder(is_causal), tokens()
    expected = model(x, mask).last_hidden_state
    torch.compiler.set_stance("force_eager")  # the kernel's own compilation takes half a minute on a CPU
    try:
        found = switch(model, "flex_attention")(x, mask).last_hidden_state
    finally:
        torch.compiler.set_stance("default")
    attended = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(found[attended], expected[attended], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash attention is not installed")
@pytest.mark.parametrize("is_causal", [False, True])
def test_flash_equals_sdpa(is_causal):
    model = encoder(is_causal, hidden_size=64).to("cuda", torch.bfloat16)
    x = tokens(width=64).to("cuda", torch.bfloat16)
    expected = model(x).last_hidden_state
    found = switch(model, "flash_attention_2")(x).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_causal_output_does_not_depend_on_later_tokens(implementation, mask, output_attentions):
    model, x = encoder(is_causal=True, implementation=implementation), tokens()
    changed = x.clone()
    changed[:, 3:] += torch.randn(2, 6, 32)
    first, second = (
        model(value, mask, output_attentions=output_attentions).last_hidden_state for value in (x, changed)
    )
    torch.testing.assert_close(first[:, :3], second[:, :3], rtol=0, atol=1e-6)
    assert (first[0, 3:] - second[0, 3:]).abs().amax(dim=-1).min() > 1e-3


def test_without_causality_every_token_depends_on_every_other():
    model, x = encoder(), tokens()
    changed = x.clone()
    changed[:, 8] += 1
    difference = model(x).last_hidden_state - model(changed).last_hidden_state
    assert (difference.abs().amax(dim=-1) > 1e-6).all()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_masked_tokens_are_irrelevant_to_the_others(implementation, is_causal, output_attentions):
    model, x = encoder(is_causal, implementation), tokens()
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0]])
    changed = torch.where(mask[..., None].bool(), x, 100 * torch.randn_like(x))
    first, second = (
        model(value, mask, output_attentions=output_attentions).last_hidden_state for value in (x, changed)
    )
    torch.testing.assert_close(first[mask.bool()], second[mask.bool()], rtol=0, atol=1e-6)
    shorter = model(x[1:, :4]).last_hidden_state  # leaving the masked tokens out says the same
    torch.testing.assert_close(first[1:, :4], shorter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attentions_are_returned_per_layer_and_their_rows_sum_to_one(implementation):
    outputs = encoder(implementation=implementation)(tokens(), PADDED, output_attentions=True)
    assert len(outputs.attentions) == 3
    for weights in outputs.attentions:
        assert weights.shape == (2, 4, 9, 9)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 9))
        assert (weights[1, ..., 4:] == 0).all()  # masked


@pytest.mark.parametrize("mask", MASKS)
def test_causal_attentions_are_lower_triangular(mask):
    for weights in encoder(is_causal=True)(tokens(), mask, output_attentions=True).attentions:
        assert torch.equal(weights, weights.tril())
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 9))


def test_attentions_are_softmax_of_scaled_products():
    attention = randomize(Attention(tiny_config()))
    x = tokens()
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    head = slice(8, 16)  # the second of four
    expected = (query[..., head] @ key[..., head].mT / 8**0.5).softmax(dim=-1)
    output, weights = attention(x, output_attentions=True)
    torch.testing.assert_close(weights[:, 1], expected)
    heads = torch.cat([weights[:, i] @ value[..., 8 * i : 8 * i + 8] for i in range(4)], dim=-1)
    torch.testing.assert_close(output, attention.proj(heads))


def test_hidden_states_are_the_input_and_every_layers_output_in_order():
    model, x = encoder(), tokens()
    outputs = model(x, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4
    assert torch.equal(outputs.hidden_states[0], x)
    for layer, before, after in zip(model.layers, outputs.hidden_states, outputs.hidden_states[1:], strict=False):
        assert torch.equal(layer(before)[0], after)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert outputs.attentions is None


def test_nothing_is_recorded_unless_asked_for():
    outputs = encoder()(tokens())
    assert outputs.hidden_states is None and outputs.attentions is None


def gradients(model, x, seed=7):
    torch.manual_seed(seed)
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x, PADDED).last_hidden_state.square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_with_dropout_and_drop_path(use_reentrant):
    model = encoder(
        drop_path_rate=0.5, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, layer_scale_init_value=0.5
    ).train()
    x = tokens(batch=2)
    expected = gradients(model, x)
    for layer in model.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda function, *args: torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=use_reentrant
        )
    torch.testing.assert_close(gradients(model, x), expected, rtol=0, atol=0)
    other = gradients(model, x, seed=8)
    assert any(not torch.equal(a, b) for a, b in zip(other, expected, strict=True))  # so the rates were at work


def test_drop_path_drops_whole_samples_and_preserves_the_expectation():
    rate, samples = 0.3, 20_000
    dropped = DropPath(rate).train()(torch.ones(samples, 3, 2))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / (1 - rate)]))
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    deviation = (rate / (1 - rate) / samples) ** 0.5  # of the mean of samples times 1 / (1 - rate)
    assert abs(dropped.mean().item() - 1) < 5 * deviation


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.9, False)])
def test_drop_path_is_the_identity_in_evaluation_and_at_rate_zero(rate, training):
    x = tokens()
    assert DropPath(rate).train(training)(x) is x


@pytest.mark.parametrize(("layers", "expected"), [(5, [0, 0.1, 0.2, 0.3, 0.4]), (2, [0, 0.4]), (1, [0])])
def test_drop_path_rates_rise_linearly(layers, expected):
    model = encoder(num_hidden_layers=layers, drop_path_rate=0.4)
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx(expected)


def test_dropped_layer_passes_its_input_on():
    layer = EncoderLayer(tiny_config(), drop_path_rate=1 - 1e-12).train()
    x = tokens()
    assert torch.equal(layer(x)[0], x)


def test_layer_scale_multiplies_both_branches():
    layer = randomize(EncoderLayer(tiny_config(layer_scale_init_value=0.1)))
    x = tokens()
    middle = x + layer.attention(layer.norm1(x))[0] * layer.layer_scale1.weight
    expected = middle + layer.mlp(layer.norm2(middle)) * layer.layer_scale2.weight
    torch.testing.assert_close(layer(x)[0], expected)
    nn.init.zeros_(layer.layer_scale1.weight)
    nn.init.zeros_(layer.layer_scale2.weight)
    assert torch.equal(layer(x)[0], x)


def test_layer_scale_is_absent_by_default():
    assert not any(isinstance(module, LayerScale) for module in encoder().modules())


def test_dropout_follows_every_dense_layer_except_qkv():
    layer = randomize(EncoderLayer(tiny_config(hidden_dropout_prob=0.999999))).train()
    x = tokens()
    assert torch.equal(layer(x)[0], x)  # both branches end in a dropout
    seen = []
    layer.attention.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer.mlp.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer(x)
    assert (seen[0] != 0).all() and (seen[1] == 0).all()


def test_attention_dropout_acts_in_training_only():
    for implementation in ("eager", "sdpa"):
        model, x = encoder(attention_probs_dropout_prob=0.5, implementation=implementation), tokens()
        assert torch.equal(model(x).last_hidden_state, model(x).last_hidden_state)
        model.train()
        assert not torch.equal(model(x).last_hidden_state, model(x).last_hidden_state)


@pytest.mark.parametrize("is_autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16_training_on_a_cpu_is_as_close_to_float64_as_in_evaluation(is_autocast):
    exact = encoder(hidden_size=64).double()
    x = tokens(width=64)
    errors = {}
    for training in (True, False):
        model = copy.deepcopy(exact).to(torch.float32 if is_autocast else torch.bfloat16).train(training)
        given = x.clone().to(torch.float32 if is_autocast else torch.bfloat16).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            output = model(given).last_hidden_state
        output.float().square().sum().backward()
        wanted = x.double().requires_grad_()
        expected = exact(wanted).last_hidden_state
        expected.square().sum().backward()
        errors[training] = [
            ((got.double() - want).norm() / want.norm()).item()
            for got, want in ((output, expected), (given.grad, wanted.grad))
        ]
    assert all(trained < 1.2 * evaluated + 1e-3 for trained, evaluated in zip(*errors.values(), strict=True))
    assert max(errors[True]) < 0.03


def test_gated_mlp_is_timms_packed_swiglu():
    ours = randomize(MLP(tiny_config(use_gated_mlp=True, hidden_act="silu", intermediate_size=40)))
    theirs = SwiGLUPacked(32, 80)
    theirs.load_state_dict(ours.state_dict())
    x = tokens()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
