"""The losses over pairs against the plain formulas in float64, open_clip's and transformers'."""

import copy
import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from hf_vitfm import contrastive_loss, pairwise_margin_loss
from hf_vitfm.models import modeling_contrastive


objectives = pytest.mark.parametrize("objective", ["softmax", "sigmoid"])


def make_inputs(pairs=7, dim=6, dtype=torch.float64, scale=20.0):
    """Image and text embeddings, scale and bias."""
    embeds = [F.normalize(torch.randn(pairs, dim, dtype=torch.float64), dim=1).to(dtype) for _ in range(2)]
    scalars = [torch.tensor(value, dtype=dtype) for value in (scale, -3.0)]
    return [tensor.requires_grad_() for tensor in (*embeds, *scalars)]


def plain_loss(image, text, scale, bias, objective):
    """The whole matrix, as the papers have it."""
    logits = scale * image @ text.T + bias
    if objective == "softmax":
        own = torch.arange(len(logits))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def relative_error(found, expected):
    """Norm of the difference over norm; over 1e-3 where the norm is below, so perhaps nothing but rounding."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-3))


def assert_same(found, expected, inputs, tolerance):
    """Losses and gradients by the inputs that they depend on."""
    assert relative_error(found, expected) < tolerance
    gradients = torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs, materialize_grads=True)
    for name, ours, theirs in zip(("image", "text", "scale", "bias"), *gradients, strict=False):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert relative_error(ours, theirs) < tolerance, name


@objectives
@pytest.mark.parametrize(("pairs", "tile_size"), [(7, 3), (8, 4), (8, 1), (7, 7), (5, 1024), (1, 2)])
def test_value_and_all_gradients_are_those_of_the_whole_matrix(objective, pairs, tile_size):
    inputs = make_inputs(pairs)
    found = contrastive_loss(*inputs, objective=objective, tile_size=tile_size)
    assert found.shape == () and found.dtype == torch.float64
    assert_same(3 * found, 3 * plain_loss(*inputs, objective), inputs, 1e-12)


@objectives
@pytest.mark.parametrize("scale", [0.0, -5.0, 1e4])
def test_any_scale_is_exact(objective, scale):
    """At 1e4 every exponential under- or overflows somewhere."""
    inputs = make_inputs(9, scale=scale)
    found = contrastive_loss(*inputs, objective=objective, tile_size=4)
    assert_same(found, plain_loss(*inputs, objective), inputs, 1e-12)


@pytest.mark.parametrize("tile_size", [5, 1024])
def test_softmax_is_that_of_open_clip_and_transformers(tile_size):
    inputs = make_inputs(16)
    image, text, scale, bias = inputs
    found = contrastive_loss(*inputs, tile_size=tile_size)
    assert_same(found, ClipLoss()(image, text, scale, bias), inputs, 1e-12)
    found = contrastive_loss(image, text, scale, tile_size=tile_size)
    assert_same(found, image_text_contrastive_loss(scale * text @ image.T), inputs[:3], 1e-12)


def test_sigmoid_is_that_of_open_clip():
    inputs = make_inputs(16)
    assert_same(contrastive_loss(*inputs, objective="sigmoid", tile_size=5), SigLipLoss()(*inputs), inputs, 1e-12)


@pytest.mark.parametrize("logit", [12.0, 21.0, 30.0, 39.0, 41.0, 700.0])
def test_sigmoid_is_exact_where_softplus_is_almost_the_identity(logit):
    one = torch.ones(1, 1, dtype=torch.float64)
    found = contrastive_loss(one, -one, logit, objective="sigmoid").item()
    assert found == pytest.approx(logit + math.log1p(math.exp(-logit)), rel=1e-13)


@objectives
def test_gradients_equal_finite_differences(objective):
    torch.autograd.gradcheck(lambda *x: contrastive_loss(*x, objective=objective, tile_size=2), make_inputs(5, 3))


@objectives
def test_scale_and_bias_may_be_numbers_or_have_one_element(objective):
    image, text, scale, bias = make_inputs()
    found = contrastive_loss(image, text, 20, -3.0, objective=objective)
    assert_same(found, plain_loss(image, text, 20, -3.0, objective), [image, text], 1e-12)
    vectors = [torch.tensor([20.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)]
    contrastive_loss(image, text, *vectors, objective=objective).backward()
    plain_loss(image, text, scale, bias, objective).backward()
    for vector, scalar in zip(vectors, (scale, bias), strict=True):
        assert vector.grad.shape == (1,) and vector.grad.item() == pytest.approx(scalar.grad.item(), abs=1e-6)


def test_no_bias_is_a_bias_of_zero():
    image, text, scale, _ = make_inputs()
    zero = torch.zeros((), dtype=torch.float64)
    for objective in ("softmax", "sigmoid"):
        found = contrastive_loss(image, text, scale, objective=objective)
        assert relative_error(found, plain_loss(image, text, scale, zero, objective)) < 1e-12


@objectives
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (1, 2), (0, 3)])
def test_only_the_gradients_wanted_are_made(objective, wanted):
    inputs = [tensor.detach() for tensor in make_inputs()]
    expected = copy.deepcopy(inputs)
    for position in wanted:
        inputs[position].requires_grad_()
        expected[position].requires_grad_()
    found = contrastive_loss(*inputs, objective=objective, tile_size=3)
    kept = [tensor.numel() for tensor in found.grad_fn.saved_tensors]
    assert [count > 0 for count in kept] == [position in wanted for position in range(4)]
    plain = plain_loss(*expected, objective)
    gradients = torch.autograd.grad(plain, [expected[i] for i in wanted], allow_unused=True, materialize_grads=True)
    for position, gradient in zip(wanted, gradients, strict=True):
        (ours,) = torch.autograd.grad(found, inputs[position], retain_graph=True)
        assert relative_error(ours, gradient) < 1e-12


class Recorder(TorchDispatchMode):
    """Counts matrix products and remembers the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        if isinstance(output, torch.Tensor):
            self.largest = max(self.largest, output.numel())
        return output


