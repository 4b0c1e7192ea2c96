"""open_clip's `model_cfg` and our configuration, in both directions; and its guess from the shapes of weights alone.

Fields and their defaults are those of open_clip's `CLIPVisionCfg` and `CLIPTextCfg`. What this library's CLIP does not
have is refused; fields that change nothing in the model (tokenizers, what a forward pass returns) are passed over.
"""

import math
from collections.abc import Mapping

from ..models.configuration_base import as_pair
from ..models.configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from .refusals import refuse_foreign_tower, refuse_other
from .towers import image_fields


LIBRARY = "open_clip's format"
ADVICE = "Load it with `open_clip.create_model_and_transforms`."
EPS = 1e-5  # of torch's layer norm
OPENAI_VOCABULARY, OPENAI_START = 49408, 49406
# Stands where open_clip wants the Hub id of a tokenizer; from a folder it takes the files in it whatever the id, and
# without one it would take OpenAI's tokenizer.
OWN_TOKENIZER = "tokenizer-beside-this-file"
# Widths of heads that are not 64, by the width of the vision tower (of H, g, bigG and e).
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
ACTIVATIONS = {"gelu": None, "gelu_pytorch_tanh": {"approximate": "tanh"}}

_TOWER = {"layers": 12, "mlp_ratio": 4.0, "ls_init_value": None, "act_kwargs": None, "norm_kwargs": None}
_VISION = {
    **_TOWER,
    "width": 768,
    "head_width": 64,
    "patch_size": 16,
    "image_size": 224,
    "patch_dropout": 0.0,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
}
_TEXT = {
    **_TOWER,
    "context_length": 77,
    "vocab_size": OPENAI_VOCABULARY,
    "width": 512,
    "heads": 8,
    "pad_id": 0,
    "eos_id": 2,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
}
_WHOLE = {"embed_dim": None, "quick_gelu": False, "init_logit_scale": None, "init_logit_bias": None}
_IRRELEVANT = {
    "vision_cfg": ("output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
    "text_cfg": ("output_tokens", "final_ln_after_pool", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
    "model_cfg": ("vision_cfg", "text_cfg", "custom_text", "nonscalar_logit_scale", "output_dict"),
}
# Settings of towers that are refused, or of none.
_OF_OTHER_TOWERS = ("timm_", "hf_")


def our_fields(model_cfg: Mapping) -> dict:
    """Our fields for open_clip's.

    Raises:
        ValueError: for what this library's CLIP does not have.
    """
    vision_cfg, text_cfg = model_cfg.get("vision_cfg") or {}, model_cfg.get("text_cfg") or {}
    _refuse_other_towers(model_cfg, vision_cfg, text_cfg)
    whole = _values(model_cfg, _WHOLE, "model_cfg")
    vision, text = _values(vision_cfg, _VISION, "vision_cfg"), _values(text_cfg, _TEXT, "text_cfg")
    if whole["embed_dim"] is None:
        raise ValueError(
            "The `model_cfg` of open_clip's configuration has no `embed_dim`, the width of the joint space."
        )
    objective = "softmax" if whole["init_logit_bias"] is None else "sigmoid"
    fields = {"projection_dim": whole["embed_dim"], "objective": objective}
    factors = {"logit_scale_init_value": "init_logit_scale", "logit_bias_init_value": "init_logit_bias"}
    fields |= {ours: whole[name] for ours, name in factors.items() if whole[name] is not None}
    return {
        **fields,
        "vision_config": _vision_fields(vision, bool(whole["quick_gelu"])),
        "text_config": _text_fields(text, bool(whole["quick_gelu"])),
    }


def _refuse_other_towers(model_cfg: Mapping, vision_cfg: Mapping, text_cfg: Mapping) -> None:
    if isinstance(vision_cfg.get("layers"), list | tuple):
        raise ValueError(
            "The image tower is one of CLIP's ResNets, and this library has vision transformers only. "
            f"{ADVICE} The tower alone is also in timm (`timm.create_model('resnet50_clip.openai')`)."
        )
    if vision_cfg.get("timm_model_name"):
        raise ValueError(
            f"The image tower is timm's {vision_cfg['timm_model_name']!r}, and only open_clip's own vision transformers are "
            f"read. {ADVICE} SigLIP is also on the Hub in transformers' format, which this library reads "
            "('google/siglip-base-patch16-224')."
        )
    if text_cfg.get("hf_model_name"):
        raise ValueError(
            f"The text tower is transformers' {text_cfg['hf_model_name']!r}, and only open_clip's own text tower is read. "
            f"{ADVICE}"
        )
    if model_cfg.get("multimodal_cfg"):
        raise ValueError(f"This is a CoCa, whose decoder (`multimodal_cfg`) this library does not have. {ADVICE}")


def _values(given: Mapping, defaults: Mapping, section: str) -> dict:
    """The fields that count, nulls being defaults; refuses others unless they are off."""
    for name, value in given.items():
        is_known = name in defaults or name in _IRRELEVANT[section] or name.startswith(_OF_OTHER_TOWERS)
        if not is_known and value and (name, value) != ("block_type", "default"):
            raise ValueError(f"This library's CLIP does not have `{name}={value!r}` in `{section}`. {ADVICE}")
    return {**defaults, **{name: given[name] for name in defaults if given.get(name) is not None}}


def _tower_fields(cfg: Mapping, section: str, num_heads: int, quick_gelu: bool) -> dict:
    act_kwargs = {} if cfg["act_kwargs"] in (None, {"approximate": "none"}) else cfg["act_kwargs"]
    norm_kwargs = cfg["norm_kwargs"] or {}
    activation = next((name for name, kwargs in ACTIVATIONS.items() if (kwargs or {}) == act_kwargs), None)
    if activation is None or (quick_gelu and act_kwargs) or set(norm_kwargs) - {"eps"}:
        name = "norm_kwargs" if set(norm_kwargs) - {"eps"} else "act_kwargs"
        raise ValueError(f"This library's CLIP does not have `{name}={cfg[name]!r}` in `{section}`. {ADVICE}")
    return {
        "hidden_size": cfg["width"],
        "num_hidden_layers": cfg["layers"],
        "num_attention_heads": num_heads,
        "intermediate_size": int(cfg["width"] * cfg["mlp_ratio"]),
        "hidden_act": "quick_gelu" if quick_gelu else activation,
        "layer_norm_eps": norm_kwargs.get("eps", EPS),
        "layer_scale_init_value": cfg["ls_init_value"],
    }


def _choose(section: str, name: str, value, choices: Mapping):
    if value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise ValueError(f"`{name}` in `{section}` must be one of {allowed} here; got {value!r}. {ADVICE}")
    return choices[value]


def _vision_fields(cfg: Mapping, quick_gelu: bool) -> dict:
    num_heads = cfg["width"] // max(1, cfg["head_width"])
    positions = {"learnable": "learned", "sin_cos_2d": "sincos"}
    return {
        **_tower_fields(cfg, "vision_cfg", num_heads, quick_gelu),
        **image_fields(cfg["image_size"], cfg["patch_size"]),
        "pooling": _choose("vision_cfg", "pool_type", cfg["pool_type"], {"tok": "cls", "avg": "mean"}),
        # For the class token it makes no difference.
        "final_norm": "tokens" if cfg["pool_type"] == "avg" and not cfg["final_ln_after_pool"] else "pooled",
        "use_pre_norm": not cfg["no_ln_pre"],
        "patch_dropout": cfg["patch_dropout"],
        "position_embedding_type": _choose("vision_cfg", "pos_embed_type", cfg["pos_embed_type"], positions),
        "position_interpolation": "bicubic_antialias",
    }


def _text_fields(cfg: Mapping, quick_gelu: bool) -> dict:
    pooling = _choose("text_cfg", "pool_type", cfg["pool_type"], {name: name for name in ("argmax", "eos", "last")})
    _choose("text_cfg", "proj_type", cfg["proj_type"], {"linear": None})
    vocab_size = cfg["vocab_size"]
    return {
        **_tower_fields(cfg, "text_cfg", cfg["heads"], quick_gelu),
        "vocab_size": vocab_size,
        "max_position_embeddings": cfg["context_length"],
        "pooling": pooling,
        "is_causal": not cfg["no_causal_mask"],
        "projection_bias": bool(cfg["proj_bias"]),
        "pad_token_id": cfg["pad_id"],
        "bos_token_id": OPENAI_START if vocab_size == OPENAI_VOCABULARY else None,
        "eos_token_id": vocab_size - 1 if pooling == "argmax" else cfg["eos_id"],
    }


def their_model_cfg(config: VitfmCLIPConfig) -> dict:
    """open_clip's fields for ours, defaults left out where old versions do not know the field.

    Raises:
        ValueError: for what the format cannot hold; names the field.
    """
    vision, text = config.vision_config, config.text_config
    refuse_foreign_tower(vision, VitfmCLIPVisionConfig, LIBRARY, "vision_config")
    refuse_foreign_tower(text, VitfmCLIPTextConfig, LIBRARY, "text_config")
    required = {"qkv_bias": True, "use_gated_mlp": False}
    refuse_other(text, required, LIBRARY, place="text_config")
    required |= {"use_projection": True, "use_class_token": True, "patch_bias": False}
    required |= {"num_channels": 3, "num_register_tokens": 0}
    if vision.pooling == "map":
        required["pooling"] = "cls"
    refuse_other(vision, required, LIBRARY, place="vision_config")
    quick_gelu = vision.hidden_act == "quick_gelu"  # of both towers
    if quick_gelu or text.hidden_act not in ACTIVATIONS:
        refuse_other(text, {"hidden_act": vision.hidden_act if quick_gelu else "gelu"}, LIBRARY, place="text_config")
    elif vision.hidden_act not in ACTIVATIONS:
        refuse_other(vision, {"hidden_act": "gelu"}, LIBRARY, place="vision_config")
    cfg = {
        "embed_dim": config.projection_dim,
        "vision_cfg": _their_vision(vision),
        "text_cfg": _their_text(text),
    }
    if quick_gelu:
        cfg["quick_gelu"] = True
    if config.objective == "sigmoid":
        cfg |= {"init_logit_scale": config.logit_scale_init_value, "init_logit_bias": config.logit_bias_init_value}
    return cfg


def mlp_ratio(width: int, intermediate_size: int) -> float:
    """The ratio that gives an MLP's width back when its product with the tower's is cut off to a whole number."""
    ratio = intermediate_size / width
    return ratio if int(width * ratio) == intermediate_size else (intermediate_size + 0.5) / width


def _their_tower(config) -> dict:
    options = {
        "mlp_ratio": (mlp_ratio(config.hidden_size, config.intermediate_size), 4.0),
        "ls_init_value": (config.layer_scale_init_value, None),
        "act_kwargs": (ACTIVATIONS.get(config.hidden_act), None),
        "norm_kwargs": (None if config.layer_norm_eps == EPS else {"eps": config.layer_norm_eps}, None),
    }
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        **{name: value for name, (value, default) in options.items() if value != default},
    }


def _their_vision(config: VitfmCLIPVisionConfig) -> dict:
    cfg = {**_their_tower(config), "image_size": config.image_size, "patch_size": config.patch_size}
    head_width = config.hidden_size // config.num_attention_heads
    options = {
        "head_width": (head_width, 64),
        "patch_dropout": (config.patch_dropout, 0.0),
        "no_ln_pre": (not config.use_pre_norm, False),
        "pos_embed_type": ("sin_cos_2d" if config.position_embedding_type == "sincos" else "learnable", "learnable"),
        "pool_type": ("avg" if config.pooling == "mean" else "tok", "tok"),
        "final_ln_after_pool": (config.pooling == "mean" and config.final_norm == "pooled", False),
    }
    return {**cfg, **{name: value for name, (value, default) in options.items() if value != default}}


def _their_text(config: VitfmCLIPTextConfig) -> dict:
    cfg = {
        **_their_tower(config),
        "heads": config.num_attention_heads,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }
    if config.vocab_size != OPENAI_VOCABULARY:
        cfg["hf_tokenizer_name"] = OWN_TOKENIZER
    if not config.is_causal:
        cfg["no_causal_mask"] = True
    if config.projection_bias:
        cfg["proj_bias"] = True
    # Where the end token has the highest id, the first of the highest ids is it.
    if config.pooling == "last" or (config.pooling == "eos" and config.eos_token_id != config.vocab_size - 1):
        cfg |= {"pool_type": config.pooling, "eos_id": config.eos_token_id}
    return cfg


def infer_model_cfg(shapes: Mapping[str, tuple], quick_gelu: bool, head_widths: Mapping[int, int]) -> dict:
    """The `model_cfg` of weights without a configuration, with the names of open_clip's `CLIP`.

    What shapes do not tell is as in OpenAI's models: a square image, pooling at the class and the end token.

    Args:
        shapes: of the tensors by name; the text tower's begin with "text.".
        quick_gelu: whether the activation is QuickGELU, which no shape tells.
        head_widths: of the vision tower's heads by the tower's width; 64 for others, and for the text tower.

    Raises:
        ValueError: if the names are those of other towers, or do not tell.
    """
    towers = {"timm_model_name": "visual.trunk.", "hf_model_name": "text.transformer.embeddings."}
    found = {name: "unknown" for name, prefix in towers.items() if any(key.startswith(prefix) for key in shapes)}
    is_resnet = any(key.startswith("visual.layer1.") for key in shapes)
    decoder = any(key.startswith("text_decoder.") for key in shapes)
    _refuse_other_towers({"multimodal_cfg": decoder}, {"layers": []} if is_resnet else found, found)
    if "visual.ln_pre.weight" not in shapes or "text.text_projection" not in shapes:
        raise ValueError(
            "These weights have no configuration, and their names do not tell how they are pooled (no `visual.ln_pre`, or "
            "a text projection with a bias). Put their open_clip_config.json beside them."
        )
    width, _, *patch_size = _shape(shapes, "visual.conv1.weight", 4)
    num_positions, _ = _shape(shapes, "visual.positional_embedding", 2)
    side = math.isqrt(max(0, num_positions - 1))
    if side**2 != num_positions - 1 or patch_size[0] != patch_size[1]:
        raise ValueError(
            f"These weights have no configuration, and {num_positions - 1} patches of {patch_size[0]}x{patch_size[1]} pixels "
            "are no square image. Put their open_clip_config.json beside them."
        )
    _check_heads("image tower", width, head_widths.get(width, 64))
    context_length, text_width = _shape(shapes, "text.positional_embedding", 2)
    _check_heads("text tower", text_width, 64)
    cfg = {
        "embed_dim": _shape(shapes, "text.text_projection", 2)[1],
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            **_inferred_tower(shapes, "visual.", width),
            "head_width": head_widths.get(width, 64),
            "image_size": side * patch_size[0],
            "patch_size": patch_size[0],
        },
        "text_cfg": {
            **_inferred_tower(shapes, "text.", text_width),
            "heads": text_width // 64,
            "context_length": context_length,
            "vocab_size": _shape(shapes, "text.token_embedding.weight", 2)[0],
        },
    }
    return {**cfg, "init_logit_bias": -10.0} if "logit_bias" in shapes else cfg


