"""Streamed reading: data sets too large to copy are read in sequence, in an order that is exact and can be resumed.

An epoch puts the shards into a random order, cuts the rows to whole global batches and gives every reader (a loader
worker of a process) one contiguous range of them; a reader shuffles its range window by window. Which row stands where
is a function of (seed, epoch, processes, workers) alone: each row comes at most once per epoch, and there is no shuffle
buffer whose state would have to be saved.

To a loader a stream looks like any data set with indices, since an index (`StreamIndex`) says which window its row is
in. So skipping batches, which is how a run is resumed, reads nothing, and the reading goes on at the window where the
run stopped. With another number of processes or workers the rest of an interrupted epoch has another order.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from .order import mix_seed
from .samples import require_datasets
from .shards import ParquetShard, TarShard


logger = logging.getLogger(__name__)

# Rows read at once in an evaluation. Its workers take turns with batches, so each reads only parts of what lies together.
_RUN = 32

# Runs of rows that lie together: (shard, first row, last row + 1), rows counted within the shard.
Window = tuple[tuple[int, int, int], ...]


class StreamIndex(int):
    """The number of a row in the whole stream, whatever the order, that knows the window it is read with."""

    def __new__(cls, row: int, window: Window, starts: Sequence[int]):
        self = super().__new__(cls, row)
        self.window, self._starts = window, starts
        return self

    def __getnewargs__(self) -> tuple:
        return int(self), self.window, self._starts

    def other(self, draw: int) -> "StreamIndex":
        """Another row of the window, chosen by a number from 0 up; it costs no further reading."""
        rows = list(_rows_of(self.window, self._starts))
        return StreamIndex(rows[draw % len(rows)], self.window, self._starts)


def _rows_of(window: Window, starts: Sequence[int]) -> Iterator[int]:
    for shard, start, stop in window:
        yield from range(starts[shard] + start, starts[shard] + stop)


class StreamRows(Dataset):
    """Rows of many shards, of which one window at a time is in memory, still encoded.

    Args:
        shards: the shards, in an order that is the same in every run.
        window: rows that are read and shuffled together. Larger mixes better and takes more memory: one window and one
            row group per loader worker. Only rows of one window mix, so shards must not be sorted by class.
        label_names: names of the classes in the order of their ids; labels that are names become ids by it.

    Raises:
        ValueError: if there are no rows, or `window` is less than 1.
    """

    def __init__(
        self, shards: Sequence[ParquetShard | TarShard], window: int = 1024, label_names: Sequence[str] | None = None
    ):
        if window < 1:
            raise ValueError(f"`window` must be at least 1 row; got {window}.")
        self.shards = list(shards)
        self.window = window
        self.label_names = None if label_names is None else list(label_names)
        self._ids = {name: i for i, name in enumerate(self.label_names or ())}
        self.starts = (0, *accumulate(shard.num_rows for shard in self.shards))
        if not self.starts[-1]:
            raise ValueError("a stream needs at least one shard with rows; got none.")
        self._loaded: tuple[Window, dict[int, dict]] | None = None

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def features(self) -> Mapping[str, Any]:
        """What the columns hold, as a `datasets.Dataset` says it; class names are in it."""
        datasets = require_datasets()
        features = {"image": datasets.Image(decode=False)}
        if self.label_names is not None:
            features["label"] = datasets.ClassLabel(names=self.label_names)
        return datasets.Features(features)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"row {int(index)} of {len(self)} rows")
        window = index.window if isinstance(index, StreamIndex) else self._window_of(index)
        if self._loaded is None or self._loaded[0] != window:
            self._load(window)
        return self._loaded[1][int(index)]

    def _window_of(self, row: int) -> Window:
        """The run around a row in the order of the shards, as an evaluation reads them."""
        shard = bisect_right(self.starts, row) - 1
        start = (row - self.starts[shard]) // _RUN * _RUN
        return ((shard, start, min(start + _RUN, self.shards[shard].num_rows)),)

    def _load(self, window: Window) -> None:
        previous = None if self._loaded is None else self._loaded[0][-1][0]
        if previous not in (None, window[0][0]):
            self.shards[previous].release()
        self._loaded = None  # not two windows at a time in memory
        content = [row for shard, start, stop in window for row in self.shards[shard].read(start, stop)]
        numbers = _rows_of(window, self.starts)
        self._loaded = window, {number: self._with_id(row) for number, row in zip(numbers, content, strict=True)}

    def _with_id(self, row: dict) -> dict:
        label = row.get("label")
        if isinstance(label, str):
            if label not in self._ids and not label.isdecimal():
                raise ValueError(
                    f"{row['image']['path']} has the label {label!r}, which is no class id and none of the "
                    f"{len(self._ids)} names in `label_names`. Give the names of all classes."
                )
            row["label"] = label = self._ids[label] if label in self._ids else int(label)
        if isinstance(label, int) and self.label_names is not None and not 0 <= label < len(self.label_names):
            raise ValueError(
                f"{row['image']['path']} has the label {label}; there are {len(self.label_names)} classes."
            )
        return row

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_loaded": None}


class StreamOrder(Sampler):
    """The order of a stream's epoch; yields (epoch, `StreamIndex`) pairs for the whole job, in global order.

    Micro-batch g of an epoch belongs to process g % processes, and there to worker (g // processes) % workers: this is
    how accelerate shares batches between processes and torch between workers.

    Args:
        rows: the stream.
        seed: seed of the run.
        micro_batch: samples that one process takes at a time.
        global_batch: samples per optimizer step, over all processes and accumulation steps.
        processes: number of processes.
        workers: loader workers of each process; 0 and 1 give the same order.

    Raises:
        ValueError: if `global_batch` is no multiple of `micro_batch` x `processes`, or larger than the stream.
    """

    def __init__(
        self, rows: StreamRows, seed: int, *, micro_batch: int, global_batch: int, processes: int = 1, workers: int = 0
    ):
        if global_batch % (micro_batch * processes):
            raise ValueError(
                f"`global_batch` must be a multiple of `micro_batch` x `processes` = {micro_batch} x {processes}; "
                f"got {global_batch}."
            )
        if len(rows) < global_batch:
            raise ValueError(
                f"The stream has {len(rows)} rows, fewer than one global batch of {global_batch}. Lower "
                "`per_device_train_batch_size` or `gradient_accumulation_steps`."
            )
        self.starts, self.window = rows.starts, rows.window
        self.seed = seed
        self.micro_batch = micro_batch
        self.processes, self.workers = processes, max(workers, 1)
        self.length = len(rows) // global_batch * global_batch
        self.epoch = 0
        readers = processes * self.workers
        if len(rows.shards) < readers:
            logger.warning(
                "%d shards for %d readers (%d processes with %d loader workers): several readers share a shard, and "
                "its row groups may be read more than once. Fewer workers or more, smaller shards read faster.",
                len(rows.shards),
                readers,
                processes,
                self.workers,
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, StreamIndex]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        shards = torch.randperm(len(self.starts) - 1, generator=generator).tolist()
        readers = [self._read(epoch, reader, start, stop, shards) for reader, start, stop in self._ranges()]
        for batch in range(self.length // self.micro_batch):
            process, turn = batch % self.processes, batch // self.processes
            for index in islice(readers[process * self.workers + turn % self.workers], self.micro_batch):
                yield epoch, index

    def _ranges(self) -> Iterator[tuple[int, int, int]]:
        """Every reader with its range of positions in the epoch: as many as the micro-batches that it gets."""
        turns = self.length // self.micro_batch // self.processes
        stop = 0
        for reader in range(self.processes * self.workers):
            batches = turns // self.workers + (reader % self.workers < turns % self.workers)
            start, stop = stop, stop + batches * self.micro_batch
            yield reader, start, stop

    def _read(self, epoch: int, reader: int, start: int, stop: int, shards: list[int]) -> Iterator[StreamIndex]:
        """The rows of one reader: its range in windows, each shuffled."""
        ends = list(accumulate(self.starts[shard + 1] - self.starts[shard] for shard in shards))
        for number, begin in enumerate(range(start, stop, self.window)):
            window = self._window(begin, min(begin + self.window, stop), shards, ends)
            rows = list(_rows_of(window, self.starts))
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, reader, number))
            for i in torch.randperm(len(rows), generator=generator).tolist():
                yield StreamIndex(rows[i], window, self.starts)

    def _window(self, begin: int, end: int, shards: list[int], ends: list[int]) -> Window:
        """The runs of rows behind positions begin to end - 1 of the epoch, whose shards end at the positions `ends`."""
        runs = []
        place = bisect_right(ends, begin)
        while begin < end:
            shard, stop = shards[place], min(end, ends[place])
            last = self.starts[shard + 1] - self.starts[shard] - (ends[place] - stop)
            if stop > begin:
                runs.append((shard, last - (stop - begin), last))
            begin, place = stop, place + 1
        return tuple(runs)
