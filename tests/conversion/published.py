"""The checkpoints that most people load: config.json as published, the names and shapes of the weights, what is known.

Written from documentation (model cards, the papers' and libraries' sources), not downloaded; `source` names it. Class
names are cut short: what a published file lists for 1,000 or 21,843 classes stands here as LABEL_0, LABEL_1, and so on.
"""

from dataclasses import dataclass, field, replace

from tests.conversion import published_layouts as layouts


@dataclass(frozen=True)
class Published:
    """One repository.

    Attributes:
        repo: its id.
        source: what the entry was written from.
        configs: content by file name.
        shapes: of the weights, by name.
        model_class: name of our class that takes all of it; "" if the architecture is not ours.
        parameters: of the published model, as documented.
        image_size: in pixels.
        left_out: weights that no output depends on.
        says: for an architecture that is not ours, what the message has to name.
        weight_file: where the weights are.
    """

    repo: str
    source: str
    configs: dict[str, dict]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    model_class: str = ""
    parameters: int = 0
    image_size: int = 0
    left_out: tuple[str, ...] = ()
    says: str = ""
    weight_file: str = "model.safetensors"


# Width, layers, heads, width of the MLPs.
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1536, 40, 24, 4096),
}
_VIT = "transformers' documentation of ViT and its conversion script; vision_transformer's configs/models.py"
_DEIT = "transformers' documentation of DeiT and its conversion script; DeiT's models.py"
_MAE = "transformers' documentation of ViTMAE and its conversion script; MAE's models_mae.py"
_DINOV2 = "transformers' documentation of DINOv2 and its conversion script; DINOv2's hub files"
_CLIP = "transformers' documentation of CLIP and its conversion script; OpenAI's model.py"
_SIGLIP = "transformers' documentation of SigLIP and its conversion script"
OPEN_CLIP = "open_clip's model_configs and push_to_hf_hub.py; transformers' conversion script"
TIMM = "timm's vision_transformer.py and deit.py, and its save_for_hf"


