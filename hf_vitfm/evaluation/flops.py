"""Floating-point operations of a forward pass, by formula from the shapes of the weights."""

from dataclasses import dataclass

from torch import nn

from ..models.modeling_clip import CLIPModel
from ..models.modeling_embeddings import patch_grid
from ..models.modeling_encoder import Encoder
from ..models.modeling_mae import MAEForPreTraining
from ..models.modeling_masking import num_visible


@dataclass(frozen=True)
class Cost:
    """What one part of a model computes for one image or one text.

    Attributes:
        flops: multiplications and additions in matrix products; a multiply-add counts as two.
        tokens: how many tokens its layers see.
    """

    flops: int
    tokens: int

    @property
    def per_token(self) -> float:
        """Operations per token."""
        return self.flops / self.tokens


def count_flops(model: nn.Module) -> dict[str, Cost]:
    """Count the operations of one forward pass in evaluation.

    Element-wise operations (norms, activations, softmax) are left out, as is usual. A masked autoencoder's encoder sees
    the visible patches, its decoder predicts all.

    Args:
        model: one of our models; it may be on the meta device.

    Returns:
        Costs by part: "encoder"; "encoder" and "decoder"; "image tower" and "text tower". A tower of another library is
        left out.
    """
    if isinstance(model, CLIPModel):
        towers = {"image tower": (model.vision_model, _image), "text tower": (model.text_model, _text)}
        projections = {"image tower": model.visual_projection, "text tower": model.text_projection}
        costs = {
            name: _plus(count(tower), _linear(projections[name]))
            for name, (tower, count) in towers.items()
            if isinstance(getattr(tower, "encoder", None), Encoder)
        }
        return costs
    if isinstance(model, MAEForPreTraining):
        return {"encoder": _image(model.vit), "decoder": _decoder(model)}
    base = model.base_model
    cost = _text(base) if hasattr(base.embeddings, "token_embedding") else _image(base)
    heads = 0 if base is model else _linear(model) - _linear(base)
    return {"encoder": _plus(cost, heads)}


def _plus(cost: Cost, weights: int) -> Cost:
    """With dense layers of that many weights on one token more."""
    return Cost(cost.flops + 2 * weights, cost.tokens)


def _linear(module: nn.Module) -> int:
    """Weights of all dense layers, without biases."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _stack(encoder: Encoder, tokens: int, num_outputs: int | None = None) -> int:
    """Operations of all layers on that many tokens; the last layer may compute fewer outputs."""
    num_outputs = tokens if num_outputs is None else num_outputs
    width, total = encoder.config.hidden_size, 0
    for layer in encoder.layers:
        outputs = num_outputs if layer is encoder.layers[-1] else tokens
        qkv = layer.attention.qkv.weight.numel()
        total += 2 * tokens * qkv + 2 * outputs * (_linear(layer) - qkv) + 4 * outputs * tokens * width
    return total


def _image(model: nn.Module) -> Cost:
    config, embeddings = model.config, model.embeddings
    rows, columns = patch_grid(config)
    patches = rows * columns
    if mask_ratio := getattr(config, "mask_ratio", 0):
        patches = num_visible(patches, mask_ratio)
    tokens = patches + embeddings.num_prefix_tokens
    cutting = 2 * patches * embeddings.patch_embeddings.projection.weight.numel()
    rest = _linear(model) - _linear(model.encoder)  # of the pooled output
    pooling, attended = getattr(model, "attention_pooling", None), 0
    if pooling is not None:  # one query looks at all tokens
        attended = 2 * tokens * pooling.attention.qkv.weight.numel() + 4 * tokens * config.hidden_size
    return Cost(cutting + _stack(model.encoder, tokens) + 2 * rest + attended, tokens)


def _text(model: nn.Module) -> Cost:
    tokens = model.config.max_position_embeddings
    rest = _linear(model) - _linear(model.encoder)
    return Cost(_stack(model.encoder, tokens) + 2 * rest, tokens)


def _decoder(model: MAEForPreTraining) -> Cost:
    config = model.config
    rows, columns = patch_grid(config)
    patches = rows * columns
    visible = num_visible(patches, config.mask_ratio) if config.mask_ratio else patches
    embedding = 2 * (visible + 1) * model.decoder.embed.weight.numel()
    prediction = 2 * patches * model.predict.weight.numel()
    return Cost(embedding + _stack(model.decoder.encoder, patches + 1, patches) + prediction, patches + 1)
