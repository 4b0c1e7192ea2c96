"""The files of DeiT's own code (.pth), with and without distillation, and of its successor DeiT III with LayerScale.

A file holds `{"model": state dict}` and no configuration. The models have eps 1e-6 and the exact GELU.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..models.modeling_vit import ViTPreTrainedModel
from .imagenet_processor import resize_and_crop
from .rules import Rule, named_for_vit, to_ours, with_bias
from .timm_names import (
    EMBEDDING_RULES,
    HEADS_NOTE,
    block_rules,
    encoder_fields,
    image_and_prefix,
    is_plain_but_for,
    require_shape,
    shapes_of,
)


NAME = "deit"
AMBIGUOUS_NOTE = (
    "timm's files of a plain ViT look the same. DeiT's preprocessing is assumed, with ImageNet's mean and standard "
    "deviation; timm's augreg models have 0.5 for all of them, which no file of weights says. Read it as timm's with "
    '`source_format="timm"` (`--source-format timm`), and set `image_mean` and `image_std` of the image processor, or take '
    "the image processor of the model's repository."
)


def matches(config: Mapping, keys: Collection[str]) -> bool:
    """Whether names are those of such a classifier."""
    own = r"dist_token|head_dist\..*|blocks\.\d+\.gamma_[12]"
    return (
        not config
        and is_plain_but_for(own, keys)
        and ("head.weight" in keys or "dist_token" in keys or "blocks.0.gamma_1" in keys)
    )


def _prefixes(shapes: Mapping) -> list[int]:
    """Rows before the positions of patches: one per token; DeiT III has none, its class token has no position."""
    return [2 if "dist_token" in shapes else 1, 0]


def _rules(names: Collection[str]) -> list[Rule]:
    is_distilled = "dist_token" in names
    rules = [
        *EMBEDDING_RULES,
        *block_rules("encoder.layers.{i}", "blocks.{i}", "gamma_" if "blocks.0.gamma_1" in names else None),
        *with_bias("layernorm", "norm"),
    ]
    if is_distilled:
        rules.append(Rule("embeddings.distillation_token", ("dist_token",)))
    if "head.weight" in names:
        rules += with_bias("classifier", "head")
        rules += with_bias("distillation_classifier", "head_dist") if is_distilled else []
    return rules


def read(model_class: type, config: Mapping, state_dict: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """Infer a ViT's configuration and convert its weights; a base model leaves the heads out.

    Args:
        model_class: our class that is to be built.
        config: {}, for these files have none.
        state_dict: the file's tensors.

    Raises:
        ValueError: if the weights are not those of such a model.
    """
    shapes = shapes_of(state_dict)
    fields, num_prefix = encoder_fields(shapes, _prefixes(shapes))
    fields["use_distillation_token"] = "dist_token" in state_dict
    if "blocks.0.gamma_1" in state_dict:
        fields["layer_scale_init_value"] = 1e-4  # what the factors began with; the file has what they became
    if "head.weight" in state_dict:
        fields["num_labels"] = require_shape(shapes, "head.weight", 2)[0]
    converted = to_ours(state_dict, _rules(state_dict), fields["num_hidden_layers"])
    if num_prefix == 0:
        positions = converted["embeddings.position_embeddings"]
        rows = positions.new_zeros(1, _prefixes(shapes)[0], positions.shape[2])
        converted["embeddings.position_embeddings"] = torch.cat([rows, positions], dim=1)
    return fields, named_for_vit(model_class, converted)


READERS = {ViTPreTrainedModel: read}
WRITERS = {}


def image_processor(config: Mapping, shapes: Mapping[str, Sequence[int]], backend: str | None = None):
    """The evaluation transform of DeiT's code: the short side to 8/7 of the size, the middle; DeiT III cuts nothing."""
    size, _ = image_and_prefix(shapes, _prefixes(shapes))
    return resize_and_crop(size, 1.0 if "blocks.0.gamma_1" in shapes else 224 / 256, backend)


def notes(config: Mapping, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """What the file does not say."""
    own = ("dist_token", "blocks.0.gamma_1")
    return [HEADS_NOTE] if any(name in shapes for name in own) else [HEADS_NOTE, AMBIGUOUS_NOTE]