def _positions(image_size: int, patch_size: int, prefix: int = 1) -> int:
    return (image_size // patch_size) ** 2 + prefix


def _letters(size: str, image_size: int = 224, patch_size: int = 16, prefix: int = 1, **more: int) -> dict[str, int]:
    width, layers, _, intermediate = SIZES[size]
    letters = {"D": width, "M": intermediate, "S": patch_size, "P": _positions(image_size, patch_size, prefix)}
    return {"layers": layers, **letters, **more}


def short_labels(count: int) -> dict:
    return {
        "id2label": {str(i): f"LABEL_{i}" for i in range(count)},
        "label2id": {f"LABEL_{i}": i for i in range(count)},
    }


def _vit_config(architecture: str, size: str, image_size: int, patch_size: int, **fields) -> dict:
    width, layers, heads, intermediate = SIZES[size]
    return {
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "image_size": image_size,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "num_attention_heads": heads,
        "num_channels": 3,
        "num_hidden_layers": layers,
        "patch_size": patch_size,
        "qkv_bias": True,
        **fields,
    }


def _vit(
    repo: str, size: str, parameters: int, image_size: int = 224, patch_size: int = 16, source: str = _VIT, **fields
):
    config = _vit_config("ViTForImageClassification", size, image_size, patch_size, **short_labels(1000), **fields)
    shapes = layouts.expand(layouts.VIT_CLASSIFIER, **_letters(size, image_size, patch_size, C=1000))
    configs = {"config.json": config}
    return Published(repo, source, configs, shapes, "ViTForImageClassification", parameters, image_size)


def _vit_21k(repo: str, size: str, parameters: int, patch_size: int = 16):
    config = _vit_config("ViTModel", size, 224, patch_size, _name_or_path=repo, transformers_version="4.13.0.dev0")
    shapes = layouts.expand({**layouts.VIT, **layouts.POOLER}, **_letters(size, 224, patch_size))
    return Published(repo, _VIT, {"config.json": config}, shapes, "ViTModel", parameters, 224)


def _mae(size: str, parameters: int, patch_size: int = 16):
    decoder = {
        "decoder_hidden_size": 512,
        "decoder_intermediate_size": 2048,
        "decoder_num_attention_heads": 16,
        "decoder_num_hidden_layers": 8,
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
    }
    versions = {"torch_dtype": "float32", "transformers_version": "4.16.0.dev0"}
    config = _vit_config("ViTMAEForPreTraining", size, 224, patch_size, **decoder, **versions)
    config["model_type"] = "vit_mae"
    shapes = layouts.expand(layouts.MAE, **_letters(size, 224, patch_size, X=3 * patch_size**2))
    configs = {"config.json": config}
    return Published(f"facebook/vit-mae-{size}", _MAE, configs, shapes, "MAEForPreTraining", parameters, 224)


def _deit_distilled(repo: str, size: str, parameters: int, image_size: int = 224):
    architecture = "DeiTForImageClassificationWithTeacher"
    config = _vit_config(architecture, size, image_size, 16, **short_labels(1000), torch_dtype="float32")
    config["model_type"] = "deit"
    shapes = layouts.expand(layouts.DEIT_DISTILLED, **_letters(size, image_size, prefix=2, C=1000))
    configs = {"config.json": config}
    return Published(repo, _DEIT, configs, shapes, "ViTForImageClassification", parameters, image_size)


def _dinov2_config(architecture: str, size: str, **fields) -> dict:
    width, layers, heads, _ = SIZES[size]
    return {
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "image_size": 518,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0,
        "mlp_ratio": 4,
        "model_type": "dinov2",
        "num_attention_heads": heads,
        "num_channels": 3,
        "num_hidden_layers": layers,
        "patch_size": 14,
        "qkv_bias": True,
        "torch_dtype": "float32",
        "transformers_version": "4.32.0.dev0",
        "use_swiglu_ffn": False,
        **fields,
    }


def _dinov2(size: str, parameters: int, table: dict[str, str], **fields):
    config = _dinov2_config("Dinov2Model", size, **fields)
    shapes = layouts.expand(table, **_letters(size, 518, 14))
    left_out = ("embeddings.mask_token",)
    return Published(
        f"facebook/dinov2-{size}", _DINOV2, {"config.json": config}, shapes, "ViTModel", parameters, 518, left_out
    )


def _dinov2_registers():
    fields = {"model_type": "dinov2_with_registers", "num_register_tokens": 4, "interpolate_antialias": True}
    stages = {"apply_layernorm": True, "reshape_hidden_states": True, "interpolate_offset": 0.0}
    config = _dinov2_config("Dinov2WithRegistersModel", "base", **fields, **stages)
    shapes = layouts.expand(layouts.DINOV2_REGISTERS, **_letters("base", 518, 14, R=4))
    repo, left_out = "facebook/dinov2-with-registers-base", ("embeddings.mask_token",)
    return Published(repo, _DINOV2, {"config.json": config}, shapes, "ViTModel", 86_583_552, 518, left_out)


def _dinov2_classifier():
    config = _dinov2_config("Dinov2ForImageClassification", "small", **short_labels(1000))
    shapes = layouts.expand(layouts.DINOV2_CLASSIFIER, **_letters("small", 518, 14, C=1000))
    repo, left_out = "facebook/dinov2-small-imagenet1k-1-layer", ("dinov2.embeddings.mask_token",)
    configs = {"config.json": config}
    return Published(repo, _DINOV2, configs, shapes, "ViTForImageClassification", 22_825_576, 518, left_out)


# What configurations of transformers 4 repeat in each tower: settings of text generation, of no meaning here.
_GENERATION = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "bos_token_id": 0,
    "chunk_size_feed_forward": 0,
    "decoder_start_token_id": None,
    "do_sample": False,
    "early_stopping": False,
    "eos_token_id": 2,
    "is_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": 1,
    "problem_type": None,
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "use_bfloat16": False,
}


def _clip_config(vision: str, text: tuple[int, int], image_size: int, patch_size: int, activation: str) -> dict:
    """A configuration as OpenAI's repositories have it; `text`: width and heads."""
    width, layers, heads, intermediate = SIZES[vision]
    embedding = text[0]
    shared = {**_GENERATION, "dropout": 0.0, "hidden_act": activation, "initializer_factor": 1.0}
    shared |= {"attention_dropout": 0.0, "initializer_range": 0.02, "layer_norm_eps": 1e-05}
    return {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": embedding,
        "text_config": {
            **shared,
            "hidden_size": text[0],
            "intermediate_size": 4 * text[0],
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": text[1],
            "num_hidden_layers": 12,
            "projection_dim": embedding,
            "vocab_size": 49408,
        },
        "text_config_dict": None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": {
            **shared,
            "hidden_size": width,
            "image_size": image_size,
            "intermediate_size": intermediate,
            "model_type": "clip_vision_model",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "patch_size": patch_size,
            "projection_dim": embedding,
        },
        "vision_config_dict": None,
    }


