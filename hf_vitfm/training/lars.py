"""LARS, the optimizer of MAE's linear probes with their batch of 16,384."""

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), as MAE's linear probe and MoCo v3 have it.

    For every parameter with more than one dimension the decayed gradient is scaled by
    `trust_coefficient * norm(weight) / norm(decayed gradient)` (by 1 where either norm is 0); biases and norms are
    neither scaled nor decayed. The learning rate is applied outside the momentum:
    `momentum <- m * momentum + gradient; weight <- weight - lr * momentum`.

    Args:
        params: parameters or groups of them.
        lr: learning rate; MAE: 0.1 per 256 images.
        momentum: in [0, 1).
        weight_decay: at least 0.
        trust_coefficient: above 0.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust_coefficient=1e-3):
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1 or trust_coefficient <= 0:
            raise ValueError(
                "LARS needs lr >= 0, weight_decay >= 0, momentum in [0, 1) and trust_coefficient > 0; got "
                f"{lr}, {weight_decay}, {momentum} and {trust_coefficient}."
            )
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient},
        )

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient; returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad
                if weight.ndim > 1:
                    update = update + group["weight_decay"] * weight
                    weight_norm, update_norm = weight.norm(), update.norm()
                    ratio = group["trust_coefficient"] * weight_norm / update_norm
                    is_defined = (weight_norm > 0) & (update_norm > 0)
                    update = update * torch.where(is_defined, ratio, torch.ones_like(ratio))
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                weight.sub_(group["lr"] * buffer)
        return loss
