"""Comparing an exported checkpoint, opened by the library it was written for, with the model it came from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.modeling_clip import CLIPModel
from ..models.modeling_embeddings import patch_grid
from ..models.modeling_mae import MAEForPreTraining, MAEModel
from .formats import OURS, TRANSFORMERS


# Outputs that are compared, of those that both models give.
_OUTPUTS = ("logits", "image_embeds", "text_embeds", "last_hidden_state")

# Fields that files of weights alone do not tell.
_UNTOLD = ("num_attention_heads", "decoder_num_attention_heads", "mask_ratio")


@dataclass(frozen=True)
class Difference:
    """How far two libraries are apart on the same random inputs.

    Attributes:
        library: what the exported checkpoint was opened with.
        largest: the largest absolute difference of an output.
        scale: the largest absolute output of our model.
    """

    library: str
    largest: float
    scale: float


@torch.no_grad()
def verify(model, directory, format: str) -> Difference:
    """Run a model and its exported checkpoint on the same random images and texts, in float32.

    The format's own library opens the checkpoint; for formats that no library of today opens (MAE's, JAX's), this one
    reads it back.

    Args:
        model: the model that was exported.
        directory: where to.
        format: in which format.

    Raises:
        ImportError: if the format's library is not installed.
        ValueError: if the library gives none of the outputs that ours gives.
    """
    inputs = _inputs(model)
    model = model.eval().float()
    ours = {name: value for name, value in model(**inputs).items() if name in _OUTPUTS}
    library, run = _peer(format, Path(directory))
    theirs = run(model, str(directory), inputs)
    pairs = [(ours[name], theirs[name]) for name in _OUTPUTS if name in ours and theirs.get(name) is not None]
    if not pairs:
        raise ValueError(f"{library} gives none of the outputs {', '.join(ours)}; nothing could be compared.")
    for output, reference in pairs:
        if output.shape != reference.shape:
            shapes = f"{tuple(output.shape)} here and {tuple(reference.shape)} in {library}"
            raise ValueError(f"What was written is another model: an output has the shape {shapes}.")
    return Difference(
        library,
        max((ours - theirs).abs().max().item() for ours, theirs in pairs),
        max(ours.abs().max().item() for ours, _ in pairs),
    )


def _peer(format: str, directory: Path) -> tuple[str, Callable]:
    """The library that opens a format, and how."""
    path = directory / "config.json"
    if format not in (OURS, *_PEERS) and path.is_file() and _architectures(path):
        return _PEERS[TRANSFORMERS]  # formats of single classes of it
    return _PEERS.get(format, ("hf_vitfm", _read_back))


def _architectures(path: Path) -> list[str] | None:
    return json.loads(path.read_text(encoding="utf-8")).get("architectures")


def _inputs(model) -> dict[str, Tensor]:
    """Two random images and two random texts, as the model takes them; masks included."""
    generator = torch.Generator().manual_seed(0)
    config, inputs = model.config, {}
    vision, text = getattr(config, "vision_config", config), getattr(config, "text_config", config)
    if hasattr(vision, "image_size"):
        rows, columns = patch_grid(vision)
        patch = vision.patch_size if isinstance(vision.patch_size, list | tuple) else (vision.patch_size,) * 2
        shape = (2, vision.num_channels, rows * patch[0], columns * patch[1])
        inputs["pixel_values"] = torch.randn(shape, generator=generator)
        if isinstance(model, MAEModel | MAEForPreTraining):
            inputs["noise"] = torch.rand(2, rows * columns, generator=generator)
    if hasattr(text, "vocab_size"):
        end = text.eos_token_id if text.eos_token_id < text.vocab_size else text.vocab_size - 1
        tokens = torch.randint(0, max(1, text.vocab_size - 2), (2, text.max_position_embeddings), generator=generator)
        inputs["input_ids"] = torch.where(tokens == end, 0, tokens)
        inputs["input_ids"][:, -1] = end
    return inputs


def _transformers(model, directory: str, inputs: dict) -> dict[str, Tensor]:
    import transformers

    architecture = _architectures(Path(directory, "config.json"))[0]
    peer = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32).eval()
    return dict(peer(**inputs))


def _timm(model, directory: str, inputs: dict) -> dict[str, Tensor]:
    try:
        import timm
    except ImportError as error:
        raise ImportError("`--verify` of this format needs timm: `pip install timm`.") from error
    peer = timm.create_model(f"local-dir:{directory}", pretrained=True).eval().float()
    pixels = inputs["pixel_values"]
    return {"logits": peer(pixels), "last_hidden_state": peer.forward_features(pixels)}


def _open_clip(model, directory: str, inputs: dict) -> dict[str, Tensor]:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError("`--verify` of this format needs open_clip: `pip install open_clip_torch`.") from error
    peer = open_clip.create_model(f"local-dir:{directory}").eval().float()
    outputs = {"image_embeds": peer.encode_image(inputs["pixel_values"], normalize=True)}
    if isinstance(model, CLIPModel):
        outputs["text_embeds"] = peer.encode_text(inputs["input_ids"], normalize=True)
    return outputs


def _read_back(model, directory: str, inputs: dict) -> dict[str, Tensor]:
    untold = {name: getattr(model.config, name) for name in _UNTOLD if hasattr(model.config, name)}
    return dict(type(model).from_pretrained(directory, dtype=torch.float32, **untold)(**inputs))


_PEERS: dict[str, tuple[str, Callable]] = {
    TRANSFORMERS: ("transformers", _transformers),
    "timm": ("timm", _timm),
    "open_clip": ("open_clip", _open_clip),
}
