"""The .npz files of Google's JAX code: vision_transformer (the paper's) and big_vision.

A file holds flax's arrays and no configuration. The models have eps 1e-6 and the tanh form of GELU; positions are
resized by linear interpolation between the corners (`scipy.ndimage.zoom` of order 1), in both repositories.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import torch
import transformers
from torch import Tensor
from transformers.image_utils import PILImageResampling

from ..models.configuration_vit import VitfmViTConfig
from ..models.modeling_vit import ViTPreTrainedModel
from .refusals import refuse_oblong, refuse_other
from .rules import Rule, named_for_vit, renamed, to_ours, to_theirs
from .timm_names import count_layers, require_shape, shapes_of, square_grid


NAME = "jax"
FILE = "model.npz"

# Where the image model is in a file: alone, among the optimizer's state, or beside a text tower.
_PREFIXES = ("", "params/", "params/img/", "opt/target/")
_OUR_POSITIONS = "embeddings.position_embeddings"
_POSITIONS = "Transformer/posembed_input/pos_embedding"
_FORMULA_SIZE = 224  # of the images of models whose positions are a formula
# Names of big_vision -> those of vision_transformer, which the rules have.
_RENAMES = (
    (r"^pos_embedding$", _POSITIONS),
    (r"/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
    (r"/LayerNorm_1/", "/LayerNorm_2/"),
    (r"/MlpBlock_0/", "/MlpBlock_3/"),
)
_MAX_LAYERS = 1000  # stacked ones; every single one becomes a tensor of its own
_MAX_POSITIONS = 2**23  # numbers in a table that is a formula; the largest models have a million
_HYBRID = re.compile(r"conv_root/|gn_root/|block\d+/unit")


def _dense(ours: str, *theirs: str, optional: bool = False) -> list[Rule]:
    kinds = {"weight": "kernel", "bias": "bias"}
    return [
        Rule(f"{ours}.{kind}", tuple(f"{name}/{flax}" for name in theirs), optional) for kind, flax in kinds.items()
    ]


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.weight", (f"{theirs}/scale",)), Rule(f"{ours}.bias", (f"{theirs}/bias",))]


_OURS, _BLOCK = "encoder.layers.{i}", "Transformer/encoderblock_{i}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_1"
_RULES = [
    Rule("embeddings.cls_token", ("cls",), optional=True),
    Rule(_OUR_POSITIONS, (_POSITIONS,)),
    *_dense("embeddings.patch_embeddings.projection", "embedding"),
    *_norm(f"{_OURS}.norm1", f"{_BLOCK}/LayerNorm_0"),
    *_dense(f"{_OURS}.attention.qkv", *(f"{_ATTENTION}/{part}" for part in ("query", "key", "value"))),
    *_dense(f"{_OURS}.attention.proj", f"{_ATTENTION}/out"),
    *_norm(f"{_OURS}.norm2", f"{_BLOCK}/LayerNorm_2"),
    *_dense(f"{_OURS}.mlp.fc1", f"{_BLOCK}/MlpBlock_3/Dense_0"),
    *_dense(f"{_OURS}.mlp.fc2", f"{_BLOCK}/MlpBlock_3/Dense_1"),
    *_norm("layernorm", "Transformer/encoder_norm"),
    *_dense("pre_logits", "pre_logits", optional=True),
    *_dense("classifier", "head", optional=True),
]


def matches(config: Mapping, keys: Collection[str]) -> bool:
    """Whether names are those of a ViT of these repositories, a hybrid or one with attention pooling included."""
    return not config and any(
        f"{prefix}embedding/kernel" in keys and f"{prefix}Transformer/encoder_norm/scale" in keys
        for prefix in _PREFIXES
    )


def _image_model(state_dict: Mapping) -> dict:
    """What is of the image model, under vision_transformer's names; stacked layers stay stacked.

    Raises:
        ValueError: if it is of a kind that this library has not, or has a weight under two names.
    """
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}embedding/kernel" in state_dict), "")
    weights = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
    hybrid = next((name for name in sorted(weights) if _HYBRID.match(name)), None)
    if hybrid is not None:
        raise ValueError(
            f"The checkpoint is a hybrid, whose patches come from a ResNet ({hybrid!r}); this library has no hybrids. "
            "timm reads it: `timm.create_model('vit_base_r50_s16_224')` and the like, with `checkpoint_path=`."
        )
    pooling = next((name for name in sorted(weights) if name.startswith("MAPHead_")), None)
    if pooling is not None:
        raise ValueError(
            f"The checkpoint pools by attention ({pooling!r}), which the ViT models of this library do not. timm reads "
            "it: models with `global_pool='map'`; of SigLIP, transformers has the weights in a format of its own, which "
            "this library's CLIP models read."
        )
    return renamed(weights, _plain_name)


def _plain_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _unstack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers that a scan stacked along the first axis, one by one.

    Raises:
        ValueError: if a layer's weight is there alone too, or weights are not stacked alike.
    """
    stacked = "Transformer/encoderblock/"
    layers = {}
    if any(name.startswith(stacked) for name in weights):
        alone = next((name for name in sorted(weights) if name.startswith("Transformer/encoderblock_")), None)
        if alone is not None:
            raise ValueError(f"Layers are stacked under {stacked!r} and alone ({alone!r}); the file is damaged.")
    num_layers = None
    for name, tensor in weights.items():
        if not name.startswith(stacked):
            layers[name] = tensor
            continue
        num_layers = num_layers or next(iter(tensor.shape), 0)
        if not 0 < num_layers <= _MAX_LAYERS or tuple(tensor.shape[:1]) != (num_layers,):
            raise ValueError(
                f"{name!r} must have the layers as its first axis, as many as the others and at most {_MAX_LAYERS}; its shape is "
                f"{tuple(tensor.shape)}. The file is damaged."
            )
        block = stacked.rstrip("/")
        layers |= {f"{block}_{i}/{name.removeprefix(stacked)}": part for i, part in enumerate(tensor.unbind())}
    return layers


