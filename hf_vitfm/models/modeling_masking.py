"""Which patches a masked autoencoder sees: random, block-wise and grid-wise masking (MAE, section 4.1 and Fig. 6).

Every kind of masking is a matrix of noise, (B, P): the patches with the smallest noise are visible. So masks can be
made anywhere, for each sample alone, and passed to a model as one tensor.
Shapes: B batch, P patches, V visible patches.
"""

import math

import torch
from torch import Tensor


_MIN_BLOCK = 16  # patches, of BEiT's block-wise masking
_BLOCK_ASPECT = 0.3  # smallest height / width of a block, and the inverse of the largest


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """V of P patches, as MAE's code counts them."""
    return int(num_patches * (1 - mask_ratio))


def draw_noise(
    masking: str, grid: tuple[int, int], mask_ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the noise of one sample: (P,) float32 on the CPU.

    Args:
        masking: "random", "block" or "grid".
        grid: (rows, columns) of patches.
        mask_ratio: share of patches that will be masked, in [0, 1).
        generator: of the CPU; the global one by default.

    Raises:
        ValueError: if there is no such masking.
    """
    rows, columns = grid
    noise = torch.rand(rows * columns, generator=generator)
    if masking == "random":
        return noise
    if masking == "grid":
        visible = torch.zeros(grid, dtype=torch.bool)
        visible[::2, ::2] = True
        return noise + ~visible.flatten()
    if masking == "block":
        num_masked = rows * columns - num_visible(rows * columns, mask_ratio)
        return noise + _draw_blocks(grid, num_masked, generator).flatten()
    raise ValueError(f"`masking` must be one of random, block, grid; got {masking!r}.")


def _draw_blocks(grid: tuple[int, int], num_masked: int, generator: torch.Generator | None) -> Tensor:
    """Blocks of random size, shape and place until at least `num_masked` patches are covered (BEiT, algorithm 1)."""
    rows, columns = grid
    mask = torch.zeros(grid, dtype=torch.bool)
    while int(mask.sum()) < num_masked:
        size, shape, down, right = torch.rand(4, generator=generator).tolist()
        left_over = num_masked - int(mask.sum())
        area = _MIN_BLOCK + size * max(0, left_over - _MIN_BLOCK)
        aspect = math.exp((2 * shape - 1) * math.log(1 / _BLOCK_ASPECT))
        height = min(rows, max(1, round(math.sqrt(area * aspect))))
        width = min(columns, max(1, round(math.sqrt(area / aspect))))
        top, left = int(down * (rows - height + 1)), int(right * (columns - width + 1))
        mask[top : top + height, left : left + width] = True
    return mask


def fixed_noise(num_patches: int, device) -> Tensor:
    """Noise that is always the same, (P,) float32, for evaluation without noise of its own: a hash of the position."""
    state = torch.arange(1, num_patches + 1, device=device, dtype=torch.int64)
    for _ in range(2):  # a small integer hash in 32 bits
        state = ((state >> 16) ^ state) * 0x45D9F3B & 0xFFFFFFFF
    state = (state >> 16) ^ state
    return (state >> 8).float() / (1 << 24)


def split_patches(noise: Tensor, visible: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split patches by their noise.

    Args:
        noise: (B, P), any dtype.
        visible: V, the number of patches that stay visible.

    Returns:
        The indices of the visible patches (B, V), the mask (B, P) in float32 with 1 for a masked patch, and
        `ids_restore` (B, P): the place of each patch in the order visible, then masked.
    """
    order = noise.argsort(dim=1, stable=True)
    ids_restore = invert_order(order)
    return order[:, :visible], (ids_restore >= visible).float(), ids_restore


def invert_order(order: Tensor) -> Tensor:
    """Permutations (B, P) -> their inverses: from an order of patches the place of each patch in it, and back."""
    return order.scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
