"""From pixels to tokens: patches, prefix tokens, positions and their resize (ViT paper, section 3.1 and eq. 1).

Shapes: B batch, P patches, T tokens = prefix + P, D width, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_base import as_pair


# Interpolation of positions by library; they differ by far more than rounding, so the name is part of a configuration.
INTERPOLATIONS = {
    "bicubic": {"mode": "bicubic", "align_corners": False, "antialias": False},
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bilinear": {"mode": "bilinear", "align_corners": False, "antialias": False},
    "bilinear_align_corners": {"mode": "bilinear", "align_corners": True, "antialias": False},
}


def patch_grid(config) -> tuple[int, int]:
    """(rows, columns) of patches that a configuration's image has."""
    (height, width), (patch_height, patch_width) = as_pair(config.image_size), as_pair(config.patch_size)
    return height // patch_height, width // patch_width


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine table in the layout of MAE's code: (rows * columns, dim) float32.

    The first half of the channels encodes the column, the second half the row; each half is sines, then cosines, of
    the coordinate times 10000^(-k / (dim / 4)). Computed in float64.

    Raises:
        ValueError: if `dim` is not divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a width divisible by 4; got {dim}.")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    rows, columns = torch.meshgrid(
        *(torch.arange(length, dtype=torch.float64, device="cpu") for length in grid), indexing="ij"
    )
    angles = [coordinate.reshape(-1, 1) * frequencies for coordinate in (columns, rows)]
    return torch.cat([table for angle in angles for table in (angle.sin(), angle.cos())], dim=1).float()


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], interpolation: str) -> Tensor:
    """Resize position embeddings to another grid; prefix rows are kept.

    Args:
        positions: (1, prefix + rows * columns, D), patches last, in row-major order.
        old: (rows, columns) of `positions`.
        new: (rows, columns) wanted; need not be square.
        interpolation: a key of `INTERPOLATIONS`.

    Returns:
        (1, prefix + new rows * new columns, D) in the dtype of `positions`.
    """
    if old == new:
        return positions
    num_prefix = positions.shape[1] - old[0] * old[1]
    prefix, patches = positions[:, :num_prefix], positions[:, num_prefix:]
    image = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, P, D) -> (1, D, rows, columns)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    image = F.interpolate(image, size=new, **INTERPOLATIONS[interpolation])
    patches = image.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(positions.dtype)
    return torch.cat([prefix, patches], dim=1)