def _check_biases(weights: Mapping[str, Tensor]) -> None:
    """Refuse biases of heads whose axes are not those of their kernel: joined to one axis, they would look right.

    Raises:
        ValueError: naming the first.
    """
    for name, tensor in weights.items():
        kernel = weights.get(f"{name.removesuffix('bias')}kernel") if name.endswith("/bias") else None
        if kernel is not None and tensor.ndim > 1 and tensor.shape != kernel.shape[-tensor.ndim :]:
            raise ValueError(
                f"{name!r} has the shape {tuple(tensor.shape)}, which does not fit its kernel's, {tuple(kernel.shape)}. The file "
                "is damaged."
            )


def _to_torch(name: str, tensor: Tensor) -> Tensor:
    """One of flax's arrays as torch has it: the output's axis first, heads joined."""
    if name.endswith("/bias"):
        return tensor.flatten()
    if not name.endswith("/kernel"):
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()  # (h, w, in, out) -> (out, in, h, w)
    if tensor.ndim == 3:  # (N, H, out) -> (N * H, out), or (in, N, H) -> (in, N * H)
        tensor = tensor.flatten(0, 1) if name.endswith("/out/kernel") else tensor.flatten(1)
    if tensor.ndim != 2:
        raise ValueError(f"{name!r} must have two to four dimensions; got {tuple(tensor.shape)}. The file is damaged.")
    return tensor.T.contiguous()


def _to_flax(name: str, tensor: Tensor, num_heads: int) -> Tensor:
    """The inverse of `_to_torch`."""
    _, _, rest = name.partition("/MultiHeadDotProductAttention_1/")
    part, _, kind = rest.rpartition("/") if rest else ("", "", name.rsplit("/", 1)[-1])
    if kind == "bias":
        return tensor.unflatten(0, (num_heads, -1)) if part in ("query", "key", "value") else tensor
    if kind != "kernel":
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0).contiguous()
    tensor = tensor.T.contiguous()
    if part:
        return tensor.unflatten(0 if part == "out" else 1, (num_heads, -1))
    return tensor


def _sincos(side: int, width: int) -> Tensor:
    """big_vision's fixed positions, (1, P, width): as MAE's but for the frequencies, which end at 1 / 10000."""
    if width % 4 or width < 8:
        raise ValueError(f"Sine-cosine positions need a width divisible by 4, of at least 8; got {width}.")
    if side**2 * width > _MAX_POSITIONS:
        raise ValueError(
            f"{side}x{side} positions of width {width} are more than any model of big_vision has. The file is damaged."
        )
    quarter = width // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    places = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    angles = [coordinate.reshape(-1, 1) * frequencies for coordinate in (columns, rows)]
    return torch.cat([table for angle in angles for table in (angle.sin(), angle.cos())], dim=1).float()[None]


def _image_size(shapes: Mapping[str, Sequence[int]]) -> int:
    """Side of the images in pixels; where positions are a formula, no array tells it."""
    patch_height, patch_width, *_ = require_shape(shapes, "embedding/kernel", 4)
    rows = require_shape(shapes, _POSITIONS, 3)[1] if _POSITIONS in shapes else 1
    side = square_grid(rows) or square_grid(rows - 1)
    if side is None or patch_height != patch_width:
        raise ValueError(
            f"The checkpoint has positions for {rows} patches of {patch_height}x{patch_width} pixels, which make no "
            "square image; the JAX code has no others."
        )
    return side * patch_height if _POSITIONS in shapes else _FORMULA_SIZE


