"""What the kernels share: their arguments as plain tuples, tiles of strided tensors, text read through slots.

Every kernel gets the op's inputs as one `Given`.  Strides are all passed and nothing is asked of them.  Places
are 64-bit from the token on: a bank of many prompts, or a batch of many rows, goes past 2^31 elements.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class View(NamedTuple):
    """A tensor (B, H, N, D) as a kernel sees it: where it starts, and its four strides in elements."""

    data: Tensor
    b: int
    h: int
    n: int
    d: int


class Pair(NamedTuple):
    """Anything in the shape of the queries, image (B, H, M, D) and text (B, H, Mt, D)."""

    image: View
    text: View | None


class Sizes(NamedTuple):
    """How many queries and keys each segment has, query heads per key head, and slot = donor_row * S + token."""

    image_queries: int
    text_queries: int
    image_keys: int
    text_keys: int
    group: int
    bank_tokens: int
    bank_slots: int


class Given(NamedTuple):
    """The op's inputs; slots_v is None where values are read through the table of the keys."""

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
    """How a kernel is cut: queries and keys per tile, warps per program, stages of its pipelined loads."""

    queries: int
    keys: int
    warps: int
    stages: int


def view(x: Tensor | None) -> View | None:
    return None if x is None else View(x, *x.stride())


def vectors(x: Tensor) -> View:
    """One number per place, (B, H, N), as a view."""
    return View(x, *x.stride(), 0)


def pair(image: Tensor, text: Tensor | None) -> Pair:
    return Pair(view(image), view(text))


def tables(slots_k: Tensor | None, slots_v: Tensor | None, k_text: Tensor) -> tuple:
    """Both tables, or None twice: values without one use the keys'; keys without one, if values have one, own rows."""
    if slots_k is None and slots_v is not None:
        rows, _, tokens, _ = k_text.shape
        slots_k = torch.arange(rows * tokens, dtype=slots_v.dtype, device=slots_v.device).view(
            rows, 1, tokens
        )
    return slots_k, slots_k if slots_v is None else slots_v


def describe(q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v, scale) -> Given:
    """The op's inputs for a kernel; the tables as `tables` gives them."""
    rows, kv_heads, tokens, _ = k_text.shape
    heads = q_image.shape[1]
    sizes = Sizes(
        image_queries=q_image.shape[2],
        text_queries=0 if q_text is None else q_text.shape[2],
        image_keys=0 if k_image is None else k_image.shape[2],
        text_keys=tokens if slots_k is None else slots_k.shape[2],
        group=heads // kv_heads,
        bank_tokens=tokens,
        bank_slots=rows * tokens,
    )
    own = None if slots_v is slots_k else slots_v
    read = [
        None if slots is None else vectors(slots.expand(-1, heads, -1)) for slots in (slots_k, own)
    ]
    keys = (view(x) for x in (k_image, v_image, k_text, v_text))
    return Given(pair(q_image, q_text), *keys, *read, sizes, scale / math.log(2))


