"""The order of training samples, and rows turned into tensors: both pure functions of (seed, epoch, sample).

Nothing here consumes the global random state, so crops and flips do not depend on workers, processes or a resume.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler


_MASK = (1 << 64) - 1


def mix_seed(*numbers: int) -> int:
    """Hash integers to a 63-bit seed (splitmix64 finaliser), so that neighbouring addresses get unrelated seeds."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & _MASK) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


class EpochOrder(Sampler):
    """A permutation per epoch, cut to whole global batches; yields (epoch, index) pairs.

    Args:
        num_rows: rows of the data set.
        seed: seed of the run.
        global_batch: samples per optimizer step, over all processes and accumulation steps.
        drop_last: leave out the incomplete last global batch; otherwise it is yielded too.

    Raises:
        ValueError: if the data set is smaller than one global batch that has to be whole.
    """

    def __init__(self, num_rows: int, seed: int, global_batch: int, drop_last: bool = True):
        if drop_last and num_rows < global_batch:
            raise ValueError(
                f"The training set has {num_rows} rows, fewer than one global batch of {global_batch}. Lower "
                "`per_device_train_batch_size` or `gradient_accumulation_steps`, or set `dataloader_drop_last=False`."
            )
        self.num_rows = num_rows
        self.seed = seed
        self.length = num_rows // global_batch * global_batch if drop_last else num_rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation that the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.num_rows, generator=generator)[: self.length]
        return ((epoch, index) for index in order.tolist())


class ImageView(Dataset):
    """Rows with an image, seen as rows with `pixel_values`.

    Args:
        rows: any sequence of dictionaries with `image` (PIL image or uint8 tensor) and `label`; a row that already has
            `pixel_values` is passed on as it is.
        transform: image -> float tensor (channels, height, width).
        seed: seed of the run for a transform with randomness: row (epoch, index) is transformed under a seed made of
            the three, and the global random state is left as it was.
    """

    def __init__(self, rows: Sequence[dict], transform: Callable | None, seed: int | None = None):
        self.rows = rows
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.rows[index]
        if "pixel_values" in row:
            return row
        if "image" not in row or self.transform is None:
            raise ValueError(
                f"Row {index} has the columns {', '.join(row)}; expected `image` (and an image processor given to the "
                "trainer as `processing_class`) or `pixel_values`."
            )
        return {
            **{name: row[name] for name in ("label", "labels") if name in row},
            "pixel_values": self._pixels(row["image"], epoch, index),
        }

    def _pixels(self, image, epoch: int, index: int):
        if self.seed is None:
            return self.transform(image)
        generator = torch.random.default_generator
        state = generator.get_state()
        generator.manual_seed(mix_seed(self.seed, epoch, index))
        try:
            return self.transform(image)
        finally:
            generator.set_state(state)
