"""The order of training samples, and rows turned into tensors: both pure functions of (seed, epoch, sample).

Nothing here consumes the global random state, so crops and flips do not depend on workers, processes or a resume.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from .captions import read_captions
from .decode import IMAGE_SOURCES, BadImageError, decode_image


logger = logging.getLogger(__name__)

ON_BAD_IMAGE = ("error", "skip")
_MASK = (1 << 64) - 1
_ATTEMPTS = 10  # replacements tried for one bad row
_IGNORED_CLASS = -100  # cross entropy's own `ignore_index`
_CAPTION_STREAM = 2  # apart from the numbers that a sample's crop, flip and mask are made of


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
                "`global_batch_size` (or, where it is not given, `per_device_train_batch_size` or "
                "`gradient_accumulation_steps`), or set `dataloader_drop_last=False`."
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
    """Rows with an image, seen as rows with `pixel_values` and a `sample_seed` for what else is drawn for a sample.

    With `on_bad_image="skip"` a bad row (its image cannot be decoded, the transform cannot take it, or a caption is
    missing or no text) never changes the number of rows in a batch, so that processes stay in step. In training another
    row takes its place, chosen by the address of the bad one; in evaluation it keeps its place, with black pixels, a
    target that is left out, no caption, and the mark `is_blank`.

    Args:
        rows: any sequence of dictionaries with `image` and `label`; a row that already has `pixel_values` is passed on
            as it is. Images are uint8 tensors, or what `decode_image` takes, which turns them upright: PIL images,
            encoded bytes, a path, or a dictionary of the two; those of a `datasets.Dataset` are decoded here, so that
            an error names the row.
        transform: image -> float tensor (channels, height, width).
        seed: seed of the run for a transform with randomness: row (epoch, index) or (epoch, index, copy) is transformed
            under a seed made of all of these, and the global random state is left as it was. None: evaluation.
        on_bad_image: "error" or "skip".
        captions: rows also hold `caption`, a string or a list of strings. In training one is drawn for each sample from
            its `sample_seed`; evaluation, where retrieval counts every one, keeps them all, as a list.

    Attributes:
        bad_rows: with "skip", (rows,) uint8 in shared memory: 1 where a row was found bad, by any worker process.
    """

    def __init__(
        self,
        rows: Sequence[dict],
        transform: Callable | None,
        seed: int | None = None,
        on_bad_image: str = "error",
        captions: bool = False,
    ):
        if on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"`on_bad_image` must be one of {', '.join(ON_BAD_IMAGE)}; got {on_bad_image!r}.")
        self.rows = _undecoded(rows)
        self.transform = transform
        self.seed = seed
        self.captions = captions
        self.bad_rows = torch.zeros(len(rows), dtype=torch.uint8).share_memory_() if on_bad_image == "skip" else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, ...]) -> dict:
        epoch, index, copy = (*key, 0)[:3] if isinstance(key, tuple) else (0, key, 0)
        try:
            return self._view(index, epoch, index, copy)
        except BadImageError as error:
            if self.bad_rows is None:
                raise
            self._note(index, error)
        return self._blank(index) if self.seed is None else self._replacement(epoch, index, copy)

    def bad_indices(self) -> list[int]:
        """The rows that were found bad so far, in order; always none with `on_bad_image="error"`."""
        return [] if self.bad_rows is None else self.bad_rows.nonzero().flatten().tolist()

    def name(self, index: int) -> str:
        """What to call a row in a message: its number and, where there is one, the path of its image."""
        image = self.rows[index].get("image")
        path = image.get("path") if isinstance(image, Mapping) else image
        return f"row {int(index)}" + (f" ({path})" if isinstance(path, str | Path) else "")

    def image(self, index: int) -> Any:
        """The image of a row as it is before the transform, decoded.

        Raises:
            BadImageError: if it cannot be decoded.
        """
        return self._image(self.rows[index]["image"], index)

    def _image(self, image: Any, number: int) -> Any:
        return decode_image(image, f"row {int(number)}") if isinstance(image, IMAGE_SOURCES) else image

    def _view(self, number: int, epoch: int, index: int, copy: int) -> dict:
        """Row `number` as the address (epoch, index, copy) transforms it."""
        row = self.rows[number]
        seed = self._sample_seed(epoch, index, copy)
        drawn = {"sample_seed": seed} | ({"caption": self._caption(row, number, seed)} if self.captions else {})
        if "pixel_values" in row:
            return {**row, **drawn}
        if "image" not in row or self.transform is None:
            raise ValueError(
                f"Row {index} has the columns {', '.join(row)}; expected `image` (and an image processor given to the "
                "trainer as `processing_class`) or `pixel_values`."
            )
        image = self._image(row["image"], number)
        try:
            pixels = self._pixels(image, seed)
        except (OSError, RuntimeError, ValueError) as error:
            raise BadImageError(f"{self.name(number)} cannot be transformed: {error}") from error
        targets = {name: row[name] for name in ("label", "labels") if name in row}
        return {**targets, "pixel_values": pixels, **drawn}

    def _caption(self, row: dict, number: int, seed: int) -> str | list[str]:
        if "caption" not in row:
            raise ValueError(
                f"{self.name(number)} has the columns {', '.join(row)}; expected `caption`. Open the data with "
                "`load_pairs`, or name the column as `caption_column` of `open_stream`."
            )
        try:
            captions = read_captions(row["caption"])
        except ValueError as error:
            raise BadImageError(f"{self.name(number)} has no caption to learn from: {error}.") from error
        return captions if self.seed is None else captions[mix_seed(seed, _CAPTION_STREAM) % len(captions)]

    def _sample_seed(self, epoch: int, index: int, copy: int) -> int:
        """The seed of everything random about a sample; in evaluation it depends on the row alone."""
        return mix_seed(self.seed or 0, epoch, index, *([copy] if copy else []))

    def _pixels(self, image, seed: int):
        if self.seed is None:
            return self.transform(image)
        generator = torch.random.default_generator
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            return self.transform(image)
        finally:
            generator.set_state(state)

    def _note(self, index: int, error: BadImageError) -> None:
        if not self.bad_rows[index]:
            logger.warning("Skipping a bad row: %s", error)
        self.bad_rows[index] = 1

    def _replacement(self, epoch: int, index: int, copy: int) -> dict:
        """Another row at this address: a good one, the same one in every run and for all copies."""
        draws = (mix_seed(self.seed, epoch, index, attempt) for attempt in range(1, _ATTEMPTS + 1))
        others = (index.other(draw) if hasattr(index, "other") else draw % len(self) for draw in draws)
        return self._first_good(others, epoch, index, copy)

    def _blank(self, index: int) -> dict:
        """A bad row of an evaluation: black pixels and a target that no loss and no metric counts."""
        row = self.rows[index]
        following = ((index + step) % len(self) for step in range(1, _ATTEMPTS + 1))
        pixels = torch.zeros_like(self._first_good(following, 0, index, 0)["pixel_values"])
        targets = {name: _ignored(row[name]) for name in ("label", "labels") if row.get(name) is not None}
        targets |= {"caption": []} if self.captions else {}
        return {**targets, "pixel_values": pixels, "sample_seed": self._sample_seed(0, index, 0), "is_blank": True}

    def _first_good(self, numbers: Iterable[int], epoch: int, index: int, copy: int) -> dict:
        for number in numbers:
            try:
                return self._view(number, epoch, index, copy)
            except BadImageError as error:
                self._note(number, error)
        raise BadImageError(
            f"row {int(index)} is bad, and so are {_ATTEMPTS} others taken in its place: {len(self.bad_indices())} of "
            f"{len(self)} rows were found bad so far. Repair the data set."
        )


def in_memory(rows: Sequence[dict]) -> list[dict]:
    """Decode all images once; one that cannot be decoded stays as it is stored, for `ImageView` to deal with."""
    view = ImageView(rows, None)
    kept = [dict(view.rows[index]) for index in range(len(rows))]
    for index, row in enumerate(kept):
        with suppress(BadImageError):
            row["image"] = view._image(row["image"], index)
    return kept


def _undecoded(rows: Sequence[dict]) -> Sequence[dict]:
    """Take the images of a `datasets.Dataset` as they are stored; one that formats its rows itself is left alone."""
    if not hasattr(rows, "cast_column") or rows.format["type"] is not None:
        return rows
    feature = rows.features.get("image")
    # A feature with a mode of its own converts the image too.
    if not getattr(feature, "decode", False) or getattr(feature, "mode", None) is not None:
        return rows
    return rows.cast_column("image", type(feature)(decode=False))


def _ignored(target: Any) -> Any:
    target = torch.as_tensor(target)
    if target.is_floating_point() or target.dim():
        return torch.full(target.shape, float("nan"))
    return torch.tensor(_IGNORED_CLASS)
