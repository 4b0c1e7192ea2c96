"""Losses over pairs: CLIP's symmetric cross entropy and SigLIP's sigmoid loss over all pairs, and the margin loss.

The matrix of N x N logits never exists. It is computed in tiles, once for the loss and once more for the gradients (the
sigmoid loss needs one pass for both), and each tile serves both directions. Gradients are made in the forward pass, when
they are wanted, so that what waits for the backward pass has the size of the embeddings.

Across processes each one computes the logits of its own images with all texts: the texts are gathered, the statistics
of the texts' softmax and the gradients of the texts are reduced. What travels per process is twice the texts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


OBJECTIVES = ("sigmoid", "softmax")
_OPERATOR = re.sub(r"\W", "_", __name__)  # a copy of this file elsewhere (remote code) registers under its own name


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    objective: str = "softmax",
    tile_size: int = 1024,
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """The loss that tells every image's own text from all other texts, and every text's own image from all others.

    The logits are `logit_scale * image_embeds @ text_embeds.T + logit_bias`. "softmax" is the cross entropy of rows and
    of columns, mean over pairs and both directions (Radford et al. 2021, figure 3); a bias changes nothing in it.
    "sigmoid" is the sum over the N x N logits of -log sigmoid(y logit) / N, where y is 1 for a pair and -1 for any other
    combination (Zhai et al. 2023, section 3.2). Value and gradients are those of the whole matrix; memory is that of the
    embeddings and a few tiles. Can be differentiated once, not twice.

    Args:
        image_embeds: (pairs, dim) of any float dtype; unit length is customary, not enforced.
        text_embeds: (pairs, dim); row i belongs to image i.
        logit_scale: what multiplies the cosines: already exponentiated. A number or a tensor of one element.
        logit_bias: what is added to them; a number or a tensor of one element.
        objective: "softmax" or "sigmoid".
        tile_size: rows and columns of a tile; changes time and memory, not the result.
        group: None = the pairs of this process alone. Else, the processes whose pairs make up the batch; each passes its
            own rows (any number, in the order of ranks), needs gradients for the same inputs as the others, and calls
            this at the same time. The value is that of the whole batch on every process. The gradients are those of the
            whole batch times the number of processes, for this process's share of the work: their mean over processes,
            as DDP and FSDP take it, is the gradient of the whole batch, for the towers, the scale and the bias.

    Returns:
        a scalar in float32 (float64 if an embedding is float64), under autocast too.

    Raises:
        ValueError: if the embeddings are not two matrices of one shape, there is no pair, scale or bias have more than
            one element, or `objective`, `tile_size` or `group` is none of those allowed.
        TypeError: if the embeddings are not floats.
    """
    _check_embeddings(image_embeds, text_embeds)
    if objective not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}; got {objective!r}.")
    if not isinstance(tile_size, int) or tile_size < 1:
        raise ValueError(f"`tile_size` must be a whole number from 1 on; got {tile_size!r}.")
    if group is None and not len(image_embeds):
        raise ValueError("The contrastive loss needs at least one pair; got none.")
    dtype = _accumulation_dtype(image_embeds, text_embeds)
    scale = _as_scalar("logit_scale", logit_scale, image_embeds, dtype)
    bias = _as_scalar("logit_bias", 0.0 if logit_bias is None else logit_bias, image_embeds, dtype)
    inputs = (image_embeds, text_embeds, scale, bias)
    wanted = [tensor.requires_grad and torch.is_grad_enabled() for tensor in inputs]
    apply = _ContrastiveLoss.apply if group is None else _across_processes
    return apply(*inputs, wanted, objective, tile_size, group)


def pairwise_margin_loss(first: Tensor, second: Tensor, dissimilar: Tensor, margin: float = 1.0) -> Tensor:
    """Pull similar pairs together and push dissimilar ones apart, up to a margin (Hadsell, Chopra and LeCun 2006, eq. 4).

    With D the Euclidean distance of a pair: D^2 / 2 if it is similar, max(0, margin - D)^2 / 2 if it is not. At D = 0 no
    direction leads apart, so that the gradient there is 0.

    Args:
        first: (pairs, dim) embeddings of any float dtype.
        second: (pairs, dim) embeddings of their partners.
        dissimilar: (pairs,) booleans or numbers, the paper's Y: 0 for a similar pair, 1 for a dissimilar one.
        margin: the distance above 0 beyond which a dissimilar pair costs nothing.

    Returns:
        the mean over the pairs, a scalar in float32 (float64 if an embedding is float64).

    Raises:
        ValueError: if the shapes do not fit, there is no pair, or `margin` is not above 0.
        TypeError: if the embeddings are not floats.
    """
    _check_embeddings(first, second, names=("first", "second"))
    if dissimilar.shape != first.shape[:1]:
        raise ValueError(
            f"`dissimilar` must hold one number per pair, shape ({len(first)},); got {tuple(dissimilar.shape)}."
        )
    if not margin > 0:
        raise ValueError(f"`margin` must be above 0; got {margin}.")
    if not len(first):
        raise ValueError("The margin loss needs at least one pair; got none.")
    dtype = _accumulation_dtype(first, second)
    distance = torch.linalg.vector_norm(first.to(dtype) - second.to(dtype), dim=1)
    apart = dissimilar.to(dtype)
    return ((1 - apart) * distance.square() + apart * (margin - distance).clamp(min=0).square()).mean() / 2


def _check_embeddings(first: Tensor, second: Tensor, names: Sequence[str] = ("image_embeds", "text_embeds")) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must be matrices of one shape (pairs, dim), row by row a pair; got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    for name, embeds in zip(names, (first, second), strict=True):
        if not embeds.is_floating_point():
            raise TypeError(f"`{name}` must be floats; got {embeds.dtype}.")


def _as_scalar(name: str, value: Tensor | float, embeds: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=dtype, device=embeds.device)
    if value.numel() != 1:
        raise ValueError(f"`{name}` must be a number or a tensor of one element; got shape {tuple(value.shape)}.")
    return value


def _accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


@torch.compiler.disable  # how many rows the other processes hold is known only when it runs
def _across_processes(*arguments) -> Tensor:
    return _ContrastiveLoss.apply(*arguments)


class _ContrastiveLoss(torch.autograd.Function):
    """Keeps the gradients that the forward pass made, in float32 or float64 whatever the inputs' dtype."""

    @staticmethod
    def forward(ctx, image, text, scale, bias, wanted, objective, tile_size, group):
        inputs = (image, text, scale, bias)
        if group is None:
            loss, *gradients = _alone(*inputs, wanted, objective, tile_size)
        else:
            shares = _Shares.of(len(image), group, image.device)
            loss, *gradients = _loss_and_gradients(inputs, wanted, objective, tile_size, shares)
        ctx.wanted, ctx.dtypes = wanted, [tensor.dtype for tensor in inputs]
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, output_gradient):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "`contrastive_loss` can be differentiated once only: its gradients are made in the forward pass. Call "
                "backward without `create_graph=True`."
            )
        kept = zip(ctx.saved_tensors, ctx.wanted, ctx.dtypes, strict=True)
        gradients = [(output_gradient * gradient).to(dtype) if wanted else None for gradient, wanted, dtype in kept]
        return *gradients, None, None, None, None


