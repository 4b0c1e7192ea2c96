"""The contrastive loss over two and three processes is that of one: value, and gradients as DDP averages them."""

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vitfm import contrastive_loss
from tests.process_pool import ProcessPool, WorkerError
from tests.training.runs import fresh_processes


PAIRS = 8
objectives = pytest.mark.parametrize("objective", ["softmax", "sigmoid"])


@pytest.fixture(scope="module")
def three_processes():
    with ProcessPool(3, fresh_processes()) as pool:
        yield pool


class Towers(torch.nn.Module):
    """Two linear towers with scale and bias; some of them frozen."""

    def __init__(self, frozen: tuple[str, ...] = ()):
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def parameter(*shape):
            return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.image, self.text = parameter(6, 5), parameter(4, 5)
        self.log_scale, self.bias = parameter(), parameter(1)
        for name in frozen:
            getattr(self, name).requires_grad_(False)

    def forward(self, images, texts, **options):
        image, text = F.normalize(images @ self.image, dim=1), F.normalize(texts @ self.text, dim=1)
        return contrastive_loss(image, text, (self.log_scale + 3).exp(), self.bias, tile_size=3, **options), image


def make_batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(PAIRS, width, generator=generator, dtype=torch.float64).to(dtype) for width in (6, 4)]


def own_rows(counts, batch):
    """The rows of this process: the first `counts[0]` are those of rank 0, and so on."""
    rank = dist.get_rank()
    return [tensor[sum(counts[:rank]) : sum(counts[: rank + 1])] for tensor in batch]


def step(counts=None, frozen=(), objective="softmax", single=False) -> dict[str, torch.Tensor]:
    """Loss and averaged gradients of one step; with `counts` the rows are split over the processes."""
    dtype = torch.float32 if single else torch.float64
    model, batch, options = Towers(frozen).to(dtype), make_batch(dtype), {"objective": objective}
    if counts is not None:
        model, batch, options["group"] = DistributedDataParallel(model), own_rows(counts, batch), dist.group.WORLD
    loss, image = model(*batch, **options)
    if image.requires_grad:
        image.retain_grad()
    (2 * loss).backward()
    found = {"loss": loss.detach(), "image embeddings": image.grad}
    return found | {name.removeprefix("module."): weight.grad for name, weight in model.named_parameters()}


def assert_equal(runs, expected, tolerance=1e-10):
    """Every process has the value and gradients; of the embeddings' gradient its own rows, times the processes."""
    embeds = [run.pop("image embeddings") for run in runs]
    if embeds[0] is not None:
        whole = {"image embeddings": torch.cat(embeds) / len(runs)}
        runs = [{**run, **whole} for run in runs]
    for run in runs:
        for name, found in run.items():
            reference = expected[name]
            assert (found is None) == (reference is None), name
            if found is not None:
                assert (found - reference).norm() <= tolerance * reference.norm().clamp(min=1e-3), name


@objectives
@pytest.mark.parametrize("counts", [(4, 4), (5, 3), (8, 0)])
def test_two_processes_equal_one(two_processes, counts, objective):
    expected = step(objective=objective)
    assert expected["text"].abs().max() > 1e-3 and expected["log_scale"].abs() > 1e-3
    assert_equal(two_processes.run(step, counts, objective=objective), expected)


@objectives
@pytest.mark.parametrize("counts", [(3, 3, 2), (1, 4, 3)])
def test_three_processes_equal_one(three_processes, counts, objective):
    assert_equal(three_processes.run(step, counts, objective=objective), step(objective=objective))


@objectives
def test_two_processes_equal_one_in_float32(two_processes, objective):
    runs = two_processes.run(step, (5, 3), objective=objective, single=True)
    assert_equal(runs, step(objective=objective, single=True), 1e-5)


@objectives
@pytest.mark.parametrize("frozen", [("image",), ("text",), ("image", "text"), ("log_scale", "bias")])
def test_frozen_towers_and_scales(two_processes, frozen, objective):
    expected = step(frozen=frozen, objective=objective)
    assert_equal(two_processes.run(step, (5, 3), frozen, objective), expected)