def _clip_shapes(
    vision: str, text: tuple[int, int], image_size: int, patch_size: int, text_table: dict, vision_table: dict
) -> dict:
    texts = {"D": text[0], "M": 4 * text[0], "E": text[0], "V": 49408, "T": 77}
    letters = _letters(vision, image_size, patch_size, E=text[0])
    return layouts.expand(text_table, layers=12, **texts) | layouts.expand(vision_table, **letters)


def _clip(repo: str, vision: str, parameters: int, image_size: int, patch_size: int, text=(512, 8)):
    config = _clip_config(vision, text, image_size, patch_size, "quick_gelu")
    if vision == "large":  # these repositories have the older form, with what differs from the defaults
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "projection_dim")
        for tower, more in {"text_config": (), "vision_config": ("image_size", "patch_size")}.items():
            config[f"{tower}_dict"] = {name: config[tower][name] for name in (*sizes, *more)}
    shapes = _clip_shapes(vision, text, image_size, patch_size, layouts.CLIP_TEXT, layouts.CLIP_VISION)
    left_out = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
    return Published(repo, _CLIP, {"config.json": config}, shapes, "CLIPModel", parameters, image_size, left_out)


_LAION = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
}


def _laion(is_open_clip: bool):
    """The repository as either library sees it: it holds the files of both."""
    configs = {
        "config.json": _clip_config("base", (512, 8), 224, 32, "gelu"),
        "open_clip_config.json": OPEN_CLIP_CONFIG,
    }
    tables = (layouts.CLIP_TEXT, layouts.CLIP_VISION)
    left_out = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
    file = "model.safetensors"
    if is_open_clip:
        tables, left_out, file = (layouts.OPEN_CLIP_TEXT, layouts.OPEN_CLIP_VISION), (), "open_clip_model.safetensors"
    shapes = _clip_shapes("base", (512, 8), 224, 32, *tables)
    return Published(_LAION, OPEN_CLIP, configs, shapes, "CLIPModel", 151_277_313, 224, left_out, weight_file=file)


def _siglip():
    towers = {tower: {"model_type": f"siglip_{tower[:-7]}_model"} for tower in ("text_config", "vision_config")}
    config = {
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "torch_dtype": "float32",
        "transformers_version": "4.37.0.dev0",
        **towers,
    }
    shapes = layouts.expand(layouts.SIGLIP_TEXT, layers=12, D=768, M=3072, V=32000, T=64)
    shapes |= layouts.expand(layouts.SIGLIP_VISION, **_letters("base", prefix=0))
    repo = "google/siglip-base-patch16-224"
    return Published(repo, _SIGLIP, {"config.json": config}, shapes, "CLIPModel", 203_155_970, 224)


_HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OPENAI = OPEN_CLIP_CONFIG["preprocess_cfg"]


def timm_config(name: str, features: int, classes: int, image_size: int = 224, **fields) -> dict:
    architecture, tag = name.split(".")
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": features,
        "global_pool": "token",
        "pretrained_cfg": {
            "tag": tag,
            "custom_load": tag.startswith("augreg"),
            "input_size": [3, image_size, image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            **_HALVES,
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **fields,
        },
    }


def _timm(name: str, size: str, parameters: int, classes: int, table: dict[str, str], letters=None, **fields):
    letters = letters or _letters(size)
    image_size = 518 if letters["S"] == 14 else 224
    config = timm_config(name, SIZES[size][0], classes, image_size, **fields)
    if classes:
        table, letters = {**table, **layouts.TIMM_HEAD}, {**letters, "C": classes}
    model_class = "ViTForImageClassification" if classes else "ViTModel"
    shapes = layouts.expand(table, **letters)
    return Published(f"timm/{name}", TIMM, {"config.json": config}, shapes, model_class, parameters, image_size)


def _timm_wrapper():
    """What transformers' wrapper of timm saves: timm's configuration and weights under names of its own."""
    entry = _timm("vit_base_patch16_224.augreg_in21k_ft_in1k", "base", 86_567_656, 1000, layouts.TIMM)
    wrapper = {"architectures": ["TimmWrapperForImageClassification"], "model_type": "timm_wrapper"}
    config = {**entry.configs["config.json"], **wrapper, "do_pooling": True, "initializer_range": 0.02}
    shapes = {f"timm_model.{name}": shape for name, shape in entry.shapes.items()}
    source = "transformers' documentation of its timm wrapper"
    return replace(entry, repo=f"{entry.repo}-wrapped", source=source, configs={"config.json": config}, shapes=shapes)


