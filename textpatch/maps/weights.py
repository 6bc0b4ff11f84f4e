"""Weights of attention to and from some tokens, made query by query without the whole map.

    p_h(i, j) = exp(q_h(i) k_h(j) s + m(i, j) - L_h(i)),   L the logarithm of the sum over all keys

H heads, M queries, N keys, D head width, s scale, m mask
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

SCORES_AT_ONCE = 2**22  # numbers that are held at once, 16 MB in float32


def weights_on(
    q: Tensor,
    k: Tensor,
    keys: Sequence[int],
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Weight (H, M) that each query gives to some keys together, sum over j of p_h(i, j).

    q (H, M, D), k (H, N, D), mask and scale as for `attention_rows`
    """
    parts = [rows[..., list(keys)].sum(-1) for rows in attention_rows(q, k, mask, scale)]
    return torch.cat(parts, dim=1)


def weights_of(
    q: Tensor,
    k: Tensor,
    keys: slice,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Weight (H, keys) that each of some keys gets of the queries, mean over i of p_h(i, j).

    q (H, M, D), k (H, N, D), mask and scale as for `attention_rows`
    """
    total = sum(rows[..., keys].sum(1) for rows in attention_rows(q, k, mask, scale))
    return total / q.shape[1]


def attention_rows(
    q: Tensor, k: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Iterator[Tensor]:
    """Yield the weights (H, some queries, N) of a part of the queries at a time, in float32 at least.

    mask   (H or 1, M or 1, N), boolean and True for a key in sight, or what is added to the scores
    scale  D ** -0.5 when None
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    wide = torch.promote_types(q.dtype, torch.float32)
    at_once = max(1, SCORES_AT_ONCE // (k.shape[0] * k.shape[1]))
    for first in range(0, q.shape[1], at_once):
        part = slice(first, first + at_once)
        scores = q[:, part].to(wide) @ k.to(wide).mT * scale
        if mask is not None:
            own = mask if mask.shape[1] == 1 else mask[:, part]
            scores = scores + _added(own, wide)
        yield scores.softmax(-1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, float("-inf")
    )
