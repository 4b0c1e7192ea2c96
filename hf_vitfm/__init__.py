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
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from .models.configuration_clip import VitfmCLIPConfig as CLIPConfig
from .models.configuration_clip import VitfmCLIPTextConfig as CLIPTextConfig
from .models.configuration_clip import VitfmCLIPVisionConfig as CLIPVisionConfig
from .models.configuration_mae import VitfmMAEConfig as MAEConfig
from .models.configuration_vit import VitfmViTConfig as ViTConfig
from .models.modeling_clip import CLIPModel
from .models.modeling_clip_towers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from .models.modeling_mae import MAEForPreTraining, MAEModel
from .models.modeling_vit import ViTForImageClassification, ViTModel
from .version import __version__


_VIT_PROCESSORS = {"torchvision": ViTImageProcessor, "pil": ViTImageProcessorPil}
_CLIP_PROCESSORS = {"torchvision": CLIPImageProcessor, "pil": CLIPImageProcessorPil}
for _config, _model, _processors in (
    (CLIPConfig, CLIPModel, _CLIP_PROCESSORS),
    (CLIPTextConfig, CLIPTextModel, None),
    (CLIPVisionConfig, CLIPVisionModel, _CLIP_PROCESSORS),
    (MAEConfig, MAEModel, _VIT_PROCESSORS),
    (ViTConfig, ViTModel, _VIT_PROCESSORS),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    if _processors:
        AutoImageProcessor.register(_config, image_processor_classes=_processors)
for _config in (CLIPConfig, CLIPTextConfig):
    AutoTokenizer.register(_config, tokenizer_class=CLIPTokenizer)
AutoProcessor.register(CLIPConfig, CLIPProcessor)
AutoModelForImageClassification.register(ViTConfig, ViTForImageClassification)
AutoModelForPreTraining.register(MAEConfig, MAEForPreTraining)
AutoModelForZeroShotImageClassification.register(CLIPConfig, CLIPModel)

_LAZY = {
    "CLIPTrainer": "training.clip",
    "CLIPTrainingArguments": "training.clip_arguments",
    "ImageClassificationTrainer": "training.classification",
    "MAETrainer": "training.mae",
    "VisionTrainingArguments": "training.arguments",
    "ZeroShotClassifier": "evaluation.zero_shot",
    "build_transform": "data.transforms",
    "contrastive_loss": "models.modeling_contrastive",
    "create_model_card": "cards.model_card",
    "evaluate_retrieval": "evaluation.retrieval",
    "evaluate_zero_shot": "evaluation.zero_shot",
    "export_checkpoint": "conversion",
    "extract_features": "evaluation.features",
    "few_shot": "evaluation.few_shot",
    "linear_probe": "evaluation.linear_probe",
    "load_image_processor": "conversion",
    "load_images": "data.datasets",
    "load_pairs": "data.pairs",
    "load_sample": "data.samples",
    "load_tokenizer": "conversion",
    "open_stream": "data.sources.stream",
    "sample_checkpoint": "data.samples",
    "pairwise_margin_loss": "models.modeling_contrastive",
}

_MODELS = (
    "CLIPConfig",
    "CLIPModel",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionConfig",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "MAEConfig",
    "MAEForPreTraining",
    "MAEModel",
    "ViTConfig",
    "ViTForImageClassification",
    "ViTModel",
)

__all__ = sorted([*_MODELS, "__version__", *_LAZY])


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__
