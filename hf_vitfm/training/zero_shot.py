"""Zero-shot accuracy between the steps of CLIP's training; all processes share the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ..data.order import ImageView
from ..evaluation.features import extract_features
from ..evaluation.prompts import write_prompts
from ..evaluation.zero_shot import ZeroShotClassifier, zero_shot_metrics
from .bad_images import warn_of_bad_images
from .trainer import VisionTrainer


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ZeroShotTask:
    """Labelled images, and what to call their classes."""

    rows: Sequence[dict]
    classnames: Sequence[str]
    templates: Sequence[str]
    tokenizer: "PreTrainedTokenizerBase"

    @classmethod
    def of(cls, rows, classnames, templates, processing_class: Any) -> "ZeroShotTask | None":
        """The task, if there is one.

        Args:
            rows: with `image` (or `pixel_values`) and `label`.
            classnames: in the order of the class ids.
            templates: each with one "{}" for the name.
            processing_class: has the tokenizer.

        Raises:
            ValueError: if some of it is missing, or names or templates are not as they should be.
        """
        parts = {"labelled_dataset": rows, "classnames": classnames, "templates": templates}
        missing = [f"`{name}`" for name, part in parts.items() if part is None]
        if len(missing) == len(parts):
            return None
        if missing:
            given = ", ".join(f"`{name}`" for name, part in parts.items() if part is not None)
            raise ValueError(
                f"Zero-shot accuracy needs {', '.join(f'`{name}`' for name in parts)}; got {given} without "
                f"{' and '.join(missing)}. Give all three, or none."
            )
        if len(rows) == 0:
            raise ValueError("`labelled_dataset` must hold at least one row; got none.")
        write_prompts(classnames, templates)  # now, not after the first steps
        tokenizer = getattr(processing_class, "tokenizer", None)
        if tokenizer is None:
            raise ValueError(
                "Class names need a tokenizer: give CLIP's processor as `processing_class`, or leave `labelled_dataset`, "
                "`classnames` and `templates` out."
            )
        return cls(rows, classnames, templates, tokenizer)

    def evaluate(self, trainer: VisionTrainer) -> dict[str, float]:
        """Top-1, top-5 and the mean over classes of the trainer's model as it is; every process has to call it.

        Images that are skipped as bad count in none of them.
        """
        args, model = trainer.args, trainer.model
        group = dist.group.WORLD if args.world_size > 1 else None
        classifier = ZeroShotClassifier.build(model, self.tokenizer, self.classnames, self.templates, group=group)
        view = ImageView(self.rows, trainer.eval_transform, on_bad_image=args.on_bad_image)
        embeds, labels = extract_features(
            model,
            view,
            batch_size=args.per_device_eval_batch_size,
            pooling="projected",
            num_workers=args.dataloader_num_workers,
            group=group,
        )
        warn_of_bad_images(view, "zero-shot evaluation", args)
        return zero_shot_metrics(classifier, embeds, labels)
