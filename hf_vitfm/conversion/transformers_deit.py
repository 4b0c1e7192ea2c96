"""transformers' DeiT format (`model_type` "deit"), old and new weight names; a DeiT without distillation is a "vit" there.

Two kinds of classifiers share the type. DeiTForImageClassificationWithTeacher has a head on the class token and one on
the distillation token, and so has ours. DeiTForImageClassification reads the class token alone: its distillation token
is one that no head looks at, which is a register token of ours, with its position added.
"""

import torch
import transformers
from torch import Tensor

from ..models.modeling_vit import ViTModel
from . import transformers_vit
from .refusals import refuse_other
from .rules import Rule, named_for_vit, renamed, to_ours, to_theirs, with_bias


MODEL_TYPE = "deit"

_POSITIONS = "embeddings.position_embeddings"
_DISTILLATION = "embeddings.distillation_token"
_REGISTER = "embeddings.register_tokens"
_BACKBONE = [rule for rule in transformers_vit.RULES if not rule.ours.startswith("classifier.")]


def _rules(has_two_heads: bool) -> list[Rule]:
    heads = with_bias("classifier", "cls_classifier" if has_two_heads else "classifier", optional=True)
    if has_two_heads:
        heads += with_bias("distillation_classifier", "distillation_classifier", optional=True)
    return [*_BACKBONE, Rule(_DISTILLATION, (_DISTILLATION,)), *heads]


def read(model_class: type, saved: dict, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a configuration and its weights to ours.

    The pooler (dense, tanh) becomes the pre-logits layer of a base model; a classifier leaves it out, as transformers'
    does.

    Raises:
        ValueError: if the weights do not match their configuration, or the pooler has another activation than tanh.
    """
    theirs = transformers_vit.complete(transformers.DeiTConfig, saved)
    config = {name: getattr(theirs, name) for name in transformers_vit.SHARED_FIELDS}
    state_dict = renamed(state_dict, lambda name: transformers_vit.file_name(name.removeprefix("deit.")))
    is_base, is_read_alone = issubclass(model_class, ViTModel), "classifier.weight" in state_dict
    state_dict, representation = transformers_vit.take_pooler(theirs, state_dict, is_base)
    rules = [rule for rule in _rules(not is_read_alone) if theirs.qkv_bias or rule.ours != transformers_vit.QKV_BIAS]
    converted = to_ours(state_dict, rules, theirs.num_hidden_layers)
    if is_read_alone:
        rows = converted[_POSITIONS]
        converted[_REGISTER] = converted.pop(_DISTILLATION) + rows[:, 1:2]
        converted[_POSITIONS] = torch.cat([rows[:, :1], rows[:, 2:]], dim=1)
        config["num_register_tokens"] = 1
    else:
        config["use_distillation_token"] = True
    return {**config, **representation}, named_for_vit(model_class, converted)


def _refuse(config, is_base: bool) -> None:
    """Refuse what the format cannot hold, naming the field."""
    required = {
        "pooling": "cls",
        "final_norm": "tokens",
        "use_pre_norm": False,
        "use_gated_mlp": False,
        "layer_scale_init_value": None,
    }
    required["num_register_tokens"] = 0 if config.use_distillation_token else 1
    if not is_base:
        required["representation_size"] = None
    advice = 'Save the model with `save_pretrained`, in this library\'s own format, or export it with `format="timm"`.'
    refuse_other(config, required, "transformers' DeiT", advice)


def write(model) -> tuple[transformers.PreTrainedConfig, dict[str, Tensor]]:
    """Convert one of our ViT models with a distillation token, or with one register token, to transformers' DeiT.

    Raises:
        ValueError: if the configuration has what the format cannot hold.
    """
    config, is_base = model.config, isinstance(model, ViTModel)
    _refuse(config, is_base)
    fields = {name: getattr(config, name) for name in transformers_vit.SHARED_FIELDS}
    if config.representation_size:
        fields["pooler_output_size"] = config.representation_size
    is_distilled = config.use_distillation_token
    classifier = "DeiTForImageClassificationWithTeacher" if is_distilled else "DeiTForImageClassification"
    theirs = transformers.DeiTConfig(**fields, architectures=["DeiTModel" if is_base else classifier])
    state_dict = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    if not is_distilled:  # the register has no position, so that of the token which it becomes is zero
        state_dict[_DISTILLATION] = state_dict.pop(_REGISTER)
        rows = state_dict[_POSITIONS]
        state_dict[_POSITIONS] = torch.cat([rows[:, :1], torch.zeros_like(rows[:, :1]), rows[:, 1:]], dim=1)
    converted = to_theirs(state_dict, _rules(is_distilled), config.num_hidden_layers)
    if not is_base:
        converted = {name if "classifier." in name else f"deit.{name}": tensor for name, tensor in converted.items()}
    return theirs, converted


def notes(config: dict, shapes: dict) -> list[str]:
    """Where the file differs from how the released weights were trained."""
    if config.get("layer_norm_eps", 1e-12) != 1e-12:
        return []
    return [
        "`layer_norm_eps` is 1e-12, the default of transformers' class; the code that trained the released facebook/deit-* "
        "weights has 1e-6. The file's own value is used; `from_pretrained(..., layer_norm_eps=1e-6)` follows that code."
    ]