OURS = (
    _vit("google/vit-base-patch16-224", "base", 86_567_656, transformers_version="4.13.0.dev0"),
    _vit("google/vit-base-patch16-384", "base", 86_859_496, 384),
    _vit("google/vit-base-patch32-384", "base", 88_297_192, 384, 32),
    _vit("google/vit-large-patch16-224", "large", 304_326_632),
    _vit("google/vit-large-patch16-384", "large", 304_715_752, 384),
    _vit_21k("google/vit-base-patch16-224-in21k", "base", 86_389_248),
    _vit_21k("google/vit-large-patch16-224-in21k", "large", 304_351_232),
    _vit_21k("google/vit-huge-patch14-224-in21k", "huge", 632_404_480, 14),
    _vit("WinKawaks/vit-tiny-patch16-224", "tiny", 5_717_416, torch_dtype="float32"),
    _vit("WinKawaks/vit-small-patch16-224", "small", 22_050_664, torch_dtype="float32"),
    _vit("facebook/deit-tiny-patch16-224", "tiny", 5_717_416, source=_DEIT, torch_dtype="float32"),
    _vit("facebook/deit-small-patch16-224", "small", 22_050_664, source=_DEIT),
    _vit("facebook/deit-base-patch16-224", "base", 86_567_656, source=_DEIT),
    _vit("facebook/deit-base-patch16-384", "base", 86_859_496, 384, source=_DEIT),
    _deit_distilled("facebook/deit-tiny-distilled-patch16-224", "tiny", 5_910_800),
    _deit_distilled("facebook/deit-small-distilled-patch16-224", "small", 22_436_432),
    _deit_distilled("facebook/deit-base-distilled-patch16-224", "base", 87_338_192),
    _mae("base", 111_907_840),
    _mae("large", 329_541_888),
    _mae("huge", 657_074_508, 14),
    _dinov2("small", 22_056_576, layouts.DINOV2),
    _dinov2("base", 86_580_480, layouts.DINOV2),
    _dinov2("large", 304_368_640, layouts.DINOV2),
    _dinov2("giant", 1_136_480_768, layouts.DINOV2_GATED, use_swiglu_ffn=True),
    _dinov2_registers(),
    _dinov2_classifier(),
    _clip("openai/clip-vit-base-patch32", "base", 151_277_313, 224, 32),
    _clip("openai/clip-vit-base-patch16", "base", 149_620_737, 224, 16),
    _clip("openai/clip-vit-large-patch14", "large", 427_616_513, 224, 14, (768, 12)),
    _clip("openai/clip-vit-large-patch14-336", "large", 427_944_193, 336, 14, (768, 12)),
    _laion(is_open_clip=False),
    _laion(is_open_clip=True),
    _siglip(),
    _timm("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "tiny", 5_717_416, 1000, layouts.TIMM),
    _timm("vit_base_patch16_224.augreg_in21k_ft_in1k", "base", 86_567_656, 1000, layouts.TIMM),
    _timm("vit_base_patch16_224.orig_in21k", "base", 85_798_656, 0, layouts.TIMM),
    _timm("vit_base_patch16_224.mae", "base", 85_798_656, 0, layouts.TIMM, **IMAGENET),
    _timm("deit_base_patch16_224.fb_in1k", "base", 86_567_656, 1000, layouts.TIMM, **IMAGENET),
    _timm(
        "deit_base_distilled_patch16_224.fb_in1k",
        "base",
        87_338_192,
        1000,
        {**layouts.TIMM, **layouts.TIMM_DISTILLED},
        _letters("base", prefix=2),
        classifier=["head", "head_dist"],
        **IMAGENET,
    ),
    _timm(
        "vit_base_patch14_dinov2.lvd142m",
        "base",
        86_579_712,
        0,
        {**layouts.TIMM, **layouts.TIMM_SCALES},
        _letters("base", 518, 14),
        crop_pct=1.0,
        **IMAGENET,
    ),
    _timm(
        "vit_base_patch14_reg4_dinov2.lvd142m",
        "base",
        86_582_784,  # with a position of the class token, which is part of the token in timm's
        0,
        {**layouts.TIMM, **layouts.TIMM_SCALES, **layouts.TIMM_REGISTERS},
        _letters("base", 518, 14, prefix=0, R=4),
        crop_pct=1.0,
        **IMAGENET,
    ),
    _timm_wrapper(),
    _timm("vit_base_patch16_clip_224.openai", "base", 86_193_152, 512, layouts.TIMM_CLIP, **OPENAI),
)
