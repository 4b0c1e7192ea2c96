"""Attention for training in bfloat16 on a CPU, where the backward pass of torch's kernel is slow.

In float32 that pass takes half to a third of the time (`benchmarks/mae_speed.py`, where attention is a quarter of a step).
Computing in float32 throughout would keep twice the memory for it; so queries, keys and values are kept as they are, and
the forward pass is done again before the backward pass.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def is_quicker_recomputed(module, query: Tensor, attention_mask: Tensor | None, dropout: float) -> bool:
    """Whether `recomputed_attention` takes the place of "sdpa": in eager training in bfloat16 on a CPU."""
    is_transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    is_plain = attention_mask is None and not dropout and not is_transformed
    return is_plain and module.training and query.dtype == torch.bfloat16 and query.device.type == "cpu"


def recomputed_attention(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
    """Attention with the signature of transformers' attention functions; see `is_quicker_recomputed` on its limits.

    Args:
        module: the attention module; `module.is_causal` masks the future.
        query: (B, N, T, H).
        key: as `query`.
        value: as `query`.
        attention_mask: None.
        scaling: factor of the scores; by default 1 / sqrt(H).
        **kwargs: of no meaning here.

    Returns:
        (B, T, N, H), and None in the place of the weights.
    """
    output = _Recomputed.apply(query, key, value, scaling, module.is_causal)
    return output.transpose(1, 2).contiguous(), None


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, scaling, is_causal):
        ctx.save_for_backward(query, key, value)
        ctx.options = {"scale": scaling, "is_causal": is_causal}
        return F.scaled_dot_product_attention(query, key, value, **ctx.options)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        inputs = [tensor.detach().float().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            output = F.scaled_dot_product_attention(*inputs, **ctx.options)
        gradients = torch.autograd.grad(output, inputs, gradient.float())
        return *(each.to(gradient.dtype) for each in gradients), None, None
