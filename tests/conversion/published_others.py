"""Checkpoints of other architectures that people may try: what their configurations hold, and what the message has to say.

Written from documentation, as `published.py` is.
"""

from tests.conversion.published import IMAGENET, OPEN_CLIP, OPENAI, TIMM, Published, short_labels, timm_config


_OTHER = "transformers' documentation of the architecture"


def _other(repo: str, says: str, config: dict, file: str = "config.json", source: str = _OTHER):
    return Published(repo, source, {file: config}, says=says)


_SWIN = {
    "architectures": ["SwinForImageClassification"],
    "depths": [2, 2, 6, 2],
    "embed_dim": 96,
    "hidden_size": 768,
    "image_size": 224,
    "model_type": "swin",
    "num_heads": [3, 6, 12, 24],
    "patch_size": 4,
    "window_size": 7,
}
_CONVNEXT = {
    "architectures": ["ConvNextForImageClassification"],
    "depths": [3, 3, 9, 3],
    "hidden_sizes": [96, 192, 384, 768],
    "image_size": 224,
    "model_type": "convnext",
}
_RESNET = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [3, 4, 6, 3],
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "layer_type": "bottleneck",
    "model_type": "resnet",
}
_BIT = {**_RESNET, "architectures": ["BitForImageClassification"], "layer_type": "preactivation", "model_type": "bit"}
_CLIP_RESNET = {
    "model_cfg": {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    },
    "preprocess_cfg": OPENAI,
}

NOT_OURS = (
    _other("microsoft/swin-tiny-patch4-window7-224", "SwinModel", {**_SWIN, **short_labels(1000)}),
    _other("facebook/convnext-tiny-224", "ConvNextModel", {**_CONVNEXT, **short_labels(1000)}),
    _other("microsoft/resnet-50", "ResNetModel", {**_RESNET, **short_labels(1000)}),
    _other("google/bit-50", "BitModel", {**_BIT, **short_labels(1000)}),
    _other(
        "timm/swin_tiny_patch4_window7_224.ms_in1k",
        "timm.create_model",
        timm_config("swin_tiny_patch4_window7_224.ms_in1k", 768, 1000, **IMAGENET),
        source=TIMM,
    ),
    _other(
        "timm/resnet50.a1_in1k",
        "TimmWrapperForImageClassification",
        timm_config("resnet50.a1_in1k", 2048, 1000, **IMAGENET),
        source=TIMM,
    ),
    _other(
        "timm/resnet50_clip.openai",
        "open_clip.create_model_and_transforms",
        _CLIP_RESNET,
        "open_clip_config.json",
        OPEN_CLIP,
    ),
)
