"""The order of training samples, and rows turned into tensors: both pure functions of (seed, epoch, sample).

Nothing here consumes the global random state, so crops and flips do not depend on workers, processes or a resume.
"""

import math
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
    """A permutation per epoch, cut to whole global batches; yields (epoch, index), or (epoch, index, copy).

    With repeated augmentation (Hoffer et al. 2020; 3 copies in DeiT) an epoch has as many rows, of fewer samples: a
    global batch holds as few samples as make it up with `repeats` copies of each, some with a copy less where the
    numbers do not divide. All copies 0 come first, then all copies 1: positions 2k and 2k + 1 never hold one sample.

    Args:
        num_rows: rows of the data set.
        seed: seed of the run.
        global_batch: samples per optimizer step, over all processes and accumulation steps.
        drop_last: leave out the incomplete last global batch; otherwise it is yielded too.
        repeats: copies of each sample in a global batch, to be augmented differently; 1 = no repetition.

    Raises:
        ValueError: if the data set is smaller than one global batch that has to be whole, or `repeats` is below 1 or
            leaves a single sample to a global batch.
    """

    def __init__(self, num_rows: int, seed: int, global_batch: int, drop_last: bool = True, repeats: int = 1):
        if drop_last and num_rows < global_batch:
            raise ValueError(
                f"The training set has {num_rows} rows, fewer than one global batch of {global_batch}. Lower "
                "`per_device_train_batch_size` or `gradient_accumulation_steps`, or set `dataloader_drop_last=False`."
            )
        if repeats < 1 or (repeats > 1 and repeats >= global_batch):
            raise ValueError(
                f"`repeats` must be at least 1 and, above that, smaller than the global batch of {global_batch}; "
                f"got {repeats}. Lower it or raise `per_device_train_batch_size`."
            )
        self.num_rows = num_rows
        self.seed = seed
        self.global_batch = global_batch
        self.repeats = repeats
        self.length = num_rows // global_batch * global_batch if drop_last else num_rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation that the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.num_rows, generator=generator)[: self.length].tolist()
        return ((epoch, index) for index in order) if self.repeats == 1 else self._repeat(epoch, order)

    def _repeat(self, epoch: int, order: list[int]) -> Iterator[tuple[int, int, int]]:
        used = 0
        for start in range(0, self.length, self.global_batch):
            size = min(self.global_batch, self.length - start)
            num_samples = max(math.ceil(size / self.repeats), min(size, 2))
            samples = order[used : used + num_samples]
            used += num_samples
            for position in range(size):
                copy = position // num_samples
                # Moved on by one per copy, so that a sample's copies have different neighbours to be mixed with.
                yield epoch, samples[(position + copy) % num_samples], copy


class ImageView(Dataset):
    """Rows with an image, seen as rows with `pixel_values`.

    Args:
        rows: any sequence of dictionaries with `image` (PIL image or uint8 tensor) and `label`; a row that already has
            `pixel_values` is passed on as it is.
        transform: image -> float tensor (channels, height, width).
        seed: seed of the run for a transform with randomness: row (epoch, index) or (epoch, index, copy) is transformed
            under a seed made of all of these, and the global random state is left as it was.
    """

    def __init__(self, rows: Sequence[dict], transform: Callable | None, seed: int | None = None):
        self.rows = rows
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, ...]) -> dict:
        epoch, index, copy = (*key, 0)[:3] if isinstance(key, tuple) else (0, key, 0)
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
            "pixel_values": self._pixels(row["image"], epoch, index, copy),
        }

    def _pixels(self, image, epoch: int, index: int, copy: int):
        if self.seed is None:
            return self.transform(image)
        generator = torch.random.default_generator
        state = generator.get_state()
        generator.manual_seed(mix_seed(self.seed, epoch, index, *([copy] if copy else [])))
        try:
            return self.transform(image)
        finally:
            generator.set_state(state)
