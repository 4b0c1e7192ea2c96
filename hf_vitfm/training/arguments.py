"""Training arguments for images: what transformers' `TrainingArguments` has no name for, and defaults of this field."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..data.order import ON_BAD_IMAGE


@dataclass
class VisionTrainingArguments(TrainingArguments):
    """`TrainingArguments` plus the settings that the ViT, MAE and CLIP papers use.

    Defaults that differ from transformers': no gradient clipping (`max_grad_norm=0`; set it where the paper clips),
    the incomplete last global batch is dropped, cosine schedule, columns are kept for the transforms, and a loss that
    is not finite stops the run instead of being averaged away.

    Args:
        base_learning_rate: learning rate per 256 images: `learning_rate` = this x global batch / 256. Give one of both.
        min_learning_rate: where linear and cosine schedules end; scaled with the layer decay like the peak.
        momentum: of SGD (`optim="sgd"`). The ViT paper (B.1.1) and its code use 0.9.
        layer_decay: factor per layer from the head down to the embeddings, in (0, 1]; 1 = none.
        crop_scale: share of the image's area that the random resized crop takes, (smallest, largest).
        crop_padding: pixels: instead of the resized crop, pad by this and crop at random (small images).
        horizontal_flip: probability of a left-right flip.
        on_bad_image: "error" stops at an image that cannot be decoded or transformed, naming it; "skip" puts another
            row in its place in training, leaves it out of the metrics in evaluation, and reports the number.
    """

    base_learning_rate: float | None = field(default=None, metadata={"help": "learning rate per 256 images"})
    min_learning_rate: float = field(default=0.0, metadata={"help": "where linear and cosine schedules end"})
    momentum: float = field(default=0.9, metadata={"help": "of SGD"})
    layer_decay: float = field(default=1.0, metadata={"help": "factor per layer, 1 = none"})
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0], metadata={"help": "area of the random crop"})
    crop_padding: int | None = field(default=None, metadata={"help": "pixels of padding before a random crop"})
    horizontal_flip: float = field(default=0.5, metadata={"help": "probability"})
    on_bad_image: str = field(default="error", metadata={"help": "error or skip", "choices": list(ON_BAD_IMAGE)})

    max_grad_norm: float = field(default=0.0, metadata={"help": "global gradient norm, 0 = no clipping"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "name of the schedule"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "drop columns the model does not take"})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "drop the incomplete last global batch"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "hide losses that are not finite"})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` must be in (0, 1]; got {self.layer_decay}.")
        if not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"`label_smoothing_factor` must be in [0, 1); got {self.label_smoothing_factor}.")
        scale = self.crop_scale
        if not isinstance(scale, (list, tuple)) or len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"`crop_scale` must be two shares of the area, 0 < smallest <= largest <= 1; got {scale!r}."
            )
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"`on_bad_image` must be one of {', '.join(ON_BAD_IMAGE)}; got {self.on_bad_image!r}.")
        default = TrainingArguments.__dataclass_fields__["learning_rate"].default
        if self.base_learning_rate is not None and self.learning_rate != default:
            raise ValueError(
                f"Give `base_learning_rate` or `learning_rate`, not both; got {self.base_learning_rate} and "
                f"{self.learning_rate}."
            )
        if self.min_learning_rate < 0 or (
            self.base_learning_rate is None and self.min_learning_rate > self.learning_rate
        ):
            raise ValueError(
                f"`min_learning_rate` must be between 0 and the learning rate {self.learning_rate}; "
                f"got {self.min_learning_rate}."
            )
        if self.max_grad_norm is None:
            self.max_grad_norm = 0.0

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step, over all devices and accumulation steps."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, before layer decay."""
        if self.base_learning_rate is None:
            return self.learning_rate
        return self.base_learning_rate * self.global_batch_size / 256

    @property
    def train_transform_options(self) -> dict:
        """Keyword arguments of `build_transform(..., train=True)`."""
        options = {"horizontal_flip": self.horizontal_flip}
        if self.crop_padding is not None:
            return {**options, "crop_padding": self.crop_padding}
        return {**options, "crop_scale": tuple(self.crop_scale)}