@pytest.fixture
def opened(monkeypatch):
    """The loss with its operator opened, so that a recorder sees what happens inside."""

    def alone(image, text, scale, bias, wanted, objective, tile_size):
        shares = modeling_contrastive._Shares(None, (len(image),))
        inputs = (image, text, scale, bias)
        return modeling_contrastive._loss_and_gradients(inputs, wanted, objective, tile_size, shares)

    monkeypatch.setattr(modeling_contrastive, "_alone", alone)


@pytest.mark.parametrize(
    ("objective", "wanted", "products"),
    [
        ("softmax", (), 1),
        ("softmax", (3,), 1),
        ("softmax", (1, 2), 3),
        ("softmax", (0, 1, 2, 3), 4),
        ("sigmoid", (), 1),
        ("sigmoid", (0, 2), 2),
        ("sigmoid", (0, 1, 2, 3), 3),
    ],
)
def test_what_nobody_wants_costs_no_matrix_product(opened, objective, wanted, products):
    inputs = [tensor.detach() for tensor in make_inputs(8)]
    for position in wanted:
        inputs[position].requires_grad_()
    with Recorder() as record:
        contrastive_loss(*inputs, objective=objective, tile_size=8)
    assert record.products == products
    for tensor in inputs:
        tensor.requires_grad_()
    with Recorder() as record, torch.no_grad():
        assert not contrastive_loss(*inputs, objective=objective, tile_size=8).requires_grad
    assert record.products == 1


@objectives
def test_no_tensor_is_larger_than_the_embeddings_or_a_tile(opened, objective):
    inputs = make_inputs(300, 4)
    with Recorder() as record:
        contrastive_loss(*inputs, objective=objective, tile_size=20).backward()
    assert record.largest == max(300 * 4, 20 * 20)


@objectives
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_are_accumulated_in_float32(objective, dtype):
    inputs = make_inputs(32, 16, dtype, scale=100.0)
    whole = [tensor.detach().float().requires_grad_() for tensor in inputs]
    found, expected = contrastive_loss(*inputs, objective=objective, tile_size=10), plain_loss(*whole, objective)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(found, inputs), torch.autograd.grad(expected, whole)
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_gradients_too_small_for_half_precision_survive_a_loss_scale():
    image, text, scale, _ = make_inputs(64, 16, torch.float16, scale=1e-3)
    (contrastive_loss(image, text, scale, tile_size=32) * 2.0**16).backward()
    whole = [tensor.detach().double().requires_grad_() for tensor in (image, text, scale)]
    (expected,) = torch.autograd.grad(plain_loss(*whole, 0.0, "softmax"), whole[0])
    assert expected.abs().max() < torch.finfo(torch.float16).tiny
    assert (image.grad.double() / 2**16 - expected).norm() < 1e-2 * expected.norm()


