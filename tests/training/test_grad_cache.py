"""Gradient caching gives the gradients of the single big batch: every weight, the temperature and the bias."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_vitfm import contrastive_loss
from hf_vitfm.training.grad_cache import GradientCache
from hf_vitfm.training.scalars import flatten_scalars, limit, restore_scalars, whole_scalar
from tests.tiny import relative_error
from tests.training.clip_runs import RANDOM, collate, make_model, make_pairs, naive_loss


PAIRS = 8


def chunks_of(size: int, rows=None) -> list[dict]:
    rows = make_pairs(PAIRS) if rows is None else rows
    return [collate(rows[start : start + size]) for start in range(0, len(rows), size)]


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters()}


def reference(model, chunks) -> tuple[torch.Tensor, dict]:
    """The chunks embedded one after the other, all with gradients, and the papers' formula on all pairs."""
    embeds = [model(**chunk, return_logits=False) for chunk in chunks]
    image, text = (torch.cat([getattr(e, f"{side}_embeds") for e in embeds]) for side in ("image", "text"))
    loss = naive_loss(image, text, model.logit_scale, model.logit_bias, model.config.objective)
    loss.backward()
    return loss.detach(), gradients(model)


def objective_of(model, group=None):
    def objective(image, text, scale, bias):
        return contrastive_loss(image, text, scale.exp(), bias, objective=model.config.objective, group=group)

    return objective


def cached(model, chunks) -> tuple[torch.Tensor, dict]:
    cache = GradientCache(model, model, chunks, objective_of(model))
    values = []
    for chunk in chunks:
        share = cache.replay(chunk)
        share.backward()
        values.append(share.detach())
    torch.testing.assert_close(sum(values), cache.loss, rtol=1e-12, atol=0)
    assert len(cache) == 0
    return cache.loss, gradients(model)


def assert_same(found, expected, tolerance=1e-10):
    assert relative_error(found[0], expected[0]) < 1e-12
    for name, gradient in expected[1].items():
        assert (found[1][name] is None) == (gradient is None), name
        if gradient is not None:
            error = (found[1][name] - gradient).norm()
            assert error <= tolerance * gradient.norm().clamp(min=1e-3), name


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_gradients_are_those_of_the_big_batch(objective, size):
    expected = reference(make_model(objective=objective), chunks_of(PAIRS))
    assert expected[1]["logit_scale"].abs() > 1e-3
    assert_same(cached(make_model(objective=objective), chunks_of(size)), expected)


def test_negatives_come_from_the_whole_batch():
    one, all_chunks = make_model(), chunks_of(4)
    parts = [cached(one, [chunk])[0] for chunk in all_chunks]
    assert (sum(parts) / 2 - cached(make_model(), all_chunks)[0]).abs() > 0.1


def test_dropout_and_patch_dropout_are_drawn_again():
    torch.manual_seed(3)
    model = make_model(**RANDOM)
    torch.manual_seed(3)
    expected, after = reference(model, chunks_of(3)), torch.rand(4)
    torch.manual_seed(4)
    other = reference(make_model(**RANDOM), chunks_of(3))[0]
    assert relative_error(other, expected[0]) > 1e-3  # so that the numbers matter
    model = make_model(**RANDOM)
    torch.manual_seed(3)
    found = cached(model, chunks_of(3))
    assert_same(found, expected)
    assert torch.equal(torch.rand(4), after)  # the numbers go on as if there had been one pass


class Calls:
    """Counts how often a module runs, and how often with gradients."""

    def __init__(self, module):
        self.all = self.with_gradients = 0
        module.register_forward_pre_hook(self.count)

    def count(self, module, arguments):
        self.all += 1
        self.with_gradients += torch.is_grad_enabled()