class PatchEmbeddings(nn.Module):
    """Linear projection of non-overlapping patches; patches that are left out are not projected."""

    def __init__(self, config):
        super().__init__()
        self.patch_size = as_pair(config.patch_size)
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=self.patch_size,
            stride=self.patch_size,
            bias=config.patch_bias,
        )

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches in a batch of images.

        Raises:
            ValueError: on a wrong shape, number of channels, or a size that is not a multiple of the patch.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` must be (batch, {self.num_channels} channels, height, width); "
                f"got {tuple(pixel_values.shape)}."
            )
        height, width = pixel_values.shape[2:]
        if height % self.patch_size[0] or width % self.patch_size[1]:
            raise ValueError(
                f"An image of {height}x{width} pixels does not divide into patches of "
                f"{self.patch_size[0]}x{self.patch_size[1]}. Resize or crop it to a multiple of the patch size."
            )
        return height // self.patch_size[0], width // self.patch_size[1]

    def forward(self, pixel_values: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, height, width) -> (B, P, D); with `keep`, (B, K) indices of patches, only those: (B, K, D)."""
        rows, columns = self.grid(pixel_values)
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        if keep is None:
            return self.projection(pixel_values).flatten(2).transpose(1, 2)
        batch, channels = pixel_values.shape[:2]
        height, width = self.patch_size
        # (B, C, rows, h, columns, w) -> (B, P, C * h * w), the order of the convolution's kernel
        patches = pixel_values.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, rows * columns, channels * height * width)
        patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        return F.linear(patches, self.projection.weight.flatten(1), self.projection.bias)


class PositionTable(nn.Module):
    """Position embeddings of a grid of patches behind some prefix rows, learned or fixed, and their resize.

    The base of what adds positions to tokens: `position_embeddings` is (1, prefix + P, D). A subclass makes it by
    `add_positions`, at the place among its parameters where saved files have it.
    """

    def add_positions(self, config, width: int, num_prefix: int, is_learned: bool) -> None:
        """Make the parameter for the grid of a configuration's images; it is filled by the initialisation."""
        self.config = config
        self.num_position_prefix = num_prefix
        self.is_learned = is_learned
        self.grid = patch_grid(config)
        num_positions = num_prefix + self.grid[0] * self.grid[1]
        self.position_embeddings = nn.Parameter(torch.empty(1, num_positions, width), requires_grad=is_learned)

    def initial_positions(self) -> Tensor:
        """The sine-cosine table with zero rows for the prefix: (1, prefix + P, D) float32."""
        table = sincos_positions(self.position_embeddings.shape[-1], self.grid)
        return torch.cat([table.new_zeros(self.num_position_prefix, table.shape[1]), table])[None]

    def resize(self, image_size) -> None:
        """Resize the position embeddings for images of another size, in place of the old ones."""
        height, width = as_pair(image_size)
        patch_height, patch_width = as_pair(self.config.patch_size)
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"`image_size` must be a multiple of the patch size {patch_height}x{patch_width}; got {height}x{width}."
            )
        old, new = self.position_embeddings, (height // patch_height, width // patch_width)
        resized = resize_positions(old.detach(), self.grid, new, self.config.position_interpolation)
        self.position_embeddings = nn.Parameter(resized, requires_grad=old.requires_grad)
        self.grid = new

    def positions(self, grid: tuple[int, int], interpolate: bool) -> Tensor:
        """Position embeddings for a batch's grid: (1, prefix + P, D)."""
        if grid != self.grid and not interpolate:
            patch = as_pair(self.config.patch_size)
            size = [count * pixels for count, pixels in zip(grid, patch, strict=True)]
            own = [count * pixels for count, pixels in zip(self.grid, patch, strict=True)]
            raise ValueError(
                f"The images are {size[0]}x{size[1]} pixels, the model's positions are for {own[0]}x{own[1]}. Pass "
                f"`interpolate_pos_encoding=True`, or load the model with `from_pretrained(..., image_size={size})`."
            )
        return resize_positions(self.position_embeddings, self.grid, grid, self.config.position_interpolation)


class VisionEmbeddings(PositionTable):
    """Patches plus positions, preceded by the prefix tokens: class, distillation, registers (registers last).

    `position_embeddings` has a row for the class and the distillation token, none for registers, then one per patch.
    """

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.patch_embeddings = PatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.use_class_token else None
        self.distillation_token = nn.Parameter(torch.empty(1, 1, width)) if config.use_distillation_token else None
        num_registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.empty(1, num_registers, width)) if num_registers else None
        num_prefix = int(config.use_class_token) + int(config.use_distillation_token)
        self.add_positions(config, width, num_prefix, is_learned=config.position_embedding_type == "learned")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the first patch."""
        return self.num_position_prefix + self.config.num_register_tokens

    def forward(self, pixel_values: Tensor, interpolate: bool = False, keep: Tensor | None = None) -> Tensor:
        """(B, C, height, width) -> (B, prefix + P, D), or (B, prefix + K, D) for `keep` of shape (B, K).

        In training with `patch_dropout`, a random share of the patches is left out before it is embedded.
        """
        grid = self.patch_embeddings.grid(pixel_values)
        positions = self.positions(grid, interpolate)
        num_prefix = self.num_position_prefix
        if keep is None and self.training and self.config.patch_dropout > 0:
            keep = self.sample_patches(pixel_values.shape[0], grid[0] * grid[1], pixel_values.device)
        tokens = self.patch_embeddings(pixel_values, keep)
        patch_positions = positions[:, num_prefix:]
        if keep is not None:
            patch_positions = patch_positions.expand(tokens.shape[0], -1, -1)
            patch_positions = patch_positions.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        tokens = tokens + patch_positions
        prefix = [token for token in (self.cls_token, self.distillation_token) if token is not None]
        prefix = [token + positions[:, i : i + 1] for i, token in enumerate(prefix)]
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        if prefix:
            tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)
        return self.dropout(tokens)

    def sample_patches(self, batch: int, num_patches: int, device) -> Tensor:
        """Indices (batch, kept) of the patches that patch dropout keeps, from the global random generator."""
        share = 1 - self.config.patch_dropout
        num_kept = max(1, int(num_patches * share + 1e-6))  # 10 * (1 - 0.8) is 1.9999999999999996
        return torch.rand(batch, num_patches, device=device).argsort(dim=1)[:, :num_kept]