class MultiplicationCounter(TorchDispatchMode):
    """Counts the multiplications in matrix products."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            first, second = args[-2:]
            self.total += first.shape[0] * first.shape[1] * second.shape[1]
        return function(*args, **(kwargs or {}))


def measure(frozen, counts, is_training=True) -> tuple[int, dict[str, int]]:
    """Multiplications in matrix products of the loss, and numbers given to each kind of collective."""
    traffic, originals = {}, {}

    def count(name, position):
        originals[name] = getattr(dist, name)

        def record(*args, **kwargs):
            traffic[name] = traffic.get(name, 0) + args[position].numel()
            return originals[name](*args, **kwargs)

        setattr(dist, name, record)

    for name, position in (("all_gather_into_tensor", 1), ("reduce_scatter_tensor", 1), ("all_reduce", 0)):
        count(name, position)
    try:
        image, text = (F.normalize(t[:, :4], dim=1) for t in own_rows(counts, make_batch()))
        image.requires_grad_(is_training and "image" not in frozen)
        text.requires_grad_(is_training and "text" not in frozen)
        scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=is_training)
        with MultiplicationCounter() as multiplications:
            loss = contrastive_loss(image, text, scale, group=dist.group.WORLD)
            if is_training:
                loss.backward()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return multiplications.total, traffic


@pytest.mark.parametrize(
    ("frozen", "products", "reduces"), [((), 4, True), (("image",), 3, True), (("text",), 3, False)]
)
def test_each_process_does_its_share_with_one_gather_and_one_reduction(two_processes, frozen, products, reduces):
    counts, dim = (5, 3), 4
    for rank, (multiplications, traffic) in enumerate(two_processes.run(measure, frozen, counts)):
        assert multiplications == products * counts[rank] * PAIRS * dim
        assert traffic.pop("all_gather_into_tensor") == 1 + max(counts) * dim  # its count of rows, and its texts
        assert traffic.pop("reduce_scatter_tensor", 0) == reduces * len(counts) * max(counts) * dim
        assert traffic == {"all_reduce": PAIRS + PAIRS + 1}  # maxima and sums of the columns, and the loss


def test_without_gradients_nothing_is_reduced_back(two_processes):
    for _, traffic in two_processes.run(measure, (), (5, 3), is_training=False):
        assert "reduce_scatter_tensor" not in traffic


def lose_in_a_part_of_the_group(counts) -> list:
    """Rank 2 stays apart; the loss of ranks 0 and 1, or the error, and then the loss of each alone."""
    group = dist.new_group([0, 1])
    image, text = own_rows(counts, [F.normalize(t[:, :4], dim=1) for t in make_batch()])
    found = []
    try:
        found.append(contrastive_loss(image, text, 5.0, group=group).item())
    except ValueError as error:
        found.append(str(error))
    found.append(contrastive_loss(image, text, 5.0).item())
    return found


def test_a_group_is_the_batch_and_without_one_each_process_is_alone(three_processes):
    image, text = [F.normalize(t[:, :4], dim=1) for t in make_batch()]
    runs, rows = three_processes.run(lose_in_a_part_of_the_group, (3, 2, 3)), (slice(3), slice(3, 5), slice(5, 8))
    expected = contrastive_loss(image[:5], text[:5], 5.0).item()
    assert [run[0] for run in runs[:2]] == pytest.approx([expected] * 2, rel=1e-12)
    assert "no member of `group`" in runs[2][0]
    alone = [contrastive_loss(image[part], text[part], 5.0).item() for part in rows]
    assert [run[1] for run in runs] == pytest.approx(alone, rel=1e-12)


def lose_compiled(counts) -> tuple[float, float]:
    image, text = own_rows(counts, [F.normalize(t[:, :4], dim=1) for t in make_batch()])
    torch.compiler.reset()

    def lose(image, text):
        return contrastive_loss(2 * image / 2, text, 5.0, group=dist.group.WORLD) + 1

    return torch.compile(lose, backend="eager")(image, text).item(), lose(image, text).item()


def test_a_compiled_function_breaks_off_and_goes_on_around_the_processes(two_processes):
    for compiled, plain in two_processes.run(lose_compiled, (5, 3)):
        assert compiled == plain


def lose_nothing() -> None:
    contrastive_loss(torch.ones(0, 4), torch.ones(0, 4), 5.0, group=dist.group.WORLD)


def test_a_batch_without_any_pair_is_refused_on_every_process(two_processes):
    with pytest.raises(WorkerError, match="no process of `group` has one"):
        two_processes.run(lose_nothing)
