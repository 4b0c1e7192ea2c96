"""The pool of worker processes: its group communicates, its errors explain, a Trainer runs inside it."""

import os
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.network import NetworkRefusedError
from tests.process_pool import ProcessPool, WorkerError


def sum_of_ranks(offset: float) -> torch.Tensor:
    total = torch.tensor(dist.get_rank() + offset, dtype=torch.float64)
    dist.all_reduce(total)
    return total


def process_id() -> int:
    return os.getpid()


def environment_and_threads() -> tuple[dict[str, str], int]:
    return dict(os.environ), torch.get_num_threads()


def random_numbers() -> np.ndarray:
    return np.concatenate([np.random.rand(2), torch.rand(2).numpy()])


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("`rows` must be positive; got -3.")
    dist.barrier()


def fail_everywhere() -> None:
    raise SystemExit("both stop here")


def hang() -> None:
    time.sleep(60)


def die() -> None:
    os._exit(7)


def reach_out() -> None:
    torch.hub.download_url_to_file("https://example.com/weights.pth", "weights.pth")


class Line(nn.Module):
    """A model as the Trainer wants it: the loss comes out of forward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(features).squeeze(-1) - labels).square().mean()}


def train_two_steps(output_dir: str) -> dict:
    from transformers import Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(0)
    rows = [{"features": torch.randn(3, generator=generator), "labels": float(i)} for i in range(16)]
    arguments = TrainingArguments(
        output_dir,
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(Line(), arguments, train_dataset=rows)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["labels"]), with_kwargs=True
    )
    trainer.train()
    return {
        "world_size": arguments.world_size,
        "steps": trainer.state.global_step,
        "labels": torch.cat(seen).tolist(),
        "weight": trainer.model.layer.weight.detach(),
    }


def test_ranks_communicate_and_results_come_by_rank(two_processes):
    assert two_processes.run(sum_of_ranks, 0.5) == [2.0, 2.0]
    assert two_processes.run(dist.get_rank) == [0, 1]


def test_workers_are_single_threaded_and_offline(two_processes):
    for environment, threads in two_processes.run(environment_and_threads):
        assert threads == 1
        assert environment["HF_HUB_OFFLINE"] == "1"
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(WorkerError, match=NetworkRefusedError.__name__):
        two_processes.run(reach_out)


def test_each_call_starts_from_the_same_seeds(two_processes):
    first, second = two_processes.run(random_numbers), two_processes.run(random_numbers)
    np.testing.assert_array_equal(first, second)


def test_error_names_the_rank_and_carries_the_traceback():
    with ProcessPool(2) as pool:
        with pytest.raises(WorkerError, match="rank 1: ValueError: `rows` must be positive; got -3.") as caught:
            pool.run(fail_on_rank_one)
        assert caught.value.rank == 1
        assert "in fail_on_rank_one" in str(caught.value)
        assert pool.run(sum_of_ranks, 0.0) == [1.0, 1.0]


def test_workers_survive_what_fails_on_all_ranks(two_processes):
    before = two_processes.run(process_id)
    with pytest.raises(WorkerError, match="SystemExit: both stop here"):
        two_processes.run(fail_everywhere)
    assert two_processes.run(process_id) == before


def test_function_inside_a_test_is_refused(two_processes):
    with pytest.raises(TypeError, match="top level of the test module"):
        two_processes.run(lambda: None)


def test_hang_and_crash_end_the_workers_and_new_ones_start():
    with ProcessPool(1) as pool:
        assert pool.run(sum_of_ranks, 1.0) == [1.0]
        with pytest.raises(WorkerError, match="no result in 1 s"):
            pool.run(hang, timeout_seconds=1)
        with pytest.raises(WorkerError, match="exit code 7"):
            pool.run(die)
        assert pool.run(sum_of_ranks, 2.0) == [2.0]


def test_trainer_gives_both_ranks_the_same_weights_from_different_rows(two_processes, tmp_path):
    first, second = two_processes.run(train_two_steps, str(tmp_path))
    assert first["world_size"] == second["world_size"] == 2
    assert first["steps"] == 2
    assert not set(first["labels"]) & set(second["labels"])
    torch.testing.assert_close(first["weight"], second["weight"], rtol=0, atol=0)
