"""The Triton backward of `segment_attention`, with gradients of queries, keys, values and text donors.

With weights P = exp(S - LSE) and delta = rowsum(dO * O) (FlashAttention-2, arXiv 2307.08691, section 3.1.2)

    dS = P * (dO V^T - delta)      dQ = scale dS K      dK = scale dS^T Q      dV = P^T dO

O is taken before it is rounded to half precision: where one weight is all, dS is zero, and delta of a rounded
O would leave 2^-11 |dO| |O| in its place.  The forward that runs again for its LSE gives both.

An LSE of 50 in float32 is wrong by up to 2e-6, and so is every weight of its query, by one common factor.
The sum of the query's weights, which the kernel of the queries sees anyway, is that factor; both kernels
divide by it.

Every sum has one owner and one order, so that a gradient is the same bits in every run: a tile of queries
sums over keys, a tile of keys over queries.  A text key has a gradient per reading (b, h, t) first; each
token of the bank then adds up its readers from a sorted list, so that a donor of many rows is no long
program of attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .forward import LN2
from .tiles import (
    Blocks,
    Given,
    View,
    describe,
    fresh,
    joint,
    load_image,
    load_queries,
    load_text,
    load_tile,
    load_vector,
    options,
    pair,
    query_tiles,
    store_queries,
    store_tile,
    store_vector,
    tables,
    vectors,
    view,
)

# By padded head dim, as in the forward: the largest tiles without spilled registers, float32 at 256 apart.
QUERIES_HALF = {64: Blocks(64, 64, 4, 2), 128: Blocks(64, 32, 4, 2), 256: Blocks(32, 32, 8, 2)}
QUERIES_SINGLE = {64: Blocks(32, 32, 4, 2), 128: Blocks(32, 32, 8, 2), 256: Blocks(16, 16, 4, 1)}
KEYS_HALF = {64: Blocks(32, 64, 4, 2), 128: Blocks(32, 64, 8, 2), 256: Blocks(32, 32, 8, 2)}
KEYS_SINGLE = {64: Blocks(32, 32, 4, 2), 128: Blocks(32, 32, 8, 2), 256: Blocks(16, 32, 8, 1)}
DONORS = 16


class Vectors(NamedTuple):
    """Numbers of each query, (B, H, M + Mt) float32.

    lse    its log sum exp
    delta  rowsum(dO * O)
    share  1 / the sum of its weights
    """

    lse: View
    delta: View
    share: View


@triton.jit
def _weights(scores, scale, bias, lse):
    """Weights exp(S - LSE).

    A query that sees nothing has scores of -inf alone, which must not meet its LSE of -inf.
    """
    return tl.exp2(tl.fma(scores, scale, bias) - tl.where(lse == float("-inf"), 0.0, lse / LN2))


@triton.jit
def _add_keys(dq, total, q, d_out, lse, delta, k, v, bias, scale):
    """Update dQ / scale and the sum of the weights by one more tile of keys."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    weights = _weights(scores, scale, bias[None, :], lse[:, None])
    slope = weights * (tl.dot(d_out, tl.trans(v), input_precision="ieee") - delta[:, None])
    return tl.dot(slope.to(k.dtype), k, dq, input_precision="ieee"), total + tl.sum(weights, 1)


