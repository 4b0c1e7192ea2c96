"""Writing our models in foreign formats."""

import json
from pathlib import Path

from safetensors.torch import save_file

from ..models.configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from ..models.configuration_mae import VitfmMAEConfig
from ..models.configuration_vit import VitfmViTConfig
from . import timm, transformers_clip, transformers_dinov2, transformers_mae, transformers_vit


WRITERS = {
    ("transformers", VitfmCLIPConfig.model_type): transformers_clip.write,
    ("transformers", VitfmCLIPTextConfig.model_type): transformers_clip.write,
    ("transformers", VitfmCLIPVisionConfig.model_type): transformers_clip.write,
    ("transformers", VitfmMAEConfig.model_type): transformers_mae.write,
    ("transformers", VitfmViTConfig.model_type): transformers_vit.write,
    (transformers_dinov2.NAME, VitfmViTConfig.model_type): transformers_dinov2.write,
    (timm.NAME, VitfmViTConfig.model_type): timm.write,
}


def export_checkpoint(model, directory, format: str = "transformers") -> Path:
    """Write a model's configuration and weights in another library's format.

    Args:
        model: one of our models.
        directory: where to write; made if absent. Files of the same names are replaced.
        format: "transformers", "dinov2" (transformers' classes of that name, which hold LayerScale and registers) or
            "timm".

    Returns:
        The directory.

    Raises:
        ValueError: if the format is not known for this model, or cannot hold something that the model has (the
            message names the configuration field). Nothing is written then.
    """
    writer = WRITERS.get((format, getattr(model.config, "model_type", None)))
    if writer is None:
        known = sorted({name for name, _ in WRITERS})
        raise ValueError(
            f"`format` must be one of {', '.join(known)} and the model one of this library's; got {format!r} and "
            f"{type(model).__name__}."
        )
    written = writer(model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(written, dict):
        (directory / "config.json").write_text(json.dumps(written["config.json"], indent=2), encoding="utf-8")
        save_file(written["model.safetensors"], directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    config, state_dict = written
    config.dtype = next(iter(state_dict.values())).dtype
    save_file(state_dict, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)
    return directory
