"""What the configurations of all models share: the fields of an encoder and of its images, and their checks.

Field names are those of transformers' `ViTConfig` where both have a field.
"""

import difflib
from numbers import Integral
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging


logger = logging.get_logger(__name__)

# Table 1 of the paper; Ti and S as in DeiT (Touvron et al. 2021, Table 1) and "How to train your ViT".
VARIANTS = {
    "Ti": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "S": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "H": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120},
}

# Keys that transformers itself puts into a config.json or a constructor call without declaring them as fields.
TRANSFORMERS_KEYS = {
    "model_type",
    "num_labels",
    "torch_dtype",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "per_layer_config",
    "auto_map",
    "use_cache",
    "quantization_config",
}
# Arguments of the loading, for its caller alone to give: the name of a Hub repository there has its code fetched and run.
OF_THE_CALLER = {"attn_implementation", "experts_implementation"}


def parse_variant(variant: str) -> dict:
    """Turn a name such as "B/16" into configuration fields.

    Args:
        variant: letter(s) of the size, slash, patch size in pixels.

    Raises:
        ValueError: if the size is unknown or the patch size is not a positive integer.
    """
    size, _, patch = str(variant).partition("/")
    if size not in VARIANTS or not patch.isdigit() or int(patch) == 0:
        raise ValueError(
            f"`variant` must be a size of {', '.join(VARIANTS)}, a slash and a patch size in pixels; got {variant!r}. "
            "Write for example 'B/16' or 'H/14'."
        )
    return {**VARIANTS[size], "patch_size": int(patch)}


