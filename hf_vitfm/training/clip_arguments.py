"""Training arguments of CLIP."""

from dataclasses import dataclass, field

from .arguments import VisionTrainingArguments


_SETTINGS_FOR_LABELS = ("mixup_alpha", "cutmix_alpha", "label_smoothing_factor", "class_weights")


@dataclass
class CLIPTrainingArguments(VisionTrainingArguments):
    """`VisionTrainingArguments` with gradient caching.

    Every process compares its pairs with those of all others. Without gradient caching, the batches that
    `gradient_accumulation_steps` counts are compared each by itself. With it, all pairs of an optimizer step are one
    batch, at the memory of a chunk and the cost of one forward pass more.

    Defaults that differ: crops of 90 to 100 % of the area and no flips, since captions tell left from right. Settings
    that need labels are refused.

    Args:
        grad_cache_chunk_size: pairs that go through the towers at a time on a device, or None. The global batch is what
            `global_batch_size` says, or devices x `per_device_train_batch_size` x `gradient_accumulation_steps`;
            afterwards, the last two hold the chunk and the number of chunks.

    Raises:
        ValueError: if the chunk does not divide a device's share of the global batch, or for settings that need labels.
    """

    grad_cache_chunk_size: int | None = field(
        default=None, metadata={"help": "pairs at a time in the towers; the whole global batch are the negatives"}
    )
    crop_scale: list[float] = field(default_factory=lambda: [0.9, 1.0], metadata={"help": "area of the random crop"})
    horizontal_flip: float = field(default=0.0, metadata={"help": "probability"})

    def __post_init__(self):
        super().__post_init__()
        given = [name for name in _SETTINGS_FOR_LABELS if getattr(self, name)]
        if given:
            raise ValueError(f"{', '.join(given)} mix or weigh labels, of which CLIP has none. Leave them out.")
        if self.repeated_augmentation > 1:
            raise ValueError(
                "`repeated_augmentation` puts the same pair into a batch several times, where each would be told apart "
                f"from itself. It must be 1 for CLIP; got {self.repeated_augmentation}."
            )

    def _derive_accumulation(self) -> None:
        if self.grad_cache_chunk_size is not None:
            self._split_into_chunks()
        super()._derive_accumulation()

    def _split_into_chunks(self) -> None:
        chunk, devices = self.grad_cache_chunk_size, self.world_size * max(1, self.n_gpu)
        if self.global_batch_size is None:
            self.global_batch_size = devices * self.per_device_train_batch_size * self.gradient_accumulation_steps
        if not isinstance(chunk, int) or chunk < 1 or self.global_batch_size % (devices * chunk):
            raise ValueError(
                "`grad_cache_chunk_size` must be a whole number from 1 that divides each device's share of the global "
                f"batch; got {chunk!r} for {self.global_batch_size} pairs on {devices} devices."
            )
        self.per_device_train_batch_size = chunk
        self.gradient_accumulation_steps = self.global_batch_size // (devices * chunk)
