"""Configuration of the Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

The class has a name of its own because transformers' Auto classes look configurations up by class name.
"""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.utils import logging

from .configuration_base import VitfmVisionConfig


logger = logging.get_logger(__name__)

# transformers declares these, but does not check them in its subclasses.
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@strict
class VitfmViTConfig(VitfmVisionConfig):
    """Architecture, regularisation and head of a Vision Transformer.

    Args:
        pooling: "cls" = class token after the final norm (paper); "mean" = mean of the patch tokens, then a norm of its
            own, no final norm (as MAE fine-tuning has it); "cls_mean" = both side by side, twice as wide (DINOv2's
            linear classifiers); "none" = no pooled output (base model only).
        final_norm: where the last norm stands: "tokens" = on every token, before the pooling; "pooled" = on the pooled
            output; "none" = nowhere; None = "pooled" for mean pooling, else "tokens".
        use_pre_norm: a norm before the first layer, and patches without a bias (CLIP's vision towers).
        use_class_token: False leaves the class token out ("mean" or "none" pooling only).
        use_distillation_token: a second class token with a head of its own (DeiT); logits are the mean of both heads.
        patch_dropout: share of patches left out during training, before they are embedded, in [0, 1).
        representation_size: width of the pre-logits layer with tanh (pre-training head of the paper), None for none.
        weight_init: "trunc_normal" (timm, transformers) or "jax" (the paper's code: Xavier uniform, zero class token).
        head_init: "zeros" (the paper's fine-tuning) or "trunc_normal" with standard deviation 2e-5 (MAE's).
        **fields: those of the encoder, see `VitfmVisionConfig`.

    Raises:
        ValueError: unknown fields, or values that do not fit each other.
    """

    model_type = "vitfm_vit"

    pooling: Literal["cls", "mean", "cls_mean", "none"] = "cls"
    final_norm: Literal["tokens", "pooled", "none"] | None = None
    use_pre_norm: bool = False
    use_class_token: bool = True
    use_distillation_token: bool = False
    patch_dropout: float | int = 0.0
    representation_size: int | None = None
    weight_init: Literal["trunc_normal", "jax"] = "trunc_normal"
    head_init: Literal["zeros", "trunc_normal"] = "zeros"

    @classmethod
    def _without_invalid(cls, saved: dict, fields: dict) -> dict:
        """Another number of labels makes a new head, so it drops the old names and a pre-logits layer (section 3.2).

        The pre-logits layer stays if `representation_size` is given too.
        """
        saved, old, names = dict(saved), saved.get("id2label"), fields.get("id2label")
        num_old = saved.get("num_labels", 2) if old is None else len(old)  # transformers' default of 2 is not saved
        num_new = fields.get("num_labels", num_old) if names is None else len(names)
        if names is not None or num_new != num_old:
            for name in ("id2label", "label2id", "num_labels"):
                saved.pop(name, None)
        if num_new != num_old and saved.get("representation_size") and "representation_size" not in fields:
            logger.warning("The head is new, so the pre-logits layer is dropped (ViT paper, section 3.2).")
            saved["representation_size"] = None
        return saved

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.id2label is not None and self.label2id is None:
            self.label2id = {name: i for i, name in self.id2label.items()}
        self._check_shares("patch_dropout")
        if self.pooling in ("cls", "cls_mean") and not self.use_class_token:
            raise ValueError(
                f'`pooling="{self.pooling}"` needs a class token; set `use_class_token=True` or `pooling="mean"`.'
            )
        if self.final_norm == "pooled" and self.pooling in ("cls_mean", "none"):
            raise ValueError(
                f'`final_norm="pooled"` is for `pooling="cls"` or "mean"; got {self.pooling!r}. Set `final_norm=None`.'
            )
        if self.use_distillation_token and not (self.use_class_token and self.pooling == "cls"):
            raise ValueError('`use_distillation_token` needs `use_class_token=True` and `pooling="cls"`.')
        self._check_head()

    @property
    def patch_bias(self) -> bool:
        """Whether the projection of patches has a bias, which a norm right behind it makes needless."""
        return not self.use_pre_norm

    @property
    def norm_place(self) -> str:
        """`final_norm` with its default filled in: "tokens", "pooled" or "none"."""
        return self.final_norm or ("pooled" if self.pooling == "mean" else "tokens")

    @property
    def pooled_size(self) -> int:
        """Width of the pooled tokens, before a pre-logits layer."""
        return self.hidden_size * (2 if self.pooling == "cls_mean" else 1)

    def _check_head(self):
        if self.id2label is not None and sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"`id2label` must have the keys 0 to n - 1; got {sorted(self.id2label)[:10]}.")
        if self.representation_size is not None and self.representation_size < 1:
            raise ValueError(
                "`representation_size` must be at least 1, or None for no pre-logits layer; "
                f"got {self.representation_size}."
            )
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"`problem_type` must be one of {', '.join(PROBLEM_TYPES)}, or None to tell it from the labels; "
                f"got {self.problem_type!r}."
            )