@dataclass(frozen=True)
class _Shares:
    """How the rows of the batch lie over the processes of a group, and what the processes tell each other."""

    group: "dist.ProcessGroup | None"
    counts: tuple[int, ...]
    rank: int = 0

    @classmethod
    def of(cls, count: int, group: "dist.ProcessGroup", device: torch.device) -> "_Shares":
        """Ask every process for its number of rows."""
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("This process is no member of `group`. Pass a group to its members only.")
        counts = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(counts, torch.tensor([count], device=device), group)
        if not counts.any():
            raise ValueError("The contrastive loss needs at least one pair; no process of `group` has one.")
        return cls(group, tuple(counts.tolist()), rank)

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def first(self) -> int:
        """Where the rows of this process begin in the whole batch."""
        return sum(self.counts[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, (total, dim); blocks of one size travel, since not every backend takes others."""
        if self.group is None:
            return rows
        longest, dim = max(self.counts), rows.shape[1]
        blocks = rows.new_empty(len(self.counts) * longest, dim)
        dist.all_gather_into_tensor(blocks, F.pad(rows, (0, 0, 0, longest - len(rows))).contiguous(), self.group)
        if min(self.counts) == longest:
            return blocks
        return torch.cat([block[:count] for block, count in zip(blocks.split(longest), self.counts, strict=True)])

    def scatter_sum(self, rows: Tensor) -> Tensor:
        """The sum over processes of what each has for the whole batch, (total, dim), at the rows of this one."""
        if self.group is None:
            return rows
        longest, dim = max(self.counts), rows.shape[1]
        if min(self.counts) < longest:
            blocks = rows.new_zeros(len(self.counts), longest, dim)
            for block, part in zip(blocks, rows.split(self.counts), strict=True):
                block[: len(part)] = part
            rows = blocks.view(-1, dim)
        own = rows.new_empty(longest, dim)
        dist.reduce_scatter_tensor(own, rows, group=self.group)
        return own[: self.counts[self.rank]]

    def reduce(self, values: Tensor, operation: str) -> None:
        """Replace `values` by their "max" or "sum" over the processes."""
        if self.group is not None:
            dist.all_reduce(values, getattr(dist.ReduceOp, operation.upper()), self.group)


@torch.library.custom_op(f"hf_vitfm::{_OPERATOR}", mutates_args=())
def _alone(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, wanted: Sequence[bool], objective: str, tile_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss of one process as a single operator, whose loops torch.compile does not unroll."""
    shares = _Shares(None, (len(image),))
    return _loss_and_gradients((image, text, scale, bias), wanted, objective, tile_size, shares)


@_alone.register_fake
def _(image, text, scale, bias, wanted, objective, tile_size):
    dtype = _accumulation_dtype(image, text)
    inputs = zip((image, text, scale, bias), wanted, strict=True)
    gradients = [
        torch.empty_like(x, dtype=dtype) if is_wanted else x.new_empty(0, dtype=dtype) for x, is_wanted in inputs
    ]
    return image.new_empty((), dtype=dtype), *gradients


def _loss_and_gradients(
    inputs: Sequence[Tensor], wanted: Sequence[bool], objective: str, tile_size: int, shares: _Shares
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients by (image, text, scale, bias); empty where they are not wanted."""
    image, text, scale, bias = inputs
    dtype = _accumulation_dtype(image, text)
    with torch.autocast(image.device.type, enabled=False):
        tiles = _Tiles(
            image.to(dtype), shares.gather(text).to(dtype), scale.to(dtype).view(()), tile_size, shares.first
        )
        slopes = _Slopes(tiles, wanted)
        if objective == "softmax":
            loss, unit = _softmax(tiles, slopes, shares), 1 / (2 * shares.total)
        else:
            loss, unit = _sigmoid(tiles, slopes, shares, bias.to(dtype).view(())), 1 / shares.total
        gradients = slopes.gradients(unit * len(shares.counts), shares)
    return loss, *(
        gradient.view_as(x) if is_wanted else gradient
        for x, is_wanted, gradient in zip(inputs, wanted, gradients, strict=True)
    )


@dataclass(frozen=True)
class _Tiles:
    """The scaled products of all images here with all texts of the batch, tile by tile."""

    image: Tensor  # (rows here, dim)
    text: Tensor  # (N, dim)
    scale: Tensor  # ()
    size: int
    first: int  # the column of row 0's own text

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, int]]:
        """Rows, columns, their logits, and the diagonal of the tile that holds the pairs (perhaps an empty one)."""
        for rows in _parts(len(self.image), self.size):
            image = self.image[rows] * self.scale
            for columns in _parts(len(self.text), self.size):
                yield rows, columns, image @ self.text[columns].mT, self.first + rows.start - columns.start


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class _Slopes:
    """Adds up, tile by tile, what the derivatives of the loss by the logits mean for what the logits are made of."""

    def __init__(self, tiles: _Tiles, wanted: Sequence[bool]):
        self.wants_image, self.wants_text, self.wants_scale, self.wants_bias = self.wanted = wanted
        self.tiles = tiles
        # The gradient of the scale follows from that of either side.
        has_image = self.wants_image or (self.wants_scale and not self.wants_text)
        self.image = torch.zeros_like(tiles.image) if has_image else None
        self.text = torch.zeros_like(tiles.text) if self.wants_text else None
        self.bias = tiles.image.new_zeros(())

    def add(self, rows: slice, columns: slice, slopes: Tensor) -> None:
        """Take the derivatives by the logits of one tile."""
        if self.image is not None:
            self.image[rows].addmm_(slopes, self.tiles.text[columns])
        if self.text is not None:
            self.text[columns].addmm_(slopes.mT, self.tiles.image[rows])

    def gradients(self, unit: float, shares: _Shares) -> list[Tensor]:
        """By (image, text, scale, bias), empty where not wanted; `unit` is what the slopes are counted in."""
        tiles, empty = self.tiles, self.bias.new_empty
        by_image, by_text, by_scale = empty(0), empty(0), empty(0)
        if self.wants_scale:
            by_scale = (tiles.text * self.text if self.image is None else tiles.image * self.image).sum() * unit
        if self.wants_image:
            by_image = self.image.mul_(tiles.scale * unit)
        if self.wants_text:
            by_text = shares.scatter_sum(self.text.mul_(tiles.scale * unit))
        return [by_image, by_text, by_scale, self.bias * unit if self.wants_bias else empty(0)]


class _LogSumExp:
    """log(sum(exp(x))) of many x for each of some entries, given tile by tile."""

    def __init__(self, like: Tensor):
        self.maximum, self.total = like.new_full(like.shape[:1], -torch.inf), like.new_zeros(like.shape[:1])

    def add(self, entries: slice, tile: Tensor, dim: int) -> None:
        """Take the numbers of a tile for these entries; they lie along `dim`."""
        before = self.maximum[entries]
        maximum = torch.maximum(before, tile.amax(dim))
        added = (tile - maximum.unsqueeze(dim)).exp_().sum(dim)
        self.total[entries] = self.total[entries] * (before - maximum).exp() + added
        self.maximum[entries] = maximum

    @property
    def value(self) -> Tensor:
        return self.maximum + self.total.log()


def _softmax(tiles: _Tiles, slopes: _Slopes, shares: _Shares) -> Tensor:
    """Mean of both directions' cross entropies; the slopes are counted in 1 / (2 N)."""
    by_row, by_column = _LogSumExp(tiles.image), _LogSumExp(tiles.text)
    own_logits = tiles.image.new_empty(len(tiles.image))
    for rows, columns, logits, diagonal in tiles:
        by_row.add(rows, logits, dim=1)
        by_column.add(columns, logits, dim=0)
        pairs = logits.diagonal(diagonal)
        start = rows.start + max(-diagonal, 0)
        own_logits[start : start + len(pairs)] = pairs
    # log-sum-exp minus own logit, as (maximum - own logit) + log(total): the first is exact, and small where it matters.
    before = by_column.maximum.clone()
    shares.reduce(by_column.maximum, "max")
    own_columns = by_column.maximum[shares.first : shares.first + len(own_logits)]
    here = (by_row.maximum - own_logits).sum() + by_row.total.log().sum() + (own_columns - own_logits).sum()
    sums = torch.cat([by_column.total * (before - by_column.maximum).exp(), here.view(1)])
    shares.reduce(sums, "sum")
    by_column.total = sums[:-1]
    loss = (sums[-1] + by_column.total.log().sum()) / (2 * shares.total)
    if any(slopes.wanted[:3]):  # the gradient of a bias, which moves all logits alike, stays 0
        row_value, column_value = by_row.value.unsqueeze(1), by_column.value
        for rows, columns, logits, diagonal in tiles:
            probabilities = (logits - row_value[rows]).exp_().add_(logits.sub_(column_value[columns]).exp_())
            probabilities.diagonal(diagonal).sub_(2)
            slopes.add(rows, columns, probabilities)
    return loss


def _sigmoid(tiles: _Tiles, slopes: _Slopes, shares: _Shares, bias: Tensor) -> Tensor:
    """Sum of -log sigmoid(y logit) over the matrix / N; the slopes are counted in 1 / N."""
    loss = tiles.image.new_zeros(())
    for rows, columns, logits, diagonal in tiles:
        logits.add_(bias).diagonal(diagonal).neg_()  # now -y logit
        loss += F.softplus(logits, threshold=40).sum()  # beyond 40 it is the identity, in float64 too
        if any(slopes.wanted):
            logits.sigmoid_().diagonal(diagonal).neg_()
            slopes.add(rows, columns, logits)
            if slopes.wants_bias:
                slopes.bias += logits.sum()
    shares.reduce(loss, "sum")
    return loss / shares.total