@objectives
def test_autocast_changes_nothing(objective):
    inputs = make_inputs(16, dtype=torch.float32, scale=100.0)
    found = []
    for is_enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            loss = contrastive_loss(*inputs, objective=objective, tile_size=5)
        found.append([loss, *torch.autograd.grad(loss, inputs)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@objectives
def test_compiles_as_one_graph_for_any_number_of_pairs(objective):
    torch.compiler.reset()
    compiled = torch.compile(contrastive_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for pairs in (5, 8):
        inputs = make_inputs(pairs)
        found = compiled(*inputs, objective=objective, tile_size=3)
        assert_same(found, plain_loss(*inputs, objective), inputs, 1e-12)
    with torch.no_grad():
        assert not compiled(*inputs, objective=objective, tile_size=3).requires_grad


@pytest.mark.parametrize("wanted", [[True] * 4, [False, True, False, True]])
def test_the_operator_fits_its_description(wanted):
    image, text, scale, bias = (tensor.detach() for tensor in make_inputs(5, 4))
    arguments = (image.T.contiguous().T, text.float(), scale, bias.view(1), wanted, "sigmoid", 2)
    torch.library.opcheck(modeling_contrastive._alone, arguments, test_utils=("test_schema", "test_faketensor"))


def test_backward_twice_needs_retain_graph_and_double_backward_is_refused():
    inputs = make_inputs()
    loss = contrastive_loss(*inputs)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    with pytest.raises(RuntimeError, match="differentiated once only.*create_graph"):
        torch.autograd.grad(contrastive_loss(*inputs), inputs, create_graph=True)


def test_a_temperature_that_is_not_a_number_shows_in_the_loss():
    image, text, _, _ = make_inputs()
    for objective in ("softmax", "sigmoid"):
        assert contrastive_loss(image, text, float("nan"), objective=objective).isnan()


def test_lengths_are_the_callers_affair():
    image, text, scale, bias = make_inputs()
    loss = contrastive_loss(2 * image, text, scale, bias)
    torch.testing.assert_close(loss, plain_loss(2 * image, text, scale, bias, "softmax"), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text_embeds": torch.ones(3, 4)}, ValueError, r"one shape \(pairs, dim\).*got \(2, 4\) and \(3, 4\)"),
        ({"text_embeds": torch.ones(2, 5)}, ValueError, r"got \(2, 4\) and \(2, 5\)"),
        ({"image_embeds": torch.ones(4), "text_embeds": torch.ones(4)}, ValueError, "matrices"),
        ({"image_embeds": torch.ones(0, 4), "text_embeds": torch.ones(0, 4)}, ValueError, "at least one pair"),
        ({"text_embeds": torch.ones(2, 4).long()}, TypeError, "`text_embeds` must be floats; got torch.int64"),
        ({"logit_scale": torch.ones(2)}, ValueError, r"`logit_scale` must be a number.*got shape \(2,\)"),
        ({"logit_bias": torch.ones(0)}, ValueError, "`logit_bias` must be a number"),
        ({"objective": "triplet"}, ValueError, "one of sigmoid, softmax; got 'triplet'"),
        ({"tile_size": 0}, ValueError, "`tile_size` must be a whole number from 1 on; got 0"),
        ({"tile_size": 2.5}, ValueError, "got 2.5"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    arguments = {"image_embeds": torch.ones(2, 4), "text_embeds": torch.ones(2, 4), "logit_scale": 1.0, **changes}
    with pytest.raises(error, match=message):
        contrastive_loss(**arguments)


MARGIN = 2.0


@pytest.mark.parametrize(("distance", "expected"), [(0.0, 2.0), (1.0, 0.5), (2.0, 0.0), (4.0, 0.0)])
def test_margin_loss_is_its_formula(distance, expected):
    """A dissimilar pair costs (m - D)^2 / 2 up to the margin, a similar one D^2 / 2, each with its gradient."""
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    second = torch.tensor([[1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    first = (second.detach() + distance * direction).requires_grad_()
    for dissimilar, value, slope in ((1, expected, -max(0.0, MARGIN - distance)), (0, distance**2 / 2, distance)):
        loss = pairwise_margin_loss(first, second, torch.tensor([dissimilar]), MARGIN)
        assert loss.item() == pytest.approx(value, abs=1e-12)
        along = slope * direction[None] if distance else torch.zeros(1, 2, dtype=torch.float64)
        gradients = torch.autograd.grad(loss, (first, second))
        torch.testing.assert_close(gradients, (along, -along), rtol=1e-9, atol=1e-12)


def test_margin_loss_is_the_mean_over_pairs_whatever_the_dtype():
    first, second = torch.randn(6, 3).bfloat16(), torch.randn(6, 3).bfloat16()
    dissimilar = torch.tensor([True, False, True, True, False, False])
    total = 0.0
    for a, b, apart in zip(first.double(), second.double(), dissimilar, strict=True):
        distance = float(((a - b) ** 2).sum().sqrt())
        total += max(0.0, 1.0 - distance) ** 2 / 2 if apart else distance**2 / 2
    loss = pairwise_margin_loss(first, second, dissimilar)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(total / 6, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert pairwise_margin_loss(first, second, dissimilar.float()).item() == loss.item()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"second": torch.ones(3, 4)}, ValueError, "`first` and `second` must be matrices of one shape"),
        ({"dissimilar": torch.ones(2, 1)}, ValueError, r"shape \(2,\); got \(2, 1\)"),
        ({"margin": 0.0}, ValueError, "`margin` must be above 0; got 0.0"),
        ({"margin": float("nan")}, ValueError, "`margin` must be above 0"),
        ({"first": torch.ones(2, 4).int()}, TypeError, "`first` must be floats"),
    ],
)
def test_bad_input_of_the_margin_loss_is_named(changes, error, message):
    arguments = {"first": torch.ones(2, 4), "second": torch.ones(2, 4), "dissimilar": torch.ones(2), **changes}
    with pytest.raises(error, match=message):
        pairwise_margin_loss(**arguments)
