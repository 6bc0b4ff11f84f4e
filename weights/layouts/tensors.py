"""What conversion does to a tensor beyond renaming it: pure functions, on real tensors and on meta ones.

A fused projection of width W holds n projections in one tensor (n W, X), of which the bias is (n W,).
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
    """Parts start to stop of `of` equal parts that a tensor is fused of: (of W, ...) -> ((stop - start) W, ...)."""

    start: int
    stop: int
    of: int

    def __call__(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.of, -1))[self.start : self.stop].flatten(0, 1)


@dataclass(frozen=True)
class HeadRows:
    """One of `of` projections that a 1x1 convolution holds head by head: (H of D, X, 1) -> (H D, X).

    DeepFloyd IF's rows run [q k v][q k v]..., D of each; thirds of the tensor would load and be wrong.
    """

    part: int
    of: int
    head_dim: int = 64

    def __call__(self, x: Tensor) -> Tensor:
        heads = x.unflatten(0, (-1, self.of, self.head_dim))  # (H, of, D, ...)
        return linear(heads[:, self.part].flatten(0, 1))


def linear(x: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix it is: (C, X, 1) or (C, X, 1, 1) -> (C, X); a bias or a matrix stays."""
    return x if x.dim() < 3 else x.flatten(2).squeeze(2)


def swapped(x: Tensor) -> Tensor:
    """The halves exchanged, (2 W, ...): the originals' (shift, scale) is (scale, shift) in diffusers layout."""
    return torch.cat(x.chunk(2)[::-1])


def transposed(x: Tensor) -> Tensor:
    """(A, B) -> (B, A): OpenCLIP multiplies x P where a Linear multiplies x W^T."""
    return x.T
