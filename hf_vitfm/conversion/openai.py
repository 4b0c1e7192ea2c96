"""OpenAI's CLIP as a plain state dict (`model.state_dict()`): no configuration, the architecture is in the shapes.

The names are those of open_clip's `CLIP`, which took them over. The official files are TorchScript archives, which are
programs and not read; transformers' and open_clip's repositories hold the same weights ('openai/clip-vit-base-patch32').
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.configuration_base import as_pair
from ..models.configuration_clip import VitfmCLIPConfig
from ..models.modeling_clip import CLIPModel
from ..models.modeling_clip_towers import CLIPTextPreTrainedModel, CLIPVisionPreTrainedModel
from . import open_clip, open_clip_images
from .open_clip_config import has_square_images, infer_model_cfg, their_model_cfg
from .refusals import open_clip_holds, refuse_other


NAME = "openai"
LIBRARY = "OpenAI's format"
WEIGHT_FILE = "model.pth"


def matches(config: Mapping, keys: Mapping | set) -> bool:
    """Whether weights without a configuration may be OpenAI's; open_clip's look the same but for some numbers."""
    return not config and {"visual.conv1.weight", "positional_embedding", "text_projection"} <= set(keys)


def read(model_class: type, saved: Mapping, state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a model, or a tower of it; half precision becomes float32, as OpenAI's code loads it to a CPU."""
    weights = {name: tensor for name, tensor in state_dict.items() if name not in open_clip.OPENAI_NUMBERS}
    weights = open_clip.with_text_prefix(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return open_clip.convert(model_class, infer_model_cfg(shapes, quick_gelu=True, head_widths={}), weights)


READERS = {CLIPModel: read, CLIPTextPreTrainedModel: read, CLIPVisionPreTrainedModel: read}


def write(model: CLIPModel, image_processor=None) -> dict[str, dict]:
    """The state dict of a model as model.pth; preprocessing is fixed and not saved.

    Raises:
        ValueError: if the configuration has what OpenAI's code does not build, or the image processor differs.
    """
    config = model.config
    their_model_cfg(config)  # refuses what the names cannot hold
    vision, text = config.vision_config, config.text_config
    refuse_other(config, {"objective": "softmax"}, LIBRARY, open_clip_holds(["objective"]))
    for name, tower in (("vision_config", vision), ("text_config", text)):
        required = {"num_attention_heads": tower.hidden_size // 64, "intermediate_size": 4 * tower.hidden_size}
        required |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "layer_scale_init_value": None}
        refuse_other(tower, required, LIBRARY, open_clip_holds(required), place=name)
    required = {"pooling": "cls", "use_pre_norm": True, "position_embedding_type": "learned"}
    refuse_other(vision, required, LIBRARY, open_clip_holds(required), place="vision_config")
    if not has_square_images(vision):
        raise ValueError(
            f"{LIBRARY} cannot hold `image_size={vision.image_size!r}` or `patch_size={vision.patch_size!r}`."
        )
    required = {"is_causal": True, "projection_bias": False}
    if text.pooling != "argmax":
        required |= {"pooling": "eos", "eos_token_id": text.vocab_size - 1}
    refuse_other(text, required, LIBRARY, open_clip_holds(required), place="text_config")
    found = open_clip_images.their_preprocess_cfg(image_processor, vision.image_size)
    if found != open_clip_images.their_preprocess_cfg(None, vision.image_size):
        raise ValueError(
            f'{LIBRARY} has no place for preprocessing, and yours is not OpenAI\'s. Use `format="open_clip"`.'
        )
    numbers = (as_pair(vision.image_size)[0], text.max_position_embeddings, text.vocab_size)
    # Loaders drop them, and they tell the file from one of open_clip's, whose activation is another.
    numbers = {name: torch.tensor(value) for name, value in zip(open_clip.OPENAI_NUMBERS, numbers, strict=True)}
    return {WEIGHT_FILE: {**numbers, **open_clip.their_weights(model)}}


WRITERS = {VitfmCLIPConfig.model_type: write}


def image_processor(config: Mapping, shapes: Mapping[str, tuple], backend: str | None = None):
    """Build the image processor of transformers with the pixels of OpenAI's own transform; see open_clip's on the arguments."""
    return open_clip.image_processor({}, shapes, backend)


def tokenizer(config: Mapping, **kwargs):
    """Load transformers' form of OpenAI's tokenizer, from the Hub or its cache."""
    return open_clip.tokenizer({}, **kwargs)