@triton.jit
def _queries(
    dq_out,
    vectors,
    d_result,
    result,
    inputs,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store dQ of one tile of queries, and for the kernel of the keys their delta and share."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2)
    # assigned, because inside a loop triton 3.6 forgets constants of nested tuples that are arguments
    given = inputs
    sizes = given.sizes
    scale = given.scale
    q = load_queries(given.q, row, head, tile, sizes, D, BLOCK_D, BLOCK_M)
    d_out = load_queries(d_result, row, head, tile, sizes, D, BLOCK_D, BLOCK_M)
    out = load_queries(result, row, head, tile, sizes, D, BLOCK_D, BLOCK_M)
    query, is_query = joint(tile, sizes, BLOCK_M)
    delta = tl.sum(d_out.to(tl.float32) * out, 1)
    store_vector(vectors.delta, row, head, query, is_query, delta)
    lse = load_vector(vectors.lse, row, head, query, is_query, float("inf"))
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if given.k_image is not None:
        for start in range(0, sizes.image_keys, BLOCK_N):
            k, v, bias = load_image(given, row, head, start + tl.arange(0, BLOCK_N), D, BLOCK_D)
            dq, total = _add_keys(dq, total, q, d_out, lse, delta, k, v, bias, scale)
    for start in range(0, sizes.text_keys, BLOCK_N):
        k, v, bias = load_text(given, row, head, start + tl.arange(0, BLOCK_N), D, BLOCK_D)
        dq, total = _add_keys(dq, total, q, d_out, lse, delta, k, v, bias, scale)
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    store_vector(vectors.share, row, head, query, is_query, share)
    store_queries(
        dq_out, row, head, tile, dq * (share * scale * LN2)[:, None], sizes, D, BLOCK_D, BLOCK_M
    )


@triton.jit
def _add_queries(dk, dv, k, v, bias, q, d_out, lse, delta, share, scale):
    """Update dK / scale and dV by one more tile of queries.

    Scores, weights and slope are transposed.
    """
    scores = tl.dot(k, tl.trans(q), input_precision="ieee")
    weights = _weights(scores, scale, bias[:, None], lse[None, :])
    weights *= share[None, :]
    dv = tl.dot(weights.to(d_out.dtype), d_out, dv, input_precision="ieee")
    slope = weights * (tl.dot(v, tl.trans(d_out), input_precision="ieee") - delta[None, :])
    return tl.dot(slope.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def _over_queries(
    dk,
    dv,
    k,
    v,
    bias,
    q,
    d_result,
    vectors,
    row,
    head,
    count,
    first,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Update dK / scale and dV by one more segment of queries, the first of which is `first` among all."""
    for start in range(0, count, BLOCK_M):
        query = start + tl.arange(0, BLOCK_M)
        inside = query < count
        q_tile = load_tile(q, row, head, query, inside, D, BLOCK_D)
        d_out = load_tile(d_result, row, head, query, inside, D, BLOCK_D)
        lse = load_vector(vectors.lse, row, head, first + query, inside, float("inf"))
        delta = load_vector(vectors.delta, row, head, first + query, inside, 0.0)
        share = load_vector(vectors.share, row, head, first + query, inside, 1.0)
        dk, dv = _add_queries(dk, dv, k, v, bias, q_tile, d_out, lse, delta, share, scale)
    return dk, dv


@triton.jit
def _keys(
    dk_out,
    dv_out,
    d_result,
    vectors,
    inputs,
    TEXT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store dK and dV of one tile of keys of one segment, for one head of queries."""
    head = tl.program_id(1)
    row = tl.program_id(2)
    # assigned, because inside a loop triton 3.6 forgets constants of nested tuples that are arguments
    given = inputs
    sizes = given.sizes
    scale = given.scale
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if TEXT:
        k, v, bias = load_text(given, row, head, token, D, BLOCK_D)
        inside = token < sizes.text_keys
    else:
        k, v, bias = load_image(given, row, head, token, D, BLOCK_D)
        inside = token < sizes.image_keys
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    q = given.q.image
    d_out = d_result.image
    count = sizes.image_queries
    dk, dv = _over_queries(
        dk, dv, k, v, bias, q, d_out, vectors, row, head, count, 0, scale, D, BLOCK_D, BLOCK_M
    )
    if given.q.text is not None:
        q = given.q.text
        d_out = d_result.text
        count = sizes.text_queries
        at = sizes.image_queries
        dk, dv = _over_queries(
            dk, dv, k, v, bias, q, d_out, vectors, row, head, count, at, scale, D, BLOCK_D, BLOCK_M
        )
    store_tile(dk_out, row, head, token, inside, dk * (scale * LN2), D, BLOCK_D)
    store_tile(dv_out, row, head, token, inside, dv, D, BLOCK_D)


@triton.jit
def _donors(
    out, readings, order, first, sizes, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr
):
    """Store as out[r, h, s] the sum over the readers of token s of row r, in their order.

    A token without readers gets zeros.
    """
    head = tl.program_id(1)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < sizes.bank_slots
    start = load_vector(first, head, head, slot, inside, 0)
    stop = load_vector(first, head, head, slot + 1, inside, 0)
    total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for i in range(0, tl.max(stop - start)):
        seen = start + i < stop
        reader = load_vector(order, head, head, start + i, seen, 0)
        total += load_tile(readings, head, head, reader, seen, D, BLOCK_D)
    store_tile(
        out, slot // sizes.bank_tokens, head, slot % sizes.bank_tokens, inside, total, D, BLOCK_D
    )


def _of_donors(readings: Tensor, slots: Tensor, sizes) -> Tensor:
    """Gradients of readings (B, H, T, D) added up by donor token, (R, H, S, D) float32."""
    b, h, t, d = readings.shape
    read = slots.transpose(0, 1).reshape(-1, b * t)  # (H or 1, B T)
    # slots that are hidden or wild come before and after the bank's
    read, order = read.sort(dim=1, stable=True)
    ends = torch.arange(sizes.bank_slots + 1, dtype=read.dtype, device=read.device)
    first = torch.searchsorted(read, ends.expand(len(read), -1).contiguous())  # (H or 1, R S + 1)
    rows = sizes.bank_slots // sizes.bank_tokens
    out = readings.new_empty(rows, sizes.bank_tokens, h, d).transpose(1, 2)
    flat = readings.transpose(0, 1).reshape(1, h, b * t, d)
    constants = {
        "D": d,
        "BLOCK_D": triton.next_power_of_2(d),
        "BLOCK": DONORS,
        "enable_fp_fusion": True,
    }
    grid = triton.cdiv(sizes.bank_slots, DONORS), h
    lists = _of_each_head(order, h), _of_each_head(first, h)
    _donors[grid](view(out), view(flat)._replace(b=0), *lists, sizes, **constants)
    return out


def _of_each_head(x: Tensor, heads: int) -> View:
    """A list (H or 1, N) as every head reads it, whatever the row."""
    x = x.expand(heads, -1)
    return View(x, 0, *x.stride(), 0)


def _of_keys(
    segment: tuple[Tensor, int, bool], slots, q: Tensor, shared: tuple, inputs: Given
) -> list[Tensor]:
    """Gradients dK and dV of one segment, in the shape of its keys.

    segment  its keys, how many a row reads, whether it is the text
    slots    the tables of keys and values, or None
    shared   d_result and numbers, as the kernel takes them
    """
    k, tokens, text = segment
    rows, heads, _, width = q.shape
    direct = slots is None and inputs.sizes.group == 1
    if direct:
        made = [fresh(k) for _ in "kv"]
    else:
        space = (heads, rows, tokens, width)  # per reading and query head, laid out for _donors
        made = [k.new_empty(space, dtype=torch.float32).transpose(0, 1) for _ in "kv"]
    constants = options(KEYS_HALF, KEYS_SINGLE, q)
    grid = triton.cdiv(tokens, constants["BLOCK_N"]), heads, rows
    _keys[grid](*(view(x) for x in made), *shared, inputs, TEXT=text, **constants)
    if slots is not None:
        made = [_of_donors(x, table, inputs.sizes) for x, table in zip(made, slots, strict=True)]
    return made if direct else [_by_key_head(x, k) for x in made]


def _by_key_head(x: Tensor, k: Tensor) -> Tensor:
    """Sums over the query heads of each key head, in k's shape and dtype."""
    return fresh(k).copy_(x.unflatten(1, (k.shape[1], -1)).sum(2))


def backward(
    d_image: Tensor,
    d_text: Tensor | None,
    q_image: Tensor,
    q_text: Tensor | None,
    k_image: Tensor | None,
    k_text: Tensor,
    v_image: Tensor | None,
    v_text: Tensor,
    slots_k: Tensor | None,
    slots_v: Tensor | None,
    scale: float,
    image: Tensor,
    text: Tensor | None,
    lse: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor]:
    """Gradients of `forward`'s six tensors, from those of its image and text.

    image, text, lse  the results of `forward` for these inputs, wide
    Tokens of the bank that nobody reads get zeros.  Every gradient lies in memory as [B, N, H, D], like the
    forward's results.
    """
    slots_k, slots_v = tables(slots_k, slots_v, k_text)
    inputs = describe(q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v, scale)
    dq_image = fresh(q_image)
    dq_text = None if q_text is None else fresh(q_text)
    delta = torch.empty_like(lse)
    share = torch.empty_like(lse)
    numbers = Vectors(vectors(lse), vectors(delta), vectors(share))
    d_result = pair(d_image, d_text)
    constants = options(QUERIES_HALF, QUERIES_SINGLE, q_image)
    grid = query_tiles(inputs.sizes, constants["BLOCK_M"]), q_image.shape[1], q_image.shape[0]
    dk_image = dv_image = None
    with torch.cuda.device_of(q_image):
        _queries[grid](
            pair(dq_image, dq_text), numbers, d_result, pair(image, text), inputs, **constants
        )
        common = q_image, (d_result, numbers), inputs
        if k_image is not None:
            dk_image, dv_image = _of_keys((k_image, k_image.shape[2], False), None, *common)
        read = None if slots_k is None else (slots_k, slots_v)
        dk_text, dv_text = _of_keys((k_text, inputs.sizes.text_keys, True), read, *common)
    return dq_image, dq_text, dk_image, dk_text, dv_image, dv_text
