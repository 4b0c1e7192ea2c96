"""Configuration of the masked autoencoder (He et al. 2022, arXiv 2111.06377)."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_base import VitfmVisionConfig, as_pair


@strict
class VitfmMAEConfig(VitfmVisionConfig):
    """Encoder, decoder and masking of a masked autoencoder.

    Args:
        position_embedding_type: "sincos" as in the paper; the decoder's positions are always fixed.
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: layers of the decoder.
        decoder_num_attention_heads: heads of the decoder; must divide its width.
        decoder_intermediate_size: width of the hidden layer of the decoder's MLP.
        mask_ratio: share of patches that are left out, in [0, 1); int(patches * (1 - mask_ratio)) are visible. 0 masks
            and shuffles nothing, for features.
        masking: "random" (the paper's), "block" (as BEiT's), or "grid" (one of every 2 x 2 patches is visible; needs a
            `mask_ratio` of 0.75 and an even grid).
        norm_pix_loss: predict the pixels of a patch normalised by their mean and variance. True for the paper's best
            models, whose released configurations say False.
        **fields: those of the encoder, see `VitfmVisionConfig`.

    Raises:
        ValueError: unknown fields, or values that do not fit each other.
    """

    model_type = "vitfm_mae"

    # Not fields: an MAE has exactly this encoder.
    use_class_token = True
    use_distillation_token = False
    patch_dropout = 0.0

    position_embedding_type: Literal["learned", "sincos"] = "sincos"
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.75
    masking: Literal["random", "block", "grid"] = "random"
    norm_pix_loss: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"):
            if getattr(self, f"decoder_{name}") < 1:
                raise ValueError(f"`decoder_{name}` must be at least 1; got {getattr(self, f'decoder_{name}')}.")
        width, heads = self.decoder_hidden_size, self.decoder_num_attention_heads
        if width % heads or width % 4:
            raise ValueError(
                "`decoder_hidden_size` must be divisible by `decoder_num_attention_heads` and, for sine-cosine "
                f"positions, by 4; got {width} and {heads}."
            )
        patch_height, patch_width = as_pair(self.patch_size)
        if self.norm_pix_loss and patch_height * patch_width * self.num_channels < 2:
            raise ValueError("`norm_pix_loss` needs patches of two values at least: one alone has no variance.")
        self._check_masking()

    def _check_masking(self):
        self._check_shares("mask_ratio")
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        rows, columns = height // patch_height, width // patch_width
        if int(rows * columns * (1 - self.mask_ratio)) < 1:
            raise ValueError(
                f"`mask_ratio` {self.mask_ratio} leaves none of the {rows * columns} patches visible. Lower it below "
                f"{1 - 1 / (rows * columns):.4f}."
            )
        if self.masking == "grid" and (self.mask_ratio != 0.75 or rows % 2 or columns % 2):
            raise ValueError(
                '`masking="grid"` keeps one of every 2 x 2 patches: it needs a `mask_ratio` of 0.75 and an even grid; '
                f"got {self.mask_ratio} and {rows} x {columns} patches."
            )
