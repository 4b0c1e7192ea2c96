"""Training arguments for images: what transformers' `TrainingArguments` has no name for, and defaults of this field."""

import logging
import os
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..data.mixing import Mixing
from ..data.order import ON_BAD_IMAGE
from ..data.transforms import TrainOptions


logger = logging.getLogger(__name__)


@dataclass
class VisionTrainingArguments(TrainingArguments):
    """`TrainingArguments` plus the settings that the ViT, MAE and CLIP papers use.

    Defaults that differ from transformers': no gradient clipping (`max_grad_norm=0`; set it where the paper clips),
    the incomplete last global batch is dropped, cosine schedule, columns are kept for the transforms, and a loss that
    is not finite stops the run instead of being averaged away.

    `optim` also takes "lars" (`training.lars.LARS`), and `lr_scheduler_type="inverse_sqrt"` is the papers' own.

    Args:
        global_batch_size: samples per optimizer step over all devices; `gradient_accumulation_steps` is derived from
            it. Not given: it is what the devices, batches and accumulation steps make.
        base_learning_rate: learning rate per 256 images: `learning_rate` = this x global batch / 256. Give one of both.
        min_learning_rate: where linear and cosine schedules end; scaled with the layer decay like the peak.
        cooldown_steps: updates at the end over which a constant or inverse_sqrt schedule falls linearly to 0.
        momentum: of SGD and LARS. The ViT paper (B.1.1) and its code use 0.9.
        layer_decay: factor per layer from the head down to the embeddings, in (0, 1]; 1 = none.
        ema_decay: factor of the exponential moving average of the weights (Polyak averaging), in [0, 1), or None.
            Evaluated and saved are then the averages; checkpoints hold both.
        crop_scale: share of the image's area that the random resized crop takes, (smallest, largest).
        crop_padding: pixels: instead of the resized crop, pad by this and crop at random (small images).
        crop_antialias: whether that crop is smoothed where it is made smaller; the JAX code of ViT does not.
        horizontal_flip: probability of a left-right flip.
        auto_augment: RandAugment policy in timm's notation; "rand-m9-mstd0.5-inc1" in DeiT and MAE.
        color_jitter: largest relative change of brightness, contrast and saturation; not beside `auto_augment`.
        random_erasing: probability of noise in place of a rectangle; 0.25 in DeiT and MAE.
        mixup_alpha: of mixup's Beta distribution, 0 = off; 0.8 in DeiT and MAE. Needs an even batch per device.
        cutmix_alpha: of CutMix's, 0 = off; 1.0 in DeiT and MAE.
        mix_probability: that a step mixes at all, where one of the two is on.
        mix_switch_probability: of CutMix in place of mixup, where both are on.
        repeated_augmentation: copies of each sample in a global batch, 1 = none; 3 in DeiT.
        class_weights: "balanced" weighs the training loss of every image with images / (classes x images of its class),
            so that every class counts alike; only for one class per image.
        on_bad_image: "error" stops at an image that cannot be decoded or transformed, naming it; "skip" puts another
            row in its place in training, leaves it out of the metrics in evaluation, and reports the number.
    """

    global_batch_size: int | None = field(default=None, metadata={"help": "samples per step over all devices"})
    base_learning_rate: float | None = field(default=None, metadata={"help": "learning rate per 256 images"})
    min_learning_rate: float = field(default=0.0, metadata={"help": "where linear and cosine schedules end"})
    cooldown_steps: int = field(default=0, metadata={"help": "final linear fall of constant and inverse_sqrt"})
    momentum: float = field(default=0.9, metadata={"help": "of SGD and LARS"})
    layer_decay: float = field(default=1.0, metadata={"help": "factor per layer, 1 = none"})
    ema_decay: float | None = field(default=None, metadata={"help": "of the average of the weights"})
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0], metadata={"help": "area of the random crop"})
    crop_padding: int | None = field(default=None, metadata={"help": "pixels of padding before a random crop"})
    crop_antialias: bool = field(default=True, metadata={"help": "smooth the resized crop"})
    horizontal_flip: float = field(default=0.5, metadata={"help": "probability"})
    auto_augment: str | None = field(default=None, metadata={"help": "policy such as rand-m9-mstd0.5-inc1"})
    color_jitter: float | None = field(
        default=None, metadata={"help": "brightness, contrast, saturation, such as 0.4"}
    )
    random_erasing: float = field(default=0.0, metadata={"help": "probability"})
    mixup_alpha: float = field(default=0.0, metadata={"help": "of the Beta distribution, 0 = no mixup"})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "of the Beta distribution, 0 = no CutMix"})
    mix_probability: float = field(default=1.0, metadata={"help": "that a step mixes at all"})
    mix_switch_probability: float = field(default=0.5, metadata={"help": "of CutMix in place of mixup"})
    repeated_augmentation: int = field(default=1, metadata={"help": "copies of each sample in a global batch"})
    class_weights: str | None = field(
        default=None, metadata={"help": '"balanced": rare classes count as much as others'}
    )
    on_bad_image: str = field(default="error", metadata={"help": "error or skip", "choices": list(ON_BAD_IMAGE)})

    max_grad_norm: float = field(default=0.0, metadata={"help": "global gradient norm, 0 = no clipping"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "name of the schedule"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "drop columns the model does not take"})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "drop the incomplete last global batch"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "hide losses that are not finite"})

    def __post_init__(self):
        is_lars = self.optim == "lars"
        if is_lars:
            self.optim = "sgd"  # transformers' list of names is closed
        super().__post_init__()
        if is_lars:
            self.optim = "lars"
        if self.max_grad_norm is None:
            self.max_grad_norm = 0.0
        self._check_learning_rates()
        self._check_ranges()
        self._derive_accumulation()
        uses_fsdp = self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
        if uses_fsdp and self.device.type == "cpu":
            raise ValueError(
                "FSDP needs GPUs: on a CPU, Trainer and Accelerate quietly copy the model to every process (DDP) in its "
                "place. Leave `fsdp` out (or take recipes/accelerate/cpu.yaml)."
            )

    def _check_ranges(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` must be in (0, 1]; got {self.layer_decay}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), such as 0.9999, or None; got {self.ema_decay}.")
        if not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"`label_smoothing_factor` must be in [0, 1); got {self.label_smoothing_factor}.")
        scale = self.crop_scale
        if not isinstance(scale, (list, tuple)) or len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"`crop_scale` must be two shares of the area, 0 < smallest <= largest <= 1; got {scale!r}."
            )
        if self.class_weights not in (None, "balanced"):
            raise ValueError(f'`class_weights` must be "balanced" or None; got {self.class_weights!r}.')
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"`on_bad_image` must be one of {', '.join(ON_BAD_IMAGE)}; got {self.on_bad_image!r}.")
        if 0 < self.max_steps <= self.warmup_steps:
            logger.warning(
                "`warmup_steps` %g is not less than `max_steps` %d: the learning rate never reaches its peak. "
                "Lower it too.",
                self.warmup_steps,
                self.max_steps,
            )
        self._check_augmentation()

    def _check_learning_rates(self) -> None:
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

    def _derive_accumulation(self) -> None:
        at_once = self.train_batch_size * self.world_size
        if self.global_batch_size is None:
            self.global_batch_size = at_once * self.gradient_accumulation_steps
            return
        steps, rest = divmod(self.global_batch_size, at_once)
        if rest or not steps or self.gradient_accumulation_steps not in (1, steps):
            raise ValueError(
                f"`global_batch_size` {self.global_batch_size} cannot be made of {self.world_size} processes with "
                f"{self.train_batch_size} samples each and gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}. Choose a `per_device_train_batch_size` that divides "
                f"{self.global_batch_size / self.world_size:g}, and leave `gradient_accumulation_steps` out."
            )
        self.gradient_accumulation_steps = steps

    def _check_augmentation(self) -> None:
        TrainOptions(**self.train_transform_options)
        if self.repeated_augmentation < 1:
            raise ValueError(f"`repeated_augmentation` must be at least 1; got {self.repeated_augmentation!r}.")
        if self.mixing is not None and (self.train_batch_size % 2 or not self.dataloader_drop_last):
            raise ValueError(
                "mixup and CutMix pair neighbours, so `per_device_train_batch_size` must be even and "
                f"`dataloader_drop_last` true; got {self.per_device_train_batch_size} and {self.dataloader_drop_last}."
            )

    @property
    def mixing(self) -> Mixing | None:
        """How batches are mixed, by the seed of the data; None if they are not."""
        if self.mixup_alpha == self.cutmix_alpha == 0:
            return None
        return Mixing(
            self.mixup_alpha,
            self.cutmix_alpha,
            self.mix_probability,
            self.mix_switch_probability,
            self.seed if self.data_seed is None else self.data_seed,
        )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, before layer decay."""
        if self.base_learning_rate is None:
            return self.learning_rate
        return self.base_learning_rate * self.global_batch_size / 256

    @property
    def train_transform_options(self) -> dict:
        """Keyword arguments of `build_transform(..., train=True)`; what is off is left out."""
        options = {"horizontal_flip": self.horizontal_flip}
        if self.crop_padding is not None:
            options["crop_padding"] = self.crop_padding
        else:
            options["crop_scale"] = tuple(self.crop_scale)
            if not self.crop_antialias:
                options["crop_antialias"] = False
        extras = {name: getattr(self, name) for name in ("auto_augment", "color_jitter", "random_erasing")}
        return options | {name: value for name, value in extras.items() if value}
