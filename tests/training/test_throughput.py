"""The clock of the loader, on a time of its own."""

import logging
from types import SimpleNamespace

import pytest
import torch

from hf_vitfm.training.throughput import LoaderClock


ARGS = SimpleNamespace(world_size=2, dataloader_num_workers=3)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def batches(self, waits, images=4):
        for wait in waits:
            self.now += wait
            yield {"pixel_values": torch.zeros(images, 1)}


def run(clock, time, waits, step=1.0):
    loader = time.batches(waits)
    seen = 0
    for _ in waits:  # Trainer asks for the batches of one step at a time
        seen += len([next(clock.watch(loader))])
        time.now += step
    return seen


def test_wait_and_throughput_since_the_last_reading():
    time = Time()
    clock = LoaderClock(time)
    assert run(clock, time, [3.0, 1.0]) == 2
    assert clock.read(ARGS) == {"images_per_second": pytest.approx(2 * 8 / 6), "loader_wait": pytest.approx(4 / 6)}
    time.now += 100  # after a reading the clock stands still until the next batch
    run(clock, time, [0.0, 0.0])
    clock.stop()
    time.now += 100  # an evaluation
    run(clock, time, [2.0])
    assert clock.read(ARGS) == {"images_per_second": pytest.approx(2 * 12 / 5), "loader_wait": pytest.approx(2 / 5)}
    assert clock.read(ARGS) == {}


def test_batches_pass_unchanged_and_the_end_is_the_end():
    batches = [{"pixel_values": torch.zeros(2)} for _ in range(3)]
    watched = list(LoaderClock().watch(iter(batches)))
    assert all(a is b for a, b in zip(batches, watched, strict=True))


def test_a_large_share_after_the_first_batches_is_warned_of_once(caplog):
    time = Time()
    clock = LoaderClock(time)
    with caplog.at_level(logging.WARNING):
        run(clock, time, [5.0] * 20)  # workers start
        clock.read(ARGS)
        run(clock, time, [0.4] * 5)
        clock.read(ARGS)
        assert caplog.records == []
        for _ in range(2):
            run(clock, time, [0.5] * 5)
            clock.read(ARGS)
    assert len(caplog.records) == 1
    assert "33% of the time. Raise `dataloader_num_workers` (now 3)" in caplog.records[0].message
