"""The weights of published checkpoints: names and shapes, in a short notation, and files of them without the weights.

A name may hold "{i}", which stands for every layer, and alternatives, "(query|key|value)". It ends in ".*" for a weight
and its bias. A shape is written in numbers and in letters: D width, M width of the MLPs, S side of a patch, P positions,
C classes, R registers, E width of the embeddings that CLIP compares, T positions of texts, V words.
"""

import itertools
import json
import math
import re
from pathlib import Path


def _under(prefix: str, table: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}{name}": shape for name, shape in table.items()}


_VIT_ATTENTION = {
    "attention.attention.(query|key|value).*": "D D",
    "attention.output.dense.*": "D D",
}
VIT = {
    "embeddings.cls_token": "1 1 D",
    "embeddings.position_embeddings": "1 P D",
    "embeddings.patch_embeddings.projection.*": "D 3 S S",
    **_under("encoder.layer.{i}.", _VIT_ATTENTION),
    "encoder.layer.{i}.layernorm_(before|after).*": "D",
    "encoder.layer.{i}.intermediate.dense.*": "M D",
    "encoder.layer.{i}.output.dense.*": "D M",
    "layernorm.*": "D",
}
POOLER = {"pooler.dense.*": "D D"}
VIT_CLASSIFIER = {**_under("vit.", VIT), "classifier.*": "C D"}
DEIT_DISTILLED = {
    **_under("deit.", VIT),
    "deit.embeddings.distillation_token": "1 1 D",
    "(cls|distillation)_classifier.*": "C D",
}
_MAE_LAYER = {name: shape for name, shape in VIT.items() if "{i}" in name}
MAE = {
    **_under("vit.", VIT),
    "decoder.mask_token": "1 1 512",
    "decoder.decoder_pos_embed": "1 P 512",
    "decoder.decoder_embed.*": "512 D",
    **{
        name.replace("encoder.layer.{i}", "decoder.decoder_layers.(0|1|2|3|4|5|6|7)"): shape.replace(
            "D", "512"
        ).replace("M", "2048")
        for name, shape in _MAE_LAYER.items()
    },
    "decoder.decoder_norm.*": "512",
    "decoder.decoder_pred.*": "X 512",
}
_DINOV2 = {
    "embeddings.cls_token": "1 1 D",
    "embeddings.mask_token": "1 D",
    "embeddings.position_embeddings": "1 P D",
    "embeddings.patch_embeddings.projection.*": "D 3 S S",
    **_under("encoder.layer.{i}.", _VIT_ATTENTION),
    "encoder.layer.{i}.norm(1|2).*": "D",
    "encoder.layer.{i}.layer_scale(1|2).lambda1": "D",
    "layernorm.*": "D",
}
DINOV2 = {**_DINOV2, "encoder.layer.{i}.mlp.fc1.*": "M D", "encoder.layer.{i}.mlp.fc2.*": "D M"}
DINOV2_GATED = {
    **_DINOV2,
    "encoder.layer.{i}.mlp.weights_in.*": "2M D",
    "encoder.layer.{i}.mlp.weights_out.*": "D M",
}
DINOV2_REGISTERS = {**DINOV2, "embeddings.register_tokens": "1 R D"}
DINOV2_CLASSIFIER = {**_under("dinov2.", DINOV2), "classifier.*": "C 2D"}

