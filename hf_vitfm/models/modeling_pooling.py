"""From the tokens of a tower to one vector: at the end of a text, by attention, or as other libraries' towers need it.

Shapes: B batch, T tokens, D width.
"""

import torch
from torch import Tensor, nn

from .modeling_encoder import MLP, Attention


def last_position(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Index (B,) of each row's last token that is attended to, wherever the padding is; `tokens` is (B, T, ...)."""
    batch, length = tokens.shape[:2]
    if attention_mask is None:
        return torch.full((batch,), length - 1, device=tokens.device)
    return (attention_mask.bool() * torch.arange(length, device=tokens.device)).argmax(dim=1)


def text_position(input_ids: Tensor, pooling: str, eos_token_id: int, attention_mask: Tensor | None = None) -> Tensor:
    """Index (B,) of the token that stands for each text.

    Args:
        input_ids: (B, T).
        pooling: "eos", the first end token, or the last token of a text that has none; "argmax", the first of the
            highest ids; "last", the last place of the row, padding or not.
        eos_token_id: the end token.
        attention_mask: (B, T) with 1 for tokens, 0 for padding, which may be made of end tokens and stands for no text.
    """
    if attention_mask is not None:
        input_ids = input_ids.masked_fill(~attention_mask.bool(), -1)
    if pooling == "argmax":
        return input_ids.argmax(dim=1)
    if pooling == "last":
        return last_position(input_ids, None)
    is_end = input_ids == eos_token_id
    return torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1), last_position(input_ids, attention_mask))


def take_position(tokens: Tensor, position: Tensor) -> Tensor:
    """(B, T, D) and (B,) -> (B, D)."""
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), position]


def pool_tokens(tokens: Tensor, pooling: str, attention_mask: Tensor | None = None) -> Tensor:
    """Pool tokens (B, T, D) to (B, D).

    Args:
        tokens: (B, T, D).
        pooling: "cls" (first), "last" or "mean", the latter two of the tokens that are attended to.
        attention_mask: (B, T) with 1 for tokens to pool, or None for all.
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "last":
        return take_position(tokens, last_position(tokens, attention_mask))
    if attention_mask is None:
        return tokens.mean(dim=1)
    weights = attention_mask.to(tokens.dtype)[:, :, None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class MapPooling(nn.Module):
    """A learned query that attends to all tokens, then an MLP: "MAP", the head of SigLIP's vision tower.

    From "Scaling Vision Transformers" (Zhai et al. 2022); there is no norm before the attention, and no residual around.
    """

    def __init__(self, config):
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = Attention(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        pooled, _ = self.attention(tokens, queries=self.query.expand(tokens.shape[0], -1, -1))
        pooled = pooled + self.mlp(self.norm(pooled))
        return pooled[:, 0]
