"""Vision-transformer foundation models for the Hugging Face ecosystem.

Importing this package registers its models with transformers' Auto classes; every other public name is imported when
it is first used.
"""

import importlib

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from .models.configuration_vit import VitfmViTConfig as ViTConfig
from .models.modeling_vit import ViTForImageClassification, ViTModel
from .version import __version__


AutoConfig.register(ViTConfig.model_type, ViTConfig)
AutoImageProcessor.register(
    ViTConfig, image_processor_classes={"torchvision": ViTImageProcessor, "pil": ViTImageProcessorPil}
)
AutoModel.register(ViTConfig, ViTModel)
AutoModelForImageClassification.register(ViTConfig, ViTForImageClassification)

_LAZY = {
    "ImageClassificationTrainer": "training.classification",
    "VisionTrainingArguments": "training.arguments",
    "build_transform": "data.transforms",
    "create_model_card": "cards.model_card",
    "export_checkpoint": "conversion",
    "load_image_processor": "conversion",
    "load_images": "data.datasets",
    "load_sample": "data.samples",
    "open_stream": "data.sources.stream",
}

__all__ = sorted(["ViTConfig", "ViTForImageClassification", "ViTModel", "__version__", *_LAZY])


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__
