"""Long-lived worker processes that form one gloo process group, for tests of distributed code.

    def sum_of_ranks():                                # at the top level of a test module
        total = torch.tensor(dist.get_rank())
        dist.all_reduce(total)
        return total

    def test_sum(two_processes):
        assert two_processes.run(sum_of_ranks) == [1, 1]

The workers start at the first use, keep what they imported, and end with the session. `transformers.Trainer` and
`accelerate` take the group as they find it. Before each call the seeds are set to 0; after it, accelerate's
AcceleratorState and GradientState are reset, so that the next call may choose its own mixed precision or plugins
(a function that builds two Accelerators in one call resets between them: `AcceleratorState._reset_state()`).
PartialState, which holds the group, stays.

This file imports torch in the workers only, after their environment is set.
"""

import faulthandler
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tests.network import refuse_network


START_SECONDS = 180.0  # torch alone can take half a minute on a busy machine
GRACE_SECONDS = 5.0  # how long the other ranks may go on after one has failed


class WorkerError(RuntimeError):
    """A function failed in a worker; the message holds the worker's traceback."""

    def __init__(self, rank: int, message: str):
        super().__init__(f"rank {rank}: {message}")
        self.rank = rank


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection


@dataclass
class _Answer:
    value: Any = None
    error: str | None = None


class ProcessPool:
    """Runs one function on all ranks of a process group; starts at first use, again after a hang or a crash."""

    def __init__(self, num_processes: int, context: multiprocessing.context.BaseContext | None = None):
        self.num_processes = num_processes
        self._context = context or multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._directory: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, function: Callable, *args: Any, timeout_seconds: float = 120.0, **kwargs: Any) -> list[Any]:
        """Call `function(*args, **kwargs)` on every rank.

        Args:
            function: found by name in the workers, so at the top level of a module (a test module will do).
            *args: anything that pickles; each rank gets a copy.
            timeout_seconds: after that the workers are killed and the call fails.
            **kwargs: as args.

        Returns:
            the results, by rank; tensors are copies on the CPU.

        Raises:
            WorkerError: if a rank raised, ended or did not answer in time.
        """
        request = _request(function, args, kwargs)
        if not self._workers or not all(worker.process.is_alive() for worker in self._workers):
            self._start()
        for worker in self._workers:
            worker.connection.send_bytes(request)
        return self._collect(timeout_seconds)

    def stop(self) -> None:
        """End the workers at once; the next `run` starts new ones."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers = []
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _start(self) -> None:
        self.stop()
        self._directory = tempfile.TemporaryDirectory(prefix="hf_vitfm_pool_")
        store, port = f"{self._directory.name}/store", _free_port()
        for rank in range(self.num_processes):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(rank, self.num_processes, store, port, theirs))
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))
        self._collect(START_SECONDS)  # each worker says once that it is in the group

    def _collect(self, timeout_seconds: float) -> list[Any]:
        """Wait for one answer of each rank; after one failure, wait for the others but briefly."""
        deadline = time.monotonic() + timeout_seconds
        answers: dict[int, _Answer] = {}
        while len(answers) < self.num_processes:
            pending = {worker.connection: rank for rank, worker in enumerate(self._workers) if rank not in answers}
            ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = pending[connection]
                answers[rank] = self._receive(rank)
                if answers[rank].error is not None:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        failures = {rank: answer.error for rank, answer in answers.items() if answer.error is not None}
        late = [rank for rank in range(self.num_processes) if rank not in answers]
        if late:
            self._print_stacks(late)
        if late or 0 < len(failures) < self.num_processes:
            self.stop()  # the ranks may be at different points of their communication
        for rank, error in failures.items():
            raise WorkerError(rank, error)
        for rank in late:
            raise WorkerError(rank, f"no result in {timeout_seconds:g} s; captured stderr shows where it stood")
        return [answers[rank].value for rank in range(self.num_processes)]

    def _receive(self, rank: int) -> _Answer:
        worker = self._workers[rank]
        try:
            return pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            worker.process.join(GRACE_SECONDS)
            return _Answer(error=f"the process ended with exit code {worker.process.exitcode}")

    def _print_stacks(self, ranks: list[int]) -> None:
        for rank in ranks:
            os.kill(self._workers[rank].process.pid, signal.SIGUSR1)
        time.sleep(0.5)


def _request(function: Callable, args: tuple, kwargs: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((function, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"`function` and its arguments must pickle; got {function!r}: {error}. "
            "Define the function at the top level of the test module, not inside a test."
        ) from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serve(rank: int, world_size: int, store: str, port: int, connection: Connection) -> None:
    """Join the group, then answer requests until the other end of `connection` closes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the session, which ends the workers
    faulthandler.register(signal.SIGUSR1)
    refuse_network()

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(minutes=5)
    )
    connection.send_bytes(pickle.dumps(_Answer()))
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(_answer(request))


def _answer(request: bytes) -> bytes:
    """Carry out one request. Plain pickle copies tensors by value; a connection's own would share file handles."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    try:
        function, args, kwargs = pickle.loads(request)
        return pickle.dumps(_Answer(function(*args, **kwargs)))
    except BaseException as error:  # SystemExit and pytest's outcomes too: the worker lives on
        summary = f"{type(error).__name__}: {error}"
        return pickle.dumps(_Answer(error=f"{summary}\n\n{traceback.format_exc()}"))
    finally:
        if "accelerate" in sys.modules:
            from accelerate.state import AcceleratorState, GradientState

            AcceleratorState._reset_state()
            GradientState._reset_state()