_TOWER_LAYER = {
    "encoder.layers.{i}.layer_norm(1|2).*": "D",
    "encoder.layers.{i}.self_attn.(q|k|v|out)_proj.*": "D D",
    "encoder.layers.{i}.mlp.fc1.*": "M D",
    "encoder.layers.{i}.mlp.fc2.*": "D M",
}
# Both towers of CLIP and of SigLIP; each has letters of its own.
CLIP_TEXT = {
    "text_model.embeddings.token_embedding.weight": "V D",
    "text_model.embeddings.position_embedding.weight": "T D",
    "text_model.embeddings.position_ids": "1 T",
    **_under("text_model.", _TOWER_LAYER),
    "text_model.final_layer_norm.*": "D",
    "text_projection.weight": "E D",
    "logit_scale": "",
}
CLIP_VISION = {
    "vision_model.embeddings.class_embedding": "D",
    "vision_model.embeddings.patch_embedding.weight": "D 3 S S",
    "vision_model.embeddings.position_embedding.weight": "P D",
    "vision_model.embeddings.position_ids": "1 P",
    "vision_model.(pre_layrnorm|post_layernorm).*": "D",
    **_under("vision_model.", _TOWER_LAYER),
    "visual_projection.weight": "E D",
}
SIGLIP_TEXT = {
    "text_model.embeddings.token_embedding.weight": "V D",
    "text_model.embeddings.position_embedding.weight": "T D",
    **_under("text_model.", _TOWER_LAYER),
    "text_model.final_layer_norm.*": "D",
    "text_model.head.*": "D D",
    "logit_(scale|bias)": "1",
}
SIGLIP_VISION = {
    "vision_model.embeddings.patch_embedding.*": "D 3 S S",
    "vision_model.embeddings.position_embedding.weight": "P D",
    **_under("vision_model.", _TOWER_LAYER),
    "vision_model.post_layernorm.*": "D",
    "vision_model.head.probe": "1 1 D",
    "vision_model.head.attention.in_proj_(weight|bias)": "3D D",
    "vision_model.head.attention.out_proj.*": "D D",
    "vision_model.head.layernorm.*": "D",
    "vision_model.head.mlp.fc1.*": "M D",
    "vision_model.head.mlp.fc2.*": "D M",
}
_OPEN_CLIP_LAYER = {
    "transformer.resblocks.{i}.ln_(1|2).*": "D",
    "transformer.resblocks.{i}.attn.in_proj_(weight|bias)": "3D D",
    "transformer.resblocks.{i}.attn.out_proj.*": "D D",
    "transformer.resblocks.{i}.mlp.c_fc.*": "M D",
    "transformer.resblocks.{i}.mlp.c_proj.*": "D M",
}
OPEN_CLIP_TEXT = {
    "positional_embedding": "T D",
    "text_projection": "D E",
    "logit_scale": "",
    "token_embedding.weight": "V D",
    "ln_final.*": "D",
    **_OPEN_CLIP_LAYER,
}
OPEN_CLIP_VISION = {
    "visual.class_embedding": "D",
    "visual.positional_embedding": "P D",
    "visual.proj": "D E",
    "visual.conv1.weight": "D 3 S S",
    "visual.ln_(pre|post).*": "D",
    **_under("visual.", _OPEN_CLIP_LAYER),
}

TIMM = {
    "cls_token": "1 1 D",
    "pos_embed": "1 P D",
    "patch_embed.proj.*": "D 3 S S",
    "blocks.{i}.norm(1|2).*": "D",
    "blocks.{i}.attn.qkv.*": "3D D",
    "blocks.{i}.attn.proj.*": "D D",
    "blocks.{i}.mlp.fc1.*": "M D",
    "blocks.{i}.mlp.fc2.*": "D M",
    "norm.*": "D",
}
TIMM_HEAD = {"head.*": "C D"}
TIMM_DISTILLED = {"dist_token": "1 1 D", "head_dist.*": "C D"}
TIMM_SCALES = {"blocks.{i}.ls(1|2).gamma": "D"}
TIMM_REGISTERS = {"reg_token": "1 R D"}
TIMM_CLIP = {
    **{name: shape for name, shape in TIMM.items() if name != "patch_embed.proj.*"},
    "patch_embed.proj.weight": "D 3 S S",
    "norm_pre.*": "D",
}


def expand(table: dict[str, str], layers: int, **letters: int) -> dict[str, tuple[int, ...]]:
    """All names and shapes that a table stands for."""
    found = {}
    for pattern, shape in table.items():
        for name in _names(pattern, layers):
            axes = tuple(_axis(axis, letters) for axis in shape.split())
            if name.endswith(".*"):
                found[f"{name[:-1]}weight"], found[f"{name[:-1]}bias"] = axes, axes[:1]
            else:
                found[name] = axes[:1] if name.endswith("in_proj_bias") else axes
    return found


def _axis(axis: str, letters: dict[str, int]) -> int:
    factor, letter = re.fullmatch(r"(\d*)([A-Z]?)", axis).groups()
    return int(factor or 1) * (letters[letter] if letter else 1)


def _names(pattern: str, layers: int) -> list[str]:
    numbered = [pattern.replace("{i}", str(i)) for i in range(layers)] if "{i}" in pattern else [pattern]
    names = []
    for name in numbered:
        parts = re.split(r"\(([^)]*)\)", name)
        choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def write_hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file whose numbers are a hole in the file, which takes no space on the disk."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        is_whole = name.endswith("position_ids")
        start = end
        end += (8 if is_whole else 4) * math.prod(shape)
        header[name] = {"dtype": "I64" if is_whole else "F32", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
