"""Attention whose text keys and values are read from a bank through a table of slots.

B rows, R bank rows, H heads, M image queries, N image keys, T text tokens read, S bank tokens, D head width

    out[b, h] = softmax(q[b, h] [k_image[b, h]; k_bank[h, slots[b, h]]]^T * scale) [v_image; v_bank[h, slots]]

`slots` is int (B, H or 1, T) and holds `donor_row * S + donor_token`; -1 hides that token from every query.
No table means that row b reads row b.  Image keys come first, as in the published SD3 weights' training
code; the order changes nothing but the last bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_text(bank: Tensor, slots: Tensor | None) -> Tensor:
    """Text keys or values as each row reads them: (R, H, S, D) by slots (B, H or 1, T) -> (B, H, T, D)."""
    if slots is None:
        return bank
    tokens = bank.shape[2]
    heads = torch.arange(bank.shape[1], device=bank.device)[None, :, None]  # (1, H, 1)
    read = slots.clamp(min=0).long()
    return bank[read // tokens, heads, read % tokens]  # (B, H, T, D)


def segment_attention(q, k, v, *, slots_k=None, slots_v=None, scale=None, backend="sdpa"):
    """Attend from image and text queries to image keys and gathered text keys.

    q = (image (B, H, M, D), text (B, H, Mt, D) or None); k, v = (image (B, H, N, D) or None, text bank
    (R, H, S, D)); slots_k, slots_v: int (B, H or 1, T) or None, slots_v defaults to slots_k.
    scale defaults to D ** -0.5.  Returns (image (B, H, M, D), text (B, H, Mt, D) or None), q's dtype.
    A query that may read no key at all gets zeros.  `backend` is `sdpa` or `reference`, the definition.
    """
    slots_v = slots_k if slots_v is None else slots_v
    queries = torch.cat([x for x in q if x is not None], dim=2)
    keys = torch.cat([x for x in (k[0], gather_text(k[1], slots_k)) if x is not None], dim=2)
    values = torch.cat([x for x in (v[0], gather_text(v[1], slots_v)) if x is not None], dim=2)
    mask = _visible([slots for slots in (slots_k, slots_v) if slots is not None], keys.shape[2])
    out = BACKENDS[backend](queries, keys, values, mask, scale)
    image, text = out.split([q[0].shape[2], out.shape[2] - q[0].shape[2]], dim=2)
    return image, (None if q[1] is None else text)


def _visible(tables: list[Tensor], keys: int) -> Tensor | None:
    """Bool (B, H or 1, 1, N + T), True = visible; None when nothing is hidden, which keeps SDPA's fast path.

    A token hidden in either table, of keys or of values, is hidden.
    """
    tables = tables[:1] if tables and tables[0] is tables[-1] else tables
    if not any(bool((slots < 0).any()) for slots in tables):
        return None
    seen = (tables[0] >= 0) & (tables[-1] >= 0)
    return F.pad(seen, (keys - seen.shape[-1], 0), value=True)[:, :, None]


def attention_reference(q, k, v, mask=None, scale=None):
    """softmax(q k^T * scale) v in q's own dtype, term by term; the definition other backends are held to."""
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)  # (B, H, M, N + T)
    if mask is None:
        return scores.softmax(-1) @ v
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return weights.masked_fill(_blind(mask), 0.0) @ v


def attention_sdpa(q, k, v, mask=None, scale=None):
    """The same through `torch.nn.functional.scaled_dot_product_attention`; rows that see nothing give zeros."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out if mask is None else out.masked_fill(_blind(mask), 0.0)


def _blind(mask: Tensor) -> Tensor:
    """Which rows and heads see no key at all, (B, H or 1, 1, 1); a NaN from anywhere else stays a NaN."""
    return ~mask.any(-1, keepdim=True)


BACKENDS = {"sdpa": attention_sdpa, "reference": attention_reference}


def row_slots(donors: Tensor, tokens: int) -> Tensor:
    """Slots (B, 1, T), int32, by which row b reads all tokens of bank row `donors[b]`."""
    return (donors[:, None, None] * tokens + torch.arange(tokens, device=donors.device)).int()
