"""Softmax attention by definition and by torch, and the logarithm of its sums.

B rows, H heads, M queries, N + T keys, D head width
A mask is bool (B, H or 1, 1, N + T), True for a key that is visible.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.finite import is_finite

# Queries whose scores are held at once: a large picture's scores all together would fill the memory.
QUERIES_AT_ONCE = 1024


def scale_of(asked: float | None, q: Tensor) -> float:
    """Factor of the scores of queries (B, H, M, D), D ** -0.5 for None.

    Raises PatchError for what is no finite number.
    """
    if asked is None:
        return q.shape[-1] ** -0.5
    # a traced number is not known yet
    if not torch.compiler.is_compiling() and not is_finite(asked):
        raise PatchError(f"scale is {asked!r}; give a finite number, or None for D ** -0.5")
    return float(asked)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    blind: bool = True,
) -> Tensor:
    """Attend by the definition that other backends are held to.

        softmax(q k^T * scale) v

    q (B, H, M, D), k and v (B, H, N + T, D); computed term by term in the dtype of q.
    scale  D ** -0.5 when None
    blind  whether a row may see no key at all, which gives zeros
    """
    scores = q @ k.transpose(-2, -1) * scale_of(scale, q)  # (B, H, M, N + T)
    if mask is None:
        return scores.softmax(-1) @ v
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    if blind:
        weights = weights.masked_fill(_blind(mask), 0.0)
    return weights @ v


def attention_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    blind: bool = True,
) -> Tensor:
    """Attend as `attention_reference`, by torch's scaled_dot_product_attention."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if mask is None or not blind:
        return out
    return out.masked_fill(_blind(mask), 0.0)


def _blind(mask: Tensor) -> Tensor:
    """Rows and heads that see no key at all, bool (B, H or 1, 1, 1).

    Only their outputs become zeros: a NaN from anywhere else stays a NaN.
    """
    return ~mask.any(-1, keepdim=True)


def log_sum_exp(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Logarithm of the sum of exponentials of each query's scaled scores, (B, H, M), at least float32.

    log sum_j exp(q k_j * scale)   over the keys j that are seen
    """
    wide = wider(q.dtype)
    sums = []
    with torch.autocast(q.device.type, enabled=False):  # it would round the product again
        for part in q.split(QUERIES_AT_ONCE, dim=2):
            scores = part.to(wide) @ k.to(wide).transpose(-2, -1) * scale
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            sums.append(scores.logsumexp(-1))
    return torch.cat(sums, dim=2)


def wider(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of a dtype are kept, float32 or wider."""
    return torch.promote_types(dtype, torch.float32)
