"""Functions that conversion applies to tensors, on real tensors and on meta ones.

A fused projection of width W holds n projections in one tensor (n W, X), with a bias (n W,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def same(x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


@dataclass(frozen=True)
class Rows:
    """Rows of a fused tensor, from (of W, ...) to ((stop - start) W, ...).

    The tensor holds `of` equal projections.  Those from start to stop are taken.
    """

    start: int
    stop: int
    of: int

    def __call__(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.of, -1))[self.start : self.stop].flatten(0, 1)


@dataclass(frozen=True)
class HeadRows:
    """Rows of one projection in a 1x1 convolution fused head by head, from (H of D, X, 1) to (H D, X).

    DeepFloyd IF's rows run [q k v][q k v]..., D of each.  Thirds of the tensor would load and be wrong.
    """

    index: int
    of: int
    head_dim: int = 64

    def __call__(self, x: Tensor) -> Tensor:
        heads = x.unflatten(0, (-1, self.of, self.head_dim))  # (H, of, D, ...)
        return linear(heads[:, self.index].flatten(0, 1))


def linear(x: Tensor) -> Tensor:
    """Matrix (C, X) of a 1x1 convolution (C, X, 1) or (C, X, 1, 1).   A bias or a matrix stays."""
    if x.dim() < 3:
        return x
    return x.flatten(2).squeeze(2)


def swapped(x: Tensor) -> Tensor:
    """Tensor (2 W, ...) with its halves exchanged, (shift, scale) to diffusers' (scale, shift)."""
    return torch.cat(x.chunk(2)[::-1])


def transposed(x: Tensor) -> Tensor:
    """Transpose of a matrix, because OpenCLIP multiplies x P where a Linear multiplies x W^T."""
    return x.T
