"""Configuration of CLIP: two towers and the objective that joins them (Radford et al. 2021, arXiv 2103.00020)."""

import copy
import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_base import OF_THE_CALLER, VitfmConfig, VitfmEncoderConfig, VitfmVisionConfig, parse_variant


# The text towers beside the vision towers of Table 20 of the paper; the width is that of the joint space too.
TEXT_VARIANTS = {
    "B": {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "L": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


@strict
class VitfmCLIPTextConfig(VitfmEncoderConfig):
    """The text tower.

    Args:
        vocab_size: tokens that have an embedding.
        max_position_embeddings: the longest text, in tokens.
        projection_dim: width of the joint space, for the tower with a projection of its own.
        pooling: which token stands for the text: "eos" = the first `eos_token_id`, also where tokens were added to the
            vocabulary; a text without one is pooled at its last token. "argmax" = the first of the highest ids, as
            OpenAI's code has it. "last" = the last place of the row, padding or not, as SigLIP has it: texts must be
            padded as in training (`padding="max_length"`).
        is_causal: whether a token sees only those before it (CLIP) or all of them (SigLIP).
        projection_bias: whether the projection to the joint space has a bias (SigLIP).
        pad_token_id: for tokenizers; the model itself needs an attention mask only where padding is on the left.
        bos_token_id: for tokenizers.
        eos_token_id: the token that ends a text.
        **fields: those of the encoder, see `VitfmEncoderConfig`; `attention_dropout` is transformers' name for
            `attention_probs_dropout_prob`.

    Raises:
        ValueError: unknown fields, or values that do not fit each other.
    """

    model_type = "vitfm_clip_text"
    base_config_key = "text_config"
    attribute_map = {"attention_dropout": "attention_probs_dropout_prob"}

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    pooling: Literal["eos", "argmax", "last"] = "eos"
    is_causal: bool = True
    projection_bias: bool = False
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_counts("vocab_size", "max_position_embeddings", "projection_dim")


@strict
class VitfmCLIPVisionConfig(VitfmVisionConfig):
    """The vision tower: a ViT with a norm before its layers, and patches without a bias.

    Args:
        projection_dim: width of the joint space, for the tower with a projection of its own.
        use_projection: False leaves the projection out: the pooled vector is in the joint space (SigLIP), whose width
            is the tower's then.
        pooling: "cls" = class token (paper), "mean" = mean of the patch tokens, "map" = a learned query attends to all
            tokens, and an MLP follows (SigLIP).
        use_class_token: False leaves the class token out ("mean" or "map" pooling only).
        patch_bias: whether the projection of patches has a bias.
        use_pre_norm: whether a norm precedes the layers.
        final_norm: where the last norm stands: "tokens" = on every token, before the pooling (SigLIP); "pooled" = on the
            pooled vector (CLIP).
        trim_images: whether pixels at the right and the bottom that fill no patch are left out, or an error. Models that
            other libraries trained so have the image size that is left: 378 for 384 pixels and patches of 14.
        patch_dropout: share of patches left out during training, before they are embedded, in [0, 1) (FLIP, Li et al.
            2023).
        **fields: those of the encoder, see `VitfmVisionConfig`; `attention_dropout` is transformers' name for
            `attention_probs_dropout_prob`.

    Raises:
        ValueError: unknown fields, or values that do not fit each other.
    """

    model_type = "vitfm_clip_vision"
    base_config_key = "vision_config"
    attribute_map = {"attention_dropout": "attention_probs_dropout_prob"}

    use_distillation_token = False  # not a field: CLIP has none

    patch_size: int | list[int] | tuple[int, int] = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    use_projection: bool = True
    pooling: Literal["cls", "mean", "map"] = "cls"
    use_class_token: bool = True
    patch_bias: bool = False
    use_pre_norm: bool = True
    final_norm: Literal["tokens", "pooled"] = "pooled"
    trim_images: bool = False
    patch_dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_counts("projection_dim")
        self._check_shares("patch_dropout")
        if self.pooling == "cls" and not self.use_class_token:
            raise ValueError('`pooling="cls"` needs a class token; set `use_class_token=True` or another `pooling`.')
        if not self.use_projection:
            self.projection_dim = self.hidden_size


OWN_TOWERS = {"text_config": VitfmCLIPTextConfig, "vision_config": VitfmCLIPVisionConfig}


@strict
class VitfmCLIPConfig(VitfmConfig):
    """Two towers, a joint space and an objective.

    Args:
        text_config: fields of `VitfmCLIPTextConfig`; or the configuration, as an object or as a dictionary with its
            `model_type`, of anything that `AutoModel` builds (BERT, GPT-2, ...).
        vision_config: fields of `VitfmCLIPVisionConfig`, or a configuration of anything that `AutoModel` builds (ViT,
            DINOv2, ...).
        projection_dim: width of the joint space; the towers' own fields of this name follow it.
        text_pooling: for a foreign text tower: "cls" (first token), "mean" or "last" of the tokens that are attended
            to; None = the tower's `pooler_output`.
        vision_pooling: for a foreign vision tower: "cls" (first token) or "mean" of the patch tokens; None = the tower's
            `pooler_output`.
        objective: "softmax" (CLIP) or "sigmoid" (SigLIP, Zhai et al. 2023), which adds a learned bias to the logits.
        logit_scale_init_value: logarithm of the initial factor on the cosines; None = ln(1 / 0.07) for softmax, ln(10)
            for sigmoid.
        logit_bias_init_value: the initial bias of the sigmoid objective.

    Raises:
        ValueError: unknown fields, or values that do not fit each other.
    """

    model_type = "vitfm_clip"
    sub_configs_defaults = OWN_TOWERS

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    text_pooling: Literal["cls", "mean", "last"] | None = None
    vision_pooling: Literal["cls", "mean"] | None = None
    objective: Literal["softmax", "sigmoid"] = "softmax"
    logit_scale_init_value: float | int | None = None
    logit_bias_init_value: float | int = -10.0

    # Fields of the vision tower that `from_pretrained` also takes directly.
    VISION_OVERRIDES = ("image_size", "patch_dropout")

    @classmethod
    def from_variant(cls, variant: str, image_size: int = 224, **fields):
        """Build a configuration of the paper's vision transformers by name.

        Args:
            variant: "B/32", "B/16" or "L/14"; other patch sizes are possible.
            image_size: pixels; 336 for the paper's L/14@336px.
            **fields: any other field; dictionaries for the towers change single fields of theirs.

        Raises:
            ValueError: if the variant is not known.
        """
        vision = parse_variant(variant)
        text = TEXT_VARIANTS.get(variant.partition("/")[0])
        if text is None:
            raise ValueError(
                f"`variant` must be a size of {', '.join(TEXT_VARIANTS)} and a patch size; got {variant!r}. "
                "Write for example 'B/32', or give `text_config` and `vision_config` to `CLIPConfig`."
            )
        towers = {
            "text_config": {**text, **fields.pop("text_config", {})},
            "vision_config": {**vision, "image_size": image_size, **fields.pop("vision_config", {})},
        }
        return cls(**{**towers, "projection_dim": text["hidden_size"], **fields})

    @classmethod
    def field_names(cls) -> list[str]:
        """The keywords of `from_pretrained` that are fields, some of them of the vision tower."""
        return [*super().field_names(), *cls.VISION_OVERRIDES]

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Read a saved dictionary; dictionaries for the towers among the keywords change single fields of theirs."""
        saved = dict(config_dict)
        changes = {name: kwargs.pop(name) for name in OWN_TOWERS if isinstance(kwargs.get(name), dict)}
        overrides = {name: kwargs.pop(name) for name in cls.VISION_OVERRIDES if name in kwargs}
        if overrides:
            changes["vision_config"] = {**changes.get("vision_config", {}), **overrides}
        for name, own in OWN_TOWERS.items():
            saved[name] = _read_tower(saved.get(name), changes.get(name, {}), own)
        return super().from_dict(saved, **kwargs)

    def __post_init__(self, **kwargs):
        for name, own in OWN_TOWERS.items():
            setattr(self, name, _tower_config(getattr(self, name), own))
        super().__post_init__(**kwargs)
        if self.logit_scale_init_value is None:
            self.logit_scale_init_value = math.log(1 / 0.07) if self.objective == "softmax" else math.log(10)
        self._check_counts("projection_dim")
        for name, own in OWN_TOWERS.items():
            tower, pooling = getattr(self, name), name.replace("config", "pooling")
            if not isinstance(tower, own):
                continue
            if not getattr(tower, "use_projection", True) and tower.hidden_size != self.projection_dim:
                raise ValueError(
                    f"Without a projection (`use_projection=False` in `{name}`), `projection_dim` must be the tower's "
                    f"`hidden_size`, {tower.hidden_size}; got {self.projection_dim}."
                )
            tower.projection_dim = self.projection_dim
            if getattr(self, pooling) is not None:
                raise ValueError(
                    f"`{pooling}` is for towers of other libraries; got {getattr(self, pooling)!r} beside this library's. "
                    f"Set `pooling` in `{name}` instead."
                )


def _tower_config(value: dict | PreTrainedConfig | None, own: type) -> PreTrainedConfig:
    """The configuration object of a tower; the caller's stays as it is."""
    if isinstance(value, PreTrainedConfig):
        return copy.deepcopy(value)
    fields = dict(value or {})
    model_type = fields.pop("model_type", own.model_type)
    return own(**fields) if model_type == own.model_type else AutoConfig.for_model(model_type, **fields)


def _read_tower(saved: dict | PreTrainedConfig | None, changes: dict, own: type) -> PreTrainedConfig:
    """A saved tower with some fields changed; with another `model_type` among the changes, they are all there is."""
    saved = saved.to_dict() if isinstance(saved, PreTrainedConfig) else dict(saved or {})
    model_type = changes.get("model_type", saved.get("model_type", own.model_type))
    if model_type != saved.get("model_type", own.model_type):
        return _tower_config(changes, own)
    if model_type == own.model_type:
        own.refuse_unknown(changes)  # transformers would leave them out in silence
        return own.from_dict(saved, **{name: value for name, value in changes.items() if name != "model_type"})
    saved = {name: value for name, value in saved.items() if name not in OF_THE_CALLER}
    return _tower_config({**saved, **changes}, own)
