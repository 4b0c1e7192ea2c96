"""Which format a source has, and its conversion to ours."""

from torch import Tensor

from ..models.modeling_clip import CLIPModel
from ..models.modeling_clip_towers import CLIPTextPreTrainedModel, CLIPVisionPreTrainedModel
from ..models.modeling_mae import MAEPreTrainedModel
from ..models.modeling_vit import ViTPreTrainedModel
from . import timm, transformers_clip, transformers_dinov2, transformers_mae, transformers_vit
from .files import read_state_dict


# Which of our models a format can become, and by what. MAE's encoder is a ViT, so a ViT takes it from an MAE.
READERS = {
    ViTPreTrainedModel: {
        transformers_vit.MODEL_TYPE: transformers_vit.read,
        transformers_mae.MODEL_TYPE: transformers_mae.read_encoder,
        transformers_mae.OUR_MODEL_TYPE: transformers_mae.read_our_encoder,
        transformers_dinov2.MODEL_TYPE: transformers_dinov2.read,
        transformers_dinov2.REGISTERS_MODEL_TYPE: transformers_dinov2.read,
        "timm_wrapper": timm.read,  # what transformers takes every config.json of timm for
    },
    MAEPreTrainedModel: {transformers_mae.MODEL_TYPE: transformers_mae.read},
    CLIPModel: {transformers_clip.MODEL_TYPE: transformers_clip.read},
    CLIPTextPreTrainedModel: {
        transformers_clip.MODEL_TYPE: transformers_clip.read_tower,
        transformers_clip.TEXT_MODEL_TYPE: transformers_clip.read_tower,
        transformers_clip.OUR_MODEL_TYPE: transformers_clip.read_our_tower,
    },
    CLIPVisionPreTrainedModel: {
        transformers_clip.MODEL_TYPE: transformers_clip.read_tower,
        transformers_clip.VISION_MODEL_TYPE: transformers_clip.read_tower,
        transformers_clip.OUR_MODEL_TYPE: transformers_clip.read_our_tower,
    },
}


def read_checkpoint(model_class: type, source, saved: dict, **where) -> tuple[dict, dict[str, Tensor]]:
    """Read a checkpoint that this library did not write.

    Args:
        model_class: our class that is to be built.
        source: folder or Hub id.
        saved: its config.json, {} if it has none.
        **where: `revision`, `token`, `subfolder`, ... as `from_pretrained` takes them.

    Returns:
        Fields of our configuration, and weights under our names.

    Raises:
        ValueError: if the format is not known, or the weights do not match their configuration.
    """
    model_type = saved.get("model_type")
    readers = next((readers for base, readers in READERS.items() if issubclass(model_class, base)), {})
    if model_type not in readers:
        found = f"`model_type` {model_type!r}" if model_type else "no config.json with a `model_type`"
        raise ValueError(
            f"{model_class.__name__} cannot read {str(source)!r}: {found}. Readable are folders and Hub repositories "
            f"that this library saved ({model_class.config_class.model_type!r}) or with `model_type` "
            f"{', '.join(repr(name) for name in readers)}."
        )
    config, state_dict = readers[model_type](model_class, saved, read_state_dict(source, **where))
    dtype = saved.get("dtype") or saved.get("torch_dtype")  # what to load as, which the file's own may not be
    return ({**config, "dtype": dtype} if dtype else config), state_dict
