"""How fast a training run eats images, and how much of its time it waits for them."""

import logging
import time
from collections.abc import Callable, Iterator

from accelerate.utils import find_batch_size
from transformers import TrainingArguments


logger = logging.getLogger(__name__)

_WARM_UP_BATCHES = 20  # workers start and kernels are chosen in the first ones
_LARGE_SHARE = 0.3


class LoaderClock:
    """Times how long the batches of a loader were waited for, between two readings.

    It looks at batches as they pass and changes nothing about them. Time outside training (evaluation) is left out if
    `stop` is called before it; `watch` starts the clock again.

    Args:
        now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._all_batches = 0
        self._warned = False
        self._started: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._images = 0
        self._waited = self._elapsed = 0.0
        self._is_warm = self._all_batches >= _WARM_UP_BATCHES

    def watch(self, batches: Iterator) -> Iterator:
        """Pass batches on, timing the wait for each."""
        if self._started is None:
            self._started = self._now()
        while True:
            before = self._now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += self._now() - before
            self._images += find_batch_size(batch) or 0
            self._all_batches += 1
            yield batch

    def stop(self) -> None:
        """Leave out the time from now until the next batch is asked for."""
        if self._started is not None:
            self._elapsed += self._now() - self._started
            self._started = None

    def read(self, args: TrainingArguments) -> dict[str, float]:
        """Give the numbers since the last reading, and start over.

        Warns once if, after the first 20 batches, more than 0.3 of the time between two readings was waiting.

        Args:
            args: of the run; they know the number of processes and of loader workers.

        Returns:
            `images_per_second`, over all processes if each is as fast as this one, and `loader_wait`, the share of
            time in 0..1 that this process waited for data. Empty if no time has passed.
        """
        self.stop()
        images, waited, elapsed, was_warm = self._images, self._waited, self._elapsed, self._is_warm
        self._reset()
        if not elapsed:
            return {}
        share = waited / elapsed
        if was_warm and share > _LARGE_SHARE and not self._warned:
            self._warned = True
            logger.warning(
                "Training waited for images %.0f%% of the time. Raise `dataloader_num_workers` (now %d), store smaller "
                "images, or put them on a faster disk.",
                100 * share,
                args.dataloader_num_workers,
            )
        return {"images_per_second": images * args.world_size / elapsed, "loader_wait": share}
