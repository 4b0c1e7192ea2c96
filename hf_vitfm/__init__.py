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
    AutoModelForPreTraining,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from .models.configuration_mae import VitfmMAEConfig as MAEConfig
from .models.configuration_vit import VitfmViTConfig as ViTConfig
from .models.modeling_mae import MAEForPreTraining, MAEModel
from .models.modeling_vit import ViTForImageClassification, ViTModel
from .version import __version__


for _config in (MAEConfig, ViTConfig):
    AutoConfig.register(_config.model_type, _config)
    AutoImageProcessor.register(
        _config, image_processor_classes={"torchvision": ViTImageProcessor, "pil": ViTImageProcessorPil}
    )
AutoModel.register(MAEConfig, MAEModel)
AutoModel.register(ViTConfig, ViTModel)
AutoModelForPreTraining.register(MAEConfig, MAEForPreTraining)
AutoModelForImageClassification.register(ViTConfig, ViTForImageClassification)

_LAZY = {
    "ImageClassificationTrainer": "training.classification",
    "MAETrainer": "training.mae",
    "VisionTrainingArguments": "training.arguments",
    "build_transform": "data.transforms",
    "create_model_card": "cards.model_card",
    "export_checkpoint": "conversion",
    "extract_features": "evaluation.features",
    "few_shot": "evaluation.few_shot",
    "load_image_processor": "conversion",
    "load_images": "data.datasets",
    "load_pairs": "data.pairs",
    "load_sample": "data.samples",
    "load_tokenizer": "conversion",
    "open_stream": "data.sources.stream",
    "sample_checkpoint": "data.samples",
}

_MODELS = ("MAEConfig", "MAEForPreTraining", "MAEModel", "ViTConfig", "ViTForImageClassification", "ViTModel")

__all__ = sorted([*_MODELS, "__version__", *_LAZY])


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__