@pytest.mark.parametrize("locked", ["vision", "text"])
@pytest.mark.parametrize("is_evaluated", [True, False], ids=["locked", "frozen but random"])
def test_locked_towers_run_once_and_get_no_gradient(locked, is_evaluated):
    def make():
        model = make_model(**RANDOM)
        if is_evaluated:
            model.lock_towers(**{locked: True})
        else:
            getattr(model, f"{locked}_model").requires_grad_(False)
        return model

    torch.manual_seed(3)
    model = make()
    torch.manual_seed(3)
    expected = reference(model, chunks_of(2))
    model = make()
    calls = Calls(getattr(model, f"{locked}_model"))
    torch.manual_seed(3)
    assert_same(cached(model, chunks_of(2)), expected)
    assert (calls.all, calls.with_gradients) == (4, 0)
    projection = model.visual_projection if locked == "vision" else model.text_projection
    assert projection.weight.grad.norm() > 1e-6
    assert all(weight.grad is None for weight in getattr(model, f"{locked}_model").parameters())


@pytest.mark.parametrize("side", ["vision", "text"])
def test_a_side_without_any_trainable_weight(side):
    def make():
        model = make_model()
        projection = model.visual_projection if side == "vision" else model.text_projection
        for module in (getattr(model, f"{side}_model"), projection):
            module.requires_grad_(False)
        return model

    assert_same(cached(make(), chunks_of(2)), reference(make(), chunks_of(2)))


def test_a_frozen_temperature_gets_no_gradient():
    def make():
        model = make_model()
        model.logit_scale.requires_grad_(False)
        return model

    found = cached(make(), chunks_of(2))
    assert found[1]["logit_scale"] is None
    assert_same(found, reference(make(), chunks_of(2)))


def test_without_anything_to_train_but_the_temperature_caching_is_refused():
    model = make_model().requires_grad_(False)
    model.logit_scale.requires_grad_(True)
    with pytest.raises(ValueError, match="none of which needs a gradient"):
        cached(model, chunks_of(2))


def sharded_step(size: int, reshards: bool | None, objective: str) -> tuple[torch.Tensor, dict]:
    """One step on this process's half of the pairs, with every weight sharded over the processes."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    model = make_model(objective=objective)
    flat = flatten_scalars(model)
    mesh = dist.init_device_mesh("cpu", (processes,))
    for layer in [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshards)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshards)
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    chunks = chunks_of(size, make_pairs(PAIRS)[rank::processes])
    objective = objective_of(model, dist.group.WORLD)
    if len(chunks) > 1:
        cache = GradientCache(model, model, chunks, objective)
        for i, chunk in enumerate(chunks):
            model.set_requires_gradient_sync(i == len(chunks) - 1)
            cache.replay(chunk).backward()
        loss = cache.loss
    else:
        outputs = model(**chunks[0], return_logits=False)
        bias = None if model.logit_bias is None else whole_scalar(model.logit_bias)
        loss = objective(outputs.image_embeds, outputs.text_embeds, whole_scalar(model.logit_scale), bias)
        loss.backward()
    found = {name: weight.grad.full_tensor() for name, weight in model.named_parameters()}
    return loss.detach(), restore_scalars(found, flat)


@pytest.mark.parametrize(  # every two of the choices meet; a run is slow
    ("size", "reshards", "objective"),
    [
        pytest.param(2, None, "softmax", id="cached, root whole after forward, softmax"),
        pytest.param(2, True, "sigmoid", id="cached, root sharded after forward, sigmoid"),
        pytest.param(4, None, "sigmoid", id="at once, root whole after forward, sigmoid"),
        pytest.param(4, True, "softmax", id="at once, root sharded after forward, softmax"),
    ],
)
def test_sharded_gradients_equal_those_of_the_big_batch(two_processes, size, reshards, objective):
    expected = reference(make_model(objective=objective), chunks_of(PAIRS))
    for found in two_processes.run(sharded_step, size, reshards, objective):
        assert found[1]["logit_scale"].shape == ()
        assert_same(found, expected)


def limit_sharded() -> list[float]:
    model = make_model()
    flatten_scalars(model)
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    found = []
    for maximum in (1.5, 3.0):
        limit(model.logit_scale, maximum)
        found.append(whole_scalar(model.logit_scale).item())
    return found


def test_a_sharded_temperature_is_limited(two_processes):
    assert two_processes.run(limit_sharded) == [[1.5, 1.5]] * 2