@strict
class VitfmConfig(PreTrainedConfig):
    """What the configurations of all models do: refuse unknown fields, read saved ones, take overrides.

    Raises:
        ValueError: unknown fields.
    """

    vitfm_format_version: int = 1

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Read a saved dictionary; a key that this version does not know is left out, with a warning.

        So are names of attention functions, which can stand for code on the Hub; they are given to `from_pretrained`.

        Fields among the keywords replace saved ones and are checked with them.
        """
        unknown = sorted({*cls._unknown(config_dict), *(OF_THE_CALLER & set(config_dict))})
        if unknown:
            logger.warning(
                f"The saved configuration has fields that this version does not know and leaves out: {', '.join(unknown)}."
            )
        saved = {key: value for key, value in config_dict.items() if key not in unknown}
        if not __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            saved.pop("auto_map", None)  # names files of remote code, which the next save would not have beside it
        fields = {name: kwargs.pop(name) for name in cls.field_names() if name in kwargs}
        known = {**cls._without_invalid(saved, fields), **fields}
        # Without keywords transformers' method does no more than this, but writes the whole configuration out for its log.
        return super().from_dict(known, **kwargs) if kwargs else cls(**known)

    @classmethod
    def _without_invalid(cls, saved: dict, fields: dict) -> dict:
        """The saved fields without those that given ones make invalid."""
        return saved

    @classmethod
    def field_names(cls) -> list[str]:
        """The keywords of `from_pretrained` that are fields of the configuration; `dtype` is the loading's own."""
        names = (name for name in cls.__dataclass_fields__ if name != "dtype")
        return [*names, *cls.attribute_map, "num_labels", "output_attentions"]

    @property
    def output_attentions(self) -> bool | None:
        """Whether models return attention weights; unlike transformers' they do with every attention function."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None):
        self._output_attentions = value

    def validate_output_attentions(self):
        """Nothing to refuse, see `output_attentions`."""

    @classmethod
    def _unknown(cls, names) -> list[str]:
        return sorted(set(names) - set(cls.__dataclass_fields__) - set(cls.attribute_map) - TRANSFORMERS_KEYS)

    @classmethod
    def refuse_unknown(cls, names) -> None:
        """Raise a ValueError if one of these names is no field."""
        unknown = cls._unknown(names)
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.field_names(), n=1)
            hint = f" Did you mean `{near[0]}`?" if near else " The fields are listed in the class's docstring."
            raise ValueError(f"{cls.__name__} has no field `{unknown[0]}`.{hint}")

    def __post_init__(self, **kwargs):
        self.refuse_unknown(kwargs)
        _check_num_labels(kwargs.get("num_labels"))
        self.dtype, kwargs["torch_dtype"] = map(_plain_dtype, (self.dtype, kwargs.get("torch_dtype")))
        super().__post_init__(**kwargs)

    def _check_shares(self, *names: str):
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1); got {getattr(self, name)}.")

    def _check_counts(self, *names: str):
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")


@strict
class VitfmEncoderConfig(VitfmConfig):
    """Fields of a transformer encoder, whether it reads patches or text.

    Args:
        hidden_size: width D of the tokens.
        num_hidden_layers: encoder layers.
        num_attention_heads: heads; must divide `hidden_size`.
        intermediate_size: width of the MLP's hidden layer.
        use_gated_mlp: multiply the activated half of a first layer twice as wide with its other half (SwiGLU with
            `hidden_act="silu"`, Shazeer 2020; DINOv2's largest model).
        hidden_act: activation of the MLP, a name of transformers' ACT2FN ("gelu" is the exact, erf form).
        hidden_dropout_prob: dropout after every dense layer except qkv and after the position embeddings (paper, B.1).
        attention_probs_dropout_prob: dropout on attention weights; 0 in all of the paper's models.
        initializer_range: standard deviation of the truncated normal initialisation.
        layer_norm_eps: 1e-6 as in the paper's code and timm (transformers' ViT has 1e-12).
        qkv_bias: whether query, key and value have a bias.
        drop_path_rate: stochastic depth, 0 at the first layer rising linearly to this rate at the last, in [0, 1).
        layer_scale_init_value: initial LayerScale (CaiT), None for none.

    Raises:
        ValueError: unknown fields, or values that do not fit each other.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    use_gated_mlp: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.0
    layer_scale_init_value: float | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_counts("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be divisible by `num_attention_heads`; got {self.hidden_size} and "
                f"{self.num_attention_heads}. Choose a number of heads that divides the width."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be a name of transformers' ACT2FN; got {self.hidden_act!r}.")
        if not 0 <= self.layer_norm_eps < float("inf"):
            raise ValueError(f"`layer_norm_eps` must be a finite number, not negative; got {self.layer_norm_eps}.")
        self._check_shares("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")


@strict
class VitfmVisionConfig(VitfmEncoderConfig):
    """Fields of an image encoder; the base of this library's image configurations, with no model type of its own.

    Args:
        image_size: pixels, one number or (height, width).
        patch_size: pixels, one number or (height, width); must divide `image_size`.
        num_channels: channels of the image.
        num_register_tokens: learned tokens without positions (Darcet et al. 2024).
        position_embedding_type: "learned", or "sincos" = fixed 2-D sine-cosine table.
        position_interpolation: how positions are resized to another grid: "bicubic" (transformers, MAE, DeiT),
            "bicubic_antialias" (timm, transformers' DINOv2 with registers), "bilinear" (timm's .npz loader, FlexiViT),
            "bilinear_align_corners" (the paper's JAX code).
        **fields: those of the encoder, see `VitfmEncoderConfig`.

    Raises:
        ValueError: unknown fields, or values that do not fit each other.
    """

    patch_bias = True  # not a field: whether the projection of patches has a bias

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    num_register_tokens: int = 0
    position_embedding_type: Literal["learned", "sincos"] = "learned"
    position_interpolation: Literal["bicubic", "bicubic_antialias", "bilinear", "bilinear_align_corners"] = "bicubic"

    @classmethod
    def from_variant(cls, variant: str, **fields):
        """Build a configuration of the ViT paper's Table 1 (or Ti, S) by name.

        Args:
            variant: such as "B/16"; parameter counts of the classifier at 224 px with 1,000 classes are exact, for
                example 86,567,656 for B/16 and 304,326,632 for L/16 (which the paper rounds to "307M").
            **fields: any other field, such as `image_size` or `num_labels`.
        """
        return cls(**{**parse_variant(variant), **fields})

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_counts("num_channels")
        self._check_image()
        if self.position_embedding_type == "sincos" and self.hidden_size % 4:
            raise ValueError(f"2-D sine-cosine positions need a `hidden_size` divisible by 4; got {self.hidden_size}.")
        if self.num_register_tokens < 0:
            raise ValueError(f"`num_register_tokens` must not be negative; got {self.num_register_tokens}.")

    def _check_image(self):
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"`{name}` must be one number or (height, width); got {size!r}.")
            setattr(self, name, size if isinstance(size, int) else tuple(size))  # JSON makes lists of tuples
            if min(as_pair(size)) < 1:
                raise ValueError(f"`{name}` must be at least 1 pixel; got {size!r}.")
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size`; got {height}x{width} pixels and patches of "
                f"{patch_height}x{patch_width}. The nearest image size that fits is "
                f"{max(1, round(height / patch_height)) * patch_height}x"
                f"{max(1, round(width / patch_width)) * patch_width}."
            )


def as_pair(size) -> tuple[int, int]:
    """One number or (height, width) -> (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _plain_dtype(name):
    """The name of a type of numbers as transformers takes it: "float16" for "torch.float16"."""
    return name.removeprefix("torch.") if isinstance(name, str) else name


def _check_num_labels(given) -> None:
    is_count = given is None or (isinstance(given, Integral) and given >= 0)
    if not is_count:
        raise ValueError(f"`num_labels` must be a whole number, 0 for no classifier; got {given!r}.")
