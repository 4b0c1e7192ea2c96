"""The one transformer encoder: pre-norm layers with fused qkv, for vision and text, with or without a causal mask.

ViT, MAE (encoder and decoder) and CLIP (both towers) are built from these classes. Hidden states and attentions are
collected in the encoder's own loop, which `torch.compile(fullgraph=True)` can follow.
Shapes: B batch, T tokens, D width, N heads, H = D / N.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .modeling_cpu_attention import is_quicker_recomputed, recomputed_attention


def eager_attention(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs):
    """Attention that returns its weights; same signature as transformers' attention functions.

    Args:
        module: the attention module; `module.is_causal` masks the future where no mask is given.
        query: (B, N, T, H).
        key: as `query`.
        value: as `query`.
        attention_mask: additive float or boolean (True = attend), broadcastable to (B, N, T, T), or None.
        scaling: factor on the scores, 1 / sqrt(H) by default.
        dropout: probability on the attention weights.
        **kwargs: what other attention functions take; ignored.

    Returns:
        The output (B, T, N, H) and the weights (B, N, T, T).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(-2, -1))
    if attention_mask is None and module.is_causal:
        tokens = scores.shape[-1]
        attention_mask = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=precise).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016): a branch is dropped with `rate`, else scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.rate == 0.0 or not self.training:
            return branch
        keep = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class LayerScale(nn.Module):
    """Learned factor per channel on a residual branch (CaiT, Touvron et al. 2021)."""

    def __init__(self, dim: int, initial_value: float):
        super().__init__()
        self.initial_value = initial_value
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, branch: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return branch * self.weight


class Attention(nn.Module):
    """Multi-head attention with one fused projection for queries, keys and values."""

    def __init__(self, config, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.is_causal = is_causal
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.qkv.num_fused = 3  # three matrices for the initialisation
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        num_outputs: int | None = None,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and, with `output_attentions`, weights (B, N, T, T); see `Encoder` on `num_outputs`.

        With `queries` (B, Q, D), these ask in place of the hidden states: the output is (B, Q, D).
        """
        batch, tokens, width = hidden_states.shape
        query, key, value = self._project(hidden_states)
        if queries is not None:
            query = self._project(queries)[0]  # its keys and values, of a few tokens, are thrown away
        if num_outputs is not None:
            query = query[:, :, tokens - num_outputs :]
        # Only the eager function returns weights, so a call that wants them uses it, whatever the configuration says.
        name = "eager" if output_attentions else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        if name == "sdpa" and is_quicker_recomputed(self, query, attention_mask, dropout):
            attend = recomputed_attention
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, is_causal=self.is_causal
        )
        return self.proj(output.reshape(batch, -1, width)), weights

    def _project(self, hidden_states: Tensor) -> list[Tensor]:
        """Queries, keys and values of all heads: (B, T, D) -> three of (B, N, T, H)."""
        shape = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
        # Cut along the last dimension, so that the gradient is one concatenation in the layout that the GEMM reads.
        return [part.view(shape).transpose(1, 2) for part in self.qkv(hidden_states).chunk(3, dim=-1)]


class MLP(nn.Module):
    """Two dense layers with an activation between them; dropout after each, as in the ViT paper.

    Gated, the first layer is twice as wide: its first half, activated, is multiplied with the second.
    """

    def __init__(self, config):
        super().__init__()
        self.is_gated = config.use_gated_mlp
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size * (2 if self.is_gated else 1))
        if self.is_gated:
            self.fc1.num_fused = 2
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.fc1.is_mlp = self.fc2.is_mlp = True  # their biases are not zero in the JAX initialisation
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden_states = self.fc1(hidden_states)
        if self.is_gated:
            gate, hidden_states = hidden_states.chunk(2, dim=-1)
            hidden_states = self.activation(gate) * hidden_states
        else:
            hidden_states = self.activation(hidden_states)
        return self.dropout(self.fc2(self.dropout(hidden_states)))


class EncoderLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer (ViT paper, eq. 2 and 3)."""

    def __init__(self, config, drop_path_rate: float = 0.0, is_causal: bool = False):
        super().__init__()
        scale = config.layer_scale_init_value
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, is_causal)
        self.layer_scale1 = LayerScale(config.hidden_size, scale) if scale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_scale2 = LayerScale(config.hidden_size, scale) if scale is not None else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        num_outputs: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and the attention weights, if asked for; see `Encoder` on `num_outputs`."""
        # Names are used again so that no tensor outlives its use.
        residual = hidden_states if num_outputs is None else hidden_states[:, hidden_states.shape[1] - num_outputs :]
        hidden_states = self.norm1(hidden_states)
        hidden_states, weights = self.attention(hidden_states, attention_mask, output_attentions, num_outputs)
        hidden_states = residual + self.drop_path(self.layer_scale1(self.dropout(hidden_states)))
        del residual
        hidden_states = hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states))))
        return hidden_states, weights if output_attentions else None


class Encoder(nn.Module):
    """A stack of layers whose drop path rate rises linearly from 0 to `config.drop_path_rate`."""

    def __init__(self, config, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.is_causal = is_causal
        last = max(1, config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(
            EncoderLayer(config, config.drop_path_rate * i / last, is_causal) for i in range(config.num_hidden_layers)
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_outputs: int | None = None,
    ) -> BaseModelOutput:
        """Run all layers.

        Args:
            hidden_states: (B, T, D).
            attention_mask: (B, T) with 1 for tokens to attend to, or None for all.
            output_attentions: also return one (B, N, T, T) tensor per layer (computed by the eager function). By default
                what the configuration says, as for the next.
            output_hidden_states: also return layers + 1 tensors (B, T, D): the input, then each layer's output.
            num_outputs: of the last layer only the outputs of that many tokens, the last ones: `last_hidden_state` is
                (B, num_outputs, D). They attend to all tokens; what only the others need is not computed.

        Raises:
            ValueError: if `num_outputs` comes with a mask or causality, which are made for queries of all tokens.
        """
        if num_outputs is not None and (self.is_causal or attention_mask is not None):
            raise ValueError("`num_outputs` needs an encoder without a mask: not causal, `attention_mask=None`.")
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        mask = self._expand_mask(hidden_states, attention_mask, output_attentions)
        all_hidden_states, all_attentions = (hidden_states,) if output_hidden_states else (), ()
        for i, layer in enumerate(self.layers, 1):
            is_last = i == len(self.layers)
            hidden_states, weights = layer(hidden_states, mask, output_attentions, num_outputs if is_last else None)
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
            if output_attentions:
                all_attentions += (weights,)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=all_hidden_states if output_hidden_states else None,
            attentions=all_attentions if output_attentions else None,
        )

    def _expand_mask(self, hidden_states: Tensor, attention_mask: Tensor | None, eager: bool) -> Tensor | None:
        """The mask in the form that the attention function in use takes; None where nothing but causality is masked."""
        is_flex = self.config._attn_implementation == "flex_attention"  # the only one that ignores `is_causal`
        if attention_mask is None and (eager or not self.is_causal or not is_flex):
            return None
        if not eager:
            create = create_causal_mask if self.is_causal else create_bidirectional_mask
            extra = {"past_key_values": None} if self.is_causal else {}
            return create(config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask, **extra)
        mask = attention_mask[:, None, None, :].bool()  # (B, T) -> (B, 1, 1, T)
        if self.is_causal:
            tokens = hidden_states.shape[1]
            mask = mask & torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
        return mask