def fresh(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty (B, H, N, D) that lies in memory as [B, N, H, D], which the next projection reads without a copy."""
    b, h, n, d = like.shape
    return like.new_empty(b, n, h, d, dtype=dtype).transpose(1, 2)


def query_tiles(sizes: Sizes, block: int) -> int:
    """Tiles of image queries, then of text queries; none holds both."""
    return triton.cdiv(sizes.image_queries, block) + triton.cdiv(sizes.text_queries, block)


def options(half: dict[int, Blocks], single: dict[int, Blocks], q: Tensor) -> dict:
    """A kernel's constants for q's dtype and head dim, from its two tables of blocks by padded head dim.

    They never depend on the number of rows: blocks of keys set the order of sums, and with it the last bits.
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
    """Where x[row, head, token] starts, 64-bit; row, head and token: one, or one per token."""
    return row.to(tl.int64) * x.b + head.to(tl.int64) * x.h + token.to(tl.int64) * x.n


@triton.jit
def load_vector(x, row, head, token, seen, other):
    """One number per token, `other` where not seen."""
    return tl.load(x.data + places(x, row, head, token), mask=seen, other=other)


@triton.jit
def store_vector(x, row, head, token, seen, values):
    """One number per token, where seen."""
    tl.store(x.data + places(x, row, head, token), values, mask=seen)


@triton.jit
def load_tile(x, row, head, token, seen, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(tokens, BLOCK_D), zeros where not seen and beyond D."""
    d = tl.arange(0, BLOCK_D)
    at = x.data + places(x, row, head, token)[:, None] + (d * x.d)[None, :]
    return tl.load(at, mask=seen[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_tile(x, row, head, token, seen, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(tokens, BLOCK_D), where seen, rounded to x's dtype."""
    d = tl.arange(0, BLOCK_D)
    at = x.data + places(x, row, head, token)[:, None] + (d * x.d)[None, :]
    tl.store(at, values.to(x.data.dtype.element_ty), mask=seen[:, None] & (d < D)[None, :])


@triton.jit
def locate(tile, sizes, BLOCK_M: tl.constexpr):
    """A tile's queries: index in the image, whether it is one; index in the text, whether it is one."""
    image = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    text = image - tl.cdiv(sizes.image_queries, BLOCK_M) * BLOCK_M
    return image, image < sizes.image_queries, text, (text >= 0) & (text < sizes.text_queries)


@triton.jit
def joint(tile, sizes, BLOCK_M: tl.constexpr):
    """A tile's queries by their place in the vectors (B, H, M + Mt), and whether there is one."""
    image, in_image, text, in_text = locate(tile, sizes, BLOCK_M)
    return tl.where(in_image, image, sizes.image_queries + text), in_image | in_text


@triton.jit
def load_queries(
    x, row, head, tile, sizes, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr
):
    """A tile of a pair, from the segment it lies in; loads from the other are masked and touch no memory."""
    image, in_image, text, in_text = locate(tile, sizes, BLOCK_M)
    values = load_tile(x.image, row, head, image, in_image, D, BLOCK_D)
    if x.text is not None:
        values = tl.where(
            in_text[:, None], load_tile(x.text, row, head, text, in_text, D, BLOCK_D), values
        )
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
    """A tile of a pair, to the segment it lies in."""
    image, in_image, text, in_text = locate(tile, sizes, BLOCK_M)
    store_tile(x.image, row, head, image, in_image, values, D, BLOCK_D)
    if x.text is not None:
        store_tile(x.text, row, head, text, in_text, values, D, BLOCK_D)


@triton.jit
def load_image(given, row, head, token, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Image keys, values, and what is added to their scores: 0, or -inf beyond the last."""
    inside = token < given.sizes.image_keys
    k = load_tile(given.k_image, row, head // given.sizes.group, token, inside, D, BLOCK_D)
    v = load_tile(given.v_image, row, head // given.sizes.group, token, inside, D, BLOCK_D)
    return k, v, tl.where(inside, 0.0, float("-inf"))


@triton.jit
def load_text(given, row, head, token, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Text keys, values, and what is added to their scores: 0, -inf if hidden, NaN if not in the bank."""
    inside = token < given.sizes.text_keys
    row_k, row_v, token_k, token_v, seen, wild = row, row, token, token, inside, token < 0
    if given.slots_k is not None:
        slot_k = load_vector(given.slots_k, row, head, token, inside, -1)
        slot_v = slot_k
        if given.slots_v is not None:
            slot_v = load_vector(given.slots_v, row, head, token, inside, -1)
        wild = (tl.minimum(slot_k, slot_v) < -1) | (
            tl.maximum(slot_k, slot_v) >= given.sizes.bank_slots
        )
        seen = (tl.minimum(slot_k, slot_v) >= 0) & ~wild
        row_k, token_k = slot_k // given.sizes.bank_tokens, slot_k % given.sizes.bank_tokens
        row_v, token_v = slot_v // given.sizes.bank_tokens, slot_v % given.sizes.bank_tokens
    k = load_tile(given.k_text, row_k, head // given.sizes.group, token_k, seen, D, BLOCK_D)
    v = load_tile(given.v_text, row_v, head // given.sizes.group, token_v, seen, D, BLOCK_D)
    return k, v, tl.where(wild, float("nan"), tl.where(seen, 0.0, float("-inf")))
