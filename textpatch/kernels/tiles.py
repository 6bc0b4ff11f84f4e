"""Arguments of the kernels as plain tuples, tiles of strided tensors, and text read through slots.

Every kernel gets the op's inputs as one `Given`.  All strides are passed, and any will do.  Places are
64-bit from the token on: a bank of many prompts, or a batch of many rows, goes past 2^31 elements.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class View(NamedTuple):
    """A tensor (B, H, N, D) as a kernel sees it, its start and its four strides in elements."""

    data: Tensor
    b: int
    h: int
    n: int
    d: int


class Pair(NamedTuple):
    """Two tensors in the shape of the queries, image (B, H, M, D) and text (B, H, Mt, D)."""

    image: View
    text: View | None


class Sizes(NamedTuple):
    """Sizes of one attention.

    group        query heads per key head
    bank_tokens  S, where slot = donor_row * S + token
    bank_slots   R S
    """

    image_queries: int
    text_queries: int
    image_keys: int
    text_keys: int
    group: int
    bank_tokens: int
    bank_slots: int


class Given(NamedTuple):
    """Inputs of the op.

    slots_v is None where values are read through the table of the keys.
    """

    q: Pair
    k_image: View | None
    v_image: View | None
    k_text: View
    v_text: View
    slots_k: View | None
    slots_v: View | None
    sizes: Sizes
    scale: float  # for weights 2^score


class Blocks(NamedTuple):
    """Cut of a kernel.

    queries, keys  per tile
    warps          per program
    stages         of the pipelined loads
    """

    queries: int
    keys: int
    warps: int
    stages: int


def view(x: Tensor | None) -> View | None:
    """A tensor, if there is one, for a kernel."""
    return None if x is None else View(x, *x.stride())


def vectors(x: Tensor) -> View:
    """A view of one number per place, (B, H, N)."""
    return View(x, *x.stride(), 0)


def pair(image: Tensor, text: Tensor | None) -> Pair:
    return Pair(view(image), view(text))


def tables(slots_k: Tensor | None, slots_v: Tensor | None, k_text: Tensor) -> tuple:
    """Tables of keys and values, or None twice.

    Values without a table use that of the keys.  Keys without one read their own rows, if values have one.
    """
    if slots_v is None:
        return slots_k, slots_k
    if slots_k is None:
        rows, _, tokens, _ = k_text.shape
        own = torch.arange(rows * tokens, dtype=slots_v.dtype, device=slots_v.device)
        slots_k = own.view(rows, 1, tokens)
    return slots_k, slots_v


def describe(q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v, scale) -> Given:
    """Inputs of the op for a kernel, with the tables as `tables` gives them."""
    rows, kv_heads, tokens, _ = k_text.shape
    heads = q_image.shape[1]
    sizes = Sizes(
        image_queries=q_image.shape[2],
        text_queries=_count(q_text, 0),
        image_keys=_count(k_image, 0),
        text_keys=_count(slots_k, tokens),
        group=heads // kv_heads,
        bank_tokens=tokens,
        bank_slots=rows * tokens,
    )
    if slots_v is slots_k:
        slots_v = None
    return Given(
        pair(q_image, q_text),
        view(k_image),
        view(v_image),
        view(k_text),
        view(v_text),
        _per_head(slots_k, heads),
        _per_head(slots_v, heads),
        sizes,
        scale / math.log(2),
    )


def _count(x: Tensor | None, otherwise: int) -> int:
    """Tokens of (B, H, tokens, ...), or another number where there is no such tensor."""
    return otherwise if x is None else x.shape[2]


def _per_head(slots: Tensor | None, heads: int) -> View | None:
    """A table for every query head, if there is one."""
    if slots is None:
        return None
    return vectors(slots.expand(-1, heads, -1))


def fresh(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty (B, H, N, D) that lies in memory as [B, N, H, D].

    The next projection reads that without a copy.
    """
    b, h, n, d = like.shape
    return like.new_empty(b, n, h, d, dtype=dtype).transpose(1, 2)


def query_tiles(sizes: Sizes, block: int) -> int:
    """Number of tiles, first of image queries, then of text queries, so that none holds both."""
    return triton.cdiv(sizes.image_queries, block) + triton.cdiv(sizes.text_queries, block)


def options(half: dict[int, Blocks], single: dict[int, Blocks], q: Tensor) -> dict:
    """Constants of a kernel for q's dtype and head dim.

    half, single: its blocks by padded head dim, for half precision and for float32.
    They never depend on the number of rows, because blocks of keys set the order of sums, and with it the
    last bits.
    """
    width = q.shape[-1]
    padded = max(16, triton.next_power_of_2(width))  # tl.dot asks for 16
    blocks = (single if q.dtype == torch.float32 else half)[max(64, padded)]
    sizes = {"D": width, "BLOCK_D": padded, "BLOCK_M": blocks.queries, "BLOCK_N": blocks.keys}
    # triton 3.10 will change the default of enable_fp_fusion
    return sizes | {
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        "enable_fp_fusion": True,
    }