def _check_heads(tower: str, width: int, head_width: int) -> None:
    if width < 1 or width % head_width:
        raise ValueError(
            f"These weights have no configuration, and their {tower} of width {width} is not made of heads {head_width} wide "
            "as OpenAI's are, so nothing tells their number. Put their open_clip_config.json beside them."
        )


def _shape(shapes: Mapping[str, tuple], name: str, ndim: int) -> tuple:
    if name not in shapes or len(shapes[name]) != ndim:
        found = f"has the shape {tuple(shapes[name])}" if name in shapes else "is missing"
        raise ValueError(
            f"These are not the weights of a CLIP: {name!r} of {ndim} dimensions is expected, and it {found}."
        )
    return tuple(shapes[name])


def _inferred_tower(shapes: Mapping[str, tuple], prefix: str, width: int) -> dict:
    block = f"{prefix}transformer.resblocks."
    layers = {name.removeprefix(block).partition(".")[0] for name in shapes if name.startswith(block)}
    intermediate_size = _shape(shapes, f"{block}0.mlp.c_fc.weight", 2)[0]
    cfg = {"width": width, "layers": len(layers), "mlp_ratio": mlp_ratio(width, intermediate_size)}
    return {**cfg, "ls_init_value": 1e-5} if f"{block}0.ls_1.gamma" in shapes else cfg


def has_square_images(config: VitfmCLIPVisionConfig) -> bool:
    """Whether images and patches are as high as wide, the only kind that shapes alone tell."""
    return all(len(set(as_pair(size))) == 1 for size in (config.image_size, config.patch_size))