def _fields(shapes: Mapping[str, Sequence[int]]) -> dict:
    patch_size, _, channels, width = require_shape(shapes, "embedding/kernel", 4)
    block = "Transformer/encoderblock_0"
    has_class_token = "cls" in shapes
    fields = {
        "hidden_size": width,
        "num_hidden_layers": count_layers(shapes, r"Transformer/encoderblock_(\d+)/"),
        "num_attention_heads": require_shape(shapes, f"{block}/MultiHeadDotProductAttention_1/query/kernel", 3)[1],
        "intermediate_size": require_shape(shapes, f"{block}/MlpBlock_3/Dense_0/kernel", 2)[1],
        "image_size": _image_size(shapes),
        "patch_size": patch_size,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
        "position_interpolation": "bilinear_align_corners",
        "use_class_token": has_class_token,
        "pooling": "cls",
    }
    if not has_class_token:
        fields |= {"pooling": "mean", "final_norm": "tokens"}
    if "pre_logits/kernel" in shapes:
        fields["representation_size"] = require_shape(shapes, "pre_logits/kernel", 2)[1]
    if "head/kernel" in shapes:
        fields["num_labels"] = require_shape(shapes, "head/kernel", 2)[1]
    return fields


def read(model_class: type, config: Mapping, state_dict: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """Infer a ViT's configuration and convert its weights; a base model leaves the head out.

    Args:
        model_class: our class that is to be built.
        config: {}, for these files have none.
        state_dict: the file's arrays as tensors, under their names.

    Raises:
        ValueError: if the model is of a kind that this library has not, or the weights are not those of such a model.
    """
    weights = _unstack(_image_model(state_dict))
    _check_biases(weights)
    fields = _fields(shapes_of(weights))
    is_big_vision = any("/MlpBlock_0/" in name for name in state_dict)
    if _POSITIONS not in weights and is_big_vision:
        weights[_POSITIONS] = _sincos(fields["image_size"] // fields["patch_size"], fields["hidden_size"])
    converted = {name: _to_torch(name, tensor) for name, tensor in weights.items()}
    converted = to_ours(converted, _RULES, fields["num_hidden_layers"])
    rows = converted[_OUR_POSITIONS]
    if fields["use_class_token"] and square_grid(rows.shape[1]):  # big_vision adds positions before the class token
        converted[_OUR_POSITIONS] = torch.cat([torch.zeros_like(rows[:, :1]), rows], dim=1)
    return fields, named_for_vit(model_class, converted)


READERS = {ViTPreTrainedModel: read}


_OWNER = "The format of the JAX code"
_ADVICE = 'Save the model with `save_pretrained`, in this library\'s own format, or export it with `format="timm"`.'


def write(model, image_processor=None) -> dict:
    """Convert one of our ViT models to an .npz file with the names of vision_transformer.

    Args:
        model: a ViT.
        image_processor: not written; the format has no place for it.

    Raises:
        ValueError: if the configuration has what the code's model cannot compute.
    """
    config = model.config
    required = {
        "pooling": "cls" if config.use_class_token else "mean",
        "final_norm": "tokens",
        "use_pre_norm": False,
        "use_gated_mlp": False,
        "use_distillation_token": False,
        "num_register_tokens": 0,
        "layer_scale_init_value": None,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    }
    refuse_other(config, required, _OWNER, _ADVICE)
    refuse_oblong(config, _OWNER, _ADVICE)
    state_dict = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    converted = to_theirs(state_dict, _RULES, config.num_hidden_layers)
    return {FILE: {name: _to_flax(name, tensor, config.num_attention_heads) for name, tensor in converted.items()}}


WRITERS = {VitfmViTConfig.model_type: write}


def image_processor(config: Mapping, shapes: Mapping[str, Sequence[int]], backend: str | None = None):
    """What google/vit-* repositories have: a bilinear resize to the square, pixels from -1 to 1."""
    size = _image_size(_image_model(shapes))
    build = transformers.ViTImageProcessorPil if backend == "pil" else transformers.ViTImageProcessor
    return build(
        size={"height": size, "width": size},
        resample=PILImageResampling.BILINEAR,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def notes(config: Mapping, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """What the file does not say."""
    weights = _image_model(shapes)
    found = ["The JAX code resizes images without antialiasing; the image processor does as PIL, with it."]
    if _POSITIONS not in weights:
        found.append(
            "The positions are big_vision's sine-cosine table, which is not in the file, nor is its size: they are made for "
            f"images of {_FORMULA_SIZE} pixels. For others they are resized, where big_vision computes them anew."
        )
    if "cls" not in weights:
        found.append(
            "There is no class token: the mean of the tokens is pooled (big_vision's 'gap'), which the file does not say."
        )
    return found