@triton.jit
def places(x, row, head, token):
    """Places where x[row, head, token] starts, 64-bit, for row, head and token of one or of each token."""
    return row.to(tl.int64) * x.b + head.to(tl.int64) * x.h + token.to(tl.int64) * x.n


@triton.jit
def load_vector(x, row, head, token, seen, other):
    """Load one number per token, `other` where not seen."""
    return tl.load(x.data + places(x, row, head, token), mask=seen, other=other)


@triton.jit
def store_vector(x, row, head, token, seen, values):
    """Store one number per token, where seen."""
    tl.store(x.data + places(x, row, head, token), values, mask=seen)


@triton.jit
def load_tile(x, row, head, token, seen, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load (tokens, BLOCK_D), zeros where not seen and beyond D."""
    d = tl.arange(0, BLOCK_D)
    at = x.data + places(x, row, head, token)[:, None] + (d * x.d)[None, :]
    return tl.load(at, mask=seen[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_tile(x, row, head, token, seen, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store (tokens, BLOCK_D), where seen, rounded to x's dtype."""
    d = tl.arange(0, BLOCK_D)
    at = x.data + places(x, row, head, token)[:, None] + (d * x.d)[None, :]
    tl.store(at, values.to(x.data.dtype.element_ty), mask=seen[:, None] & (d < D)[None, :])


@triton.jit
def locate(tile, sizes, BLOCK_M: tl.constexpr):
    """Queries of a tile.

    For each its index in the image, whether it is there, its index in the text, whether it is there.
    """
    image = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    text = image - tl.cdiv(sizes.image_queries, BLOCK_M) * BLOCK_M
    return image, image < sizes.image_queries, text, (text >= 0) & (text < sizes.text_queries)


@triton.jit
def joint(tile, sizes, BLOCK_M: tl.constexpr):
    """Places of a tile's queries in the vectors (B, H, M + Mt), and whether there is a query."""
    image, in_image, text, in_text = locate(tile, sizes, BLOCK_M)
    return tl.where(in_image, image, sizes.image_queries + text), in_image | in_text


@triton.jit
def load_queries(
    x, row, head, tile, sizes, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Load a tile of a pair from the segment it lies in.

    Loads from the other segment are masked and touch no memory.
    """
    image, in_image, text, in_text = locate(tile, sizes, BLOCK_M)
    values = load_tile(x.image, row, head, image, in_image, D, BLOCK_D)
    if x.text is not None:
        from_text = load_tile(x.text, row, head, text, in_text, D, BLOCK_D)
        values = tl.where(in_text[:, None], from_text, values)
    return values


@triton.jit
def store_queries(
    x,
    row,
    head,
    tile,
    values,
    sizes,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Store a tile of a pair to the segment it lies in."""
    image, in_image, text, in_text = locate(tile, sizes, BLOCK_M)
    store_tile(x.image, row, head, image, in_image, values, D, BLOCK_D)
    if x.text is not None:
        store_tile(x.text, row, head, text, in_text, values, D, BLOCK_D)


@triton.jit
def load_image(given, row, head, token, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Image keys, values, and the bias of their scores.

    The bias is 0, and -inf beyond the last key.
    """
    inside = token < given.sizes.image_keys
    k = load_tile(given.k_image, row, head // given.sizes.group, token, inside, D, BLOCK_D)
    v = load_tile(given.v_image, row, head // given.sizes.group, token, inside, D, BLOCK_D)
    return k, v, tl.where(inside, 0.0, float("-inf"))


@triton.jit
def load_text(given, row, head, token, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Text keys, values, and the bias of their scores.

    The bias is 0, -inf for a hidden token, and NaN for a slot outside the bank.
    """
    inside = token < given.sizes.text_keys
    row_k = row
    row_v = row
    token_k = token
    token_v = token
    seen = inside
    wild = token < 0
    if given.slots_k is not None:
        slot_k = load_vector(given.slots_k, row, head, token, inside, -1)
        slot_v = slot_k
        if given.slots_v is not None:
            slot_v = load_vector(given.slots_v, row, head, token, inside, -1)
        wild = (tl.minimum(slot_k, slot_v) < -1) | (
            tl.maximum(slot_k, slot_v) >= given.sizes.bank_slots
        )
        seen = (tl.minimum(slot_k, slot_v) >= 0) & ~wild
        row_k = slot_k // given.sizes.bank_tokens
        token_k = slot_k % given.sizes.bank_tokens
        row_v = slot_v // given.sizes.bank_tokens
        token_v = slot_v % given.sizes.bank_tokens
    k = load_tile(given.k_text, row_k, head // given.sizes.group, token_k, seen, D, BLOCK_D)
    v = load_tile(given.v_text, row_v, head // given.sizes.group, token_v, seen, D, BLOCK_D)
    return k, v, tl.where(wild, float("nan"), tl.where(seen, 0.0, float("-inf")))
