"""The Triton forward of `segment_attention`.

There is one program per tile of queries of one head of one row.  It walks over all keys of its row in a
fixed order, image then text, with the online softmax of FlashAttention (arXiv 2205.14135, algorithm 1) in
base 2.  The keys are never split over programs and nothing is added atomically, so that a row's bits
depend on that row alone.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import (
    Blocks,
    describe,
    fresh,
    joint,
    load_image,
    load_queries,
    load_text,
    options,
    pair,
    query_tiles,
    store_queries,
    store_vector,
    tables,
    vectors,
)

# By padded head dim, the largest tiles that ptxas fits into registers for sm_80 and sm_90.  The tail keeps 77
# keys from being computed as 128: they are one tile of 64 and one of 16.
HALF = {64: Blocks(128, 64, 4, 3), 128: Blocks(128, 64, 8, 3), 256: Blocks(64, 32, 8, 2)}
SINGLE = {64: Blocks(32, 32, 4, 2), 128: Blocks(32, 32, 8, 2), 256: Blocks(16, 16, 4, 1)}
TAIL = 16
LN2 = tl.constexpr(math.log(2))


@triton.jit
def _add_keys(most, total, out, q, k, v, bias, scale):
    """The largest score, the sum of weights and the weighted sum of values after one more tile of keys."""
    # an explicit fma: no variant of the kernel may contract it in another way
    scores = tl.fma(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, bias[None, :])
    largest = tl.maximum(most, tl.max(scores, 1))
    # where nothing is seen yet, -inf - -inf would be NaN
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(most - shift)
    out = tl.dot(weights.to(v.dtype), v, out * decay[:, None], input_precision="ieee")
    return largest, total * decay + tl.sum(weights, 1), out


@triton.jit
def _forward(
    result,
    lse,
    inputs,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
):
    tile = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2)
    # assigned, because inside a loop triton 3.6 forgets constants of nested tuples that are arguments
    given = inputs
    sizes = given.sizes
    scale = given.scale
    q = load_queries(given.q, row, head, tile, sizes, D, BLOCK_D, BLOCK_M)
    most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if given.k_image is not None:
        for start in range(0, sizes.image_keys, BLOCK_N):
            k, v, bias = load_image(given, row, head, start + tl.arange(0, BLOCK_N), D, BLOCK_D)
            most, total, out = _add_keys(most, total, out, q, k, v, bias, scale)
    whole = sizes.text_keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        k, v, bias = load_text(given, row, head, start + tl.arange(0, BLOCK_N), D, BLOCK_D)
        most, total, out = _add_keys(most, total, out, q, k, v, bias, scale)
    for start in range(whole, sizes.text_keys, TAIL):
        k, v, bias = load_text(given, row, head, start + tl.arange(0, TAIL), D, BLOCK_D)
        most, total, out = _add_keys(most, total, out, q, k, v, bias, scale)
    out = out / tl.where(total == 0.0, 1.0, total)[:, None]  # nothing seen: zeros
    store_queries(result, row, head, tile, out, sizes, D, BLOCK_D, BLOCK_M)
    if lse is not None:
        query, is_query = joint(tile, sizes, BLOCK_M)
        store_vector(lse, row, head, query, is_query, (most + tl.log2(total)) * LN2)


def forward(
    q_image: Tensor,
    q_text: Tensor | None,
    k_image: Tensor | None,
    k_text: Tensor,
    v_image: Tensor | None,
    v_text: Tensor,
    slots_k: Tensor | None,
    slots_v: Tensor | None,
    scale: float,
    *,
    with_lse: bool = True,
    wide: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attend from both segments of queries.

        softmax(q [k_image; k_text[slots_k]]^T scale) [v_image; v_text[slots_v]]

    q_image, q_text    (B, H, M, D) and (B, H, Mt, D)
    k_image, v_image   (B, G, N, D), G dividing H
    k_text, v_text     (R, G, S, D)
    slots_k, slots_v   int (B, H or 1, T), -1 hides; None: row b reads row b
    wide               give image and text in float32, as they were added up and as `backward` takes them

    Returns image, text and the logarithm of each query's sum of exponentials, (B, H, M + Mt) float32.
    A query that sees nothing gives zeros and -inf.  A slot outside the bank reads nothing and makes its
    row NaN.  Shapes are the caller's care.
    """
    slots_k, slots_v = tables(slots_k, slots_v, k_text)
    inputs = describe(q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v, scale)
    dtype = torch.float32 if wide else None
    image = fresh(q_image, dtype)
    text = None
    if q_text is not None:
        text = fresh(q_text, dtype)
    rows, heads, queries, _ = q_image.shape
    queries += inputs.sizes.text_queries
    lse = None
    if with_lse:
        lse = q_image.new_empty(rows, heads, queries, dtype=torch.float32)
    constants = options(HALF, SINGLE, q_image)
    grid = query_tiles(inputs.sizes, constants["BLOCK_M"]), heads, rows
    sums = None if lse is None else vectors(lse)
    with torch.cuda.device_of(q_image):
        _forward[grid](pair(image, text), sums, inputs, **constants, TAIL=TAIL)
    return image, text, lse
