"""Attention of bfloat16 training on a CPU, computed in float32.

torch's gradient of bfloat16 attention takes two to four times as long on a CPU as that of float32 attention (torch 2.15,
AVX512-BF16: 68 against 33 ms for 197 tokens of MAE's decoder, 19 against 6 ms for 50 of its encoder). What is kept for
backward stays in bfloat16, so the memory is that of torch's own.
Shapes: B batch, T tokens, N heads, H = width / N.
"""

import torch
from torch import Tensor


class _Float32Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scaling: float, is_causal: bool) -> Tensor:
        ctx.options = {"dropout_p": 0.0, "is_causal": is_causal, "scale": scaling}
        output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.float(), key.float(), value.float(), **ctx.options
        )
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        *tensors, logsumexp = ctx.saved_tensors
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient.float(), *(tensor.float() for tensor in tensors), logsumexp, **ctx.options
        )
        return *(result.to(gradient.dtype) for result in gradients), None, None


def is_faster_in_float32(module, query: Tensor, attention_mask: Tensor | None, dropout: float) -> bool:
    """Whether `float32_attention` can and should take the place of torch's: bfloat16 training on a CPU, nothing masked."""
    is_plain = attention_mask is None and dropout == 0
    return is_plain and module.training and query.device.type == "cpu" and query.dtype == torch.bfloat16


def float32_attention(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, is_causal=False):
    """Attention of tensors (B, N, T, H) of any dtype; same signature as transformers' attention functions.

    Returns:
        The output (B, T, N, H) in the dtype of `query`, and None for the weights.
    """
    return _Float32Attention.apply(query, key, value, scaling, is_causal).transpose(1, 2), None
