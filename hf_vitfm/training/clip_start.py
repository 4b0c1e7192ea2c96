"""The model that a CLIP training starts from, with its tokenizer and image processor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModel, CLIPImageProcessor, CLIPProcessor, PreTrainedModel

from ..cards.redact import redact
from ..conversion import load_image_processor, load_tokenizer
from ..conversion.files import check_source
from ..data.samples import find_checkpoint
from ..data.tokenizers import train_tokenizer
from ..models.configuration_base import as_pair
from ..models.configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from ..models.modeling_clip import CLIPModel
from ..models.modeling_clip_towers import CLIPTextModel, CLIPVisionModel
from .recipe import SMOKE_MODEL


SMOKE_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
SMOKE_WIDTH, SMOKE_VOCABULARY = 16, 300


@dataclass
class CLIPModelArguments:
    """Which CLIP is trained: a whole checkpoint, one from scratch, or two towers that are joined."""

    checkpoint: str | None = field(default=None, metadata={"help": "Hub id or folder of a CLIP to fine-tune"})
    variant: str | None = field(default=None, metadata={"help": "from scratch: B/32, B/16, L/14"})
    vision_checkpoint: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a vision tower, anything that AutoModel builds"}
    )
    text_checkpoint: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a text tower, anything that AutoModel builds"}
    )
    lock_image: bool = field(default=False, metadata={"help": "leave the vision tower as it is (LiT)"})
    lock_text: bool = field(default=False, metadata={"help": "leave the text tower as it is"})
    image_size: int | None = field(
        default=None, metadata={"help": "pixels; by default the checkpoint's own, 224 from scratch"}
    )
    model: dict = field(default_factory=dict, metadata={"help": "more fields of CLIPConfig, such as projection_dim"})
    text_config: dict = field(default_factory=dict, metadata={"help": "fields of the text tower's configuration"})
    vision_config: dict = field(default_factory=dict, metadata={"help": "fields of the vision tower's configuration"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Hub id or folder; else the checkpoint's, or one trained on the captions"}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "most tokens of a tokenizer that is trained; 49,152 if not given"}
    )
    image_processor: dict = field(default_factory=dict, metadata={"help": "vision tower from scratch: its fields"})
    half_weights: bool = field(default=False, metadata={"help": "save the final weights as float16, half the size"})

    def __post_init__(self):
        towers = [name for name in ("vision_checkpoint", "text_checkpoint") if getattr(self, name)]
        if self.checkpoint and (towers or self.variant):
            raise ValueError("`checkpoint` is both towers; leave `variant` and the checkpoints of single towers out.")
        if towers and self.variant:
            raise ValueError(
                f"`variant` is a model from scratch; got {towers[0]} too. Give `text_config` or `vision_config`."
            )
        for lock, tower in (("lock_image", "vision_checkpoint"), ("lock_text", "text_checkpoint")):
            if getattr(self, lock) and not (self.checkpoint or getattr(self, tower)):
                raise ValueError(f"`{lock}` would keep random weights. Give `{tower}` or `checkpoint` with it.")
        if self.image_processor and (self.checkpoint or self.vision_checkpoint):
            raise ValueError("`image_processor` is for a vision tower from scratch; leave it out.")
        if self.vocab_size and (self.tokenizer or self.checkpoint or self.text_checkpoint):
            raise ValueError("`vocab_size` is of a tokenizer that is trained here, and one is given. Leave it out.")

    @property
    def locked_towers(self) -> list[str]:
        """Which towers training leaves as they are: image, text."""
        return [name for name in ("image", "text") if getattr(self, f"lock_{name}")]

    @property
    def base_model(self) -> str | None:
        """What the model card says that the training started from."""
        towers = [name for name in (self.vision_checkpoint, self.text_checkpoint) if name]
        # Each by itself, since a path may hold spaces.
        return self.checkpoint or " and ".join(map(redact, towers)) or None


def build_clip(args: CLIPModelArguments, captions: Callable[[], list], smoke: bool) -> tuple[CLIPModel, CLIPProcessor]:
    """Make the model that the training starts from, and its processor.

    Args:
        args: which one.
        captions: gives the training captions, for a tokenizer that is trained on them; not called otherwise.
        smoke: a tiny one from scratch, with the same towers locked.

    Raises:
        FileNotFoundError: if a checkpoint is a path that does not exist.
        ValueError: if weights are missing, or fields do not fit each other.
    """
    if smoke:
        model, processor = _build_smoke(args, captions())
    elif args.checkpoint is not None:
        model, processor = _load_whole(args)
    else:
        model, processor = _build_towers(args, _tokenizer(args, captions))
    model.lock_towers(vision=args.lock_image, text=args.lock_text)
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    if positions is not None:
        processor.tokenizer.model_max_length = min(positions, processor.tokenizer.model_max_length)
    return model, processor


def _build_smoke(args: CLIPModelArguments, captions: list) -> tuple[CLIPModel, CLIPProcessor]:
    tokenizer = train_tokenizer(captions, SMOKE_VOCABULARY, SMOKE_TEXT["max_position_embeddings"])
    config = VitfmCLIPConfig(
        text_config={**_token_fields(tokenizer), **SMOKE_TEXT},
        vision_config=SMOKE_MODEL,
        projection_dim=SMOKE_WIDTH,
        **{name: args.model[name] for name in ("objective",) if name in args.model},
    )
    return CLIPModel(config), CLIPProcessor(_image_processor(config.vision_config.image_size, {}), tokenizer)


def _load_whole(args: CLIPModelArguments) -> tuple[CLIPModel, CLIPProcessor]:
    source = find_checkpoint(args.checkpoint)
    towers = {"text_config": args.text_config, "vision_config": args.vision_config}
    fields = {**args.model, **{name: value for name, value in towers.items() if value}}
    if args.image_size is not None:
        fields["image_size"] = args.image_size
    model = _load(CLIPModel, source, **fields)
    tokenizer = load_tokenizer(args.tokenizer or source)
    return model, CLIPProcessor(load_image_processor(source, image_size=args.image_size), tokenizer)


def _build_towers(args: CLIPModelArguments, tokenizer: Any) -> tuple[CLIPModel, CLIPProcessor]:
    """A model of which each tower comes from a checkpoint or is new."""
    text = {**_token_fields(tokenizer), **args.text_config}
    vision = (
        dict(args.vision_config) if args.image_size is None else {"image_size": args.image_size, **args.vision_config}
    )
    if args.vision_checkpoint is None and args.text_checkpoint is None:
        towers = {"text_config": text, "vision_config": vision}
        config = (
            VitfmCLIPConfig(**towers, **args.model)
            if args.variant is None
            else VitfmCLIPConfig.from_variant(args.variant, **towers, **args.model)
        )
        model = CLIPModel(config)
    else:
        vision_tower = (
            CLIPVisionModel(VitfmCLIPVisionConfig(**vision))
            if args.vision_checkpoint is None
            else _load(AutoModel, find_checkpoint(args.vision_checkpoint), **vision)
        )
        text_tower = (
            CLIPTextModel(VitfmCLIPTextConfig(**text))
            if args.text_checkpoint is None
            else _load(AutoModel, args.text_checkpoint, **args.text_config)
        )
        model = CLIPModel.from_towers(vision_tower, text_tower, **args.model)
    if args.vision_checkpoint is None:
        images = _image_processor(model.config.vision_config.image_size, args.image_processor)
    else:
        images = load_image_processor(find_checkpoint(args.vision_checkpoint), image_size=args.image_size)
    return model, CLIPProcessor(images, tokenizer)


def _load(model_class: type, source: str, **fields) -> PreTrainedModel:
    """Load float32 weights, since updates are too small for less; all but those of an unused pooler have to be there."""
    check_source(source)
    model, info = model_class.from_pretrained(source, output_loading_info=True, dtype=torch.float32, **fields)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{source!r} lacks {len(missing)} weights of a {type(model).__name__}, which would start at random: "
            f"{', '.join(missing[:5])}. Name a checkpoint that has them."
        )
    return model


def _tokenizer(args: CLIPModelArguments, captions: Callable[[], list]) -> Any:
    source = args.tokenizer or args.text_checkpoint
    if source is not None:
        return load_tokenizer(source)
    length = args.text_config.get("max_position_embeddings", VitfmCLIPTextConfig.max_position_embeddings)
    return train_tokenizer(captions(), args.vocab_size or 49_152, length)


def _token_fields(tokenizer: Any) -> dict:
    """What a text tower has to know of its tokenizer."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    size = 1 + max(tokenizer.get_vocab().values())
    return {"vocab_size": size, **{name: value for name, value in ids.items() if value is not None}}


def _image_processor(image_size: int | list | tuple, fields: dict) -> CLIPImageProcessor:
    """CLIP's: bicubic, the central square, CLIP's own mean and deviation."""
    height, width = as_pair(image_size)
    return CLIPImageProcessor(
        **{
            "size": {"shortest_edge": height} if height == width else {"height": height, "width": width},
            "crop_size": {"height": height, "width": width},
            **fields,
        }
    )
