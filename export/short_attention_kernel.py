"""Attention for texts that fit into one tile, in Triton (part of PyTorch's CUDA builds).

A program handles one head of one text. It loads keys and values once and processes the queries in blocks. All scores of
a row are available at once, so the softmax needs no running maximum.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES = 64
"""Queries per block."""
WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def _short_attention(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    out,
    bounds,
    scale,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    out_row,
    out_head,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head, text = tl.program_id(0), tl.program_id(1)
    start = tl.load(bounds + text)
    length = tl.load(bounds + text + 1) - start
    first = start.to(tl.int64)
    keys, dims = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    there = keys < length
    at = first + keys
    keys_there = tl.load(key + at[:, None] * key_row + head * key_head + dims[None, :], there[:, None], 0.0)
    values_there = tl.load(value + at[:, None] * value_row + head * value_head + dims[None, :], there[:, None], 0.0)
    for step in range(0, length, QUERIES):
        rows = step + tl.arange(0, QUERIES)
        asked = rows < length
        at_row = (first + rows)[:, None]
        queries = tl.load(query + at_row * query_row + head * query_head + dims[None, :], asked[:, None], 0.0)
        scores = tl.where(there[None, :], tl.dot(queries, tl.trans(keys_there)) * scale, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        seen = tl.dot(weights.to(values_there.dtype), values_there) / tl.sum(weights, 1)[:, None]
        tl.store(
            out + at_row * out_row + head * out_head + dims[None, :], seen.to(out.dtype.element_ty), asked[:, None]
        )


def attend_short(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
    """Attend within each text, with scores and sums in float32.

    Args:
        query: [R, heads, d] float16 or bfloat16, d a power of two from 16 to 128; rows and heads may be strided.
        key: likewise.
        value: likewise.
        bounds: [texts + 1] int32, the offset of each text.
        longest: the tokens of the longest text; it determines the tile.
        scale: factor of the scores.

    Returns:
        [R, heads, d], contiguous.
    """
    query, key, value = (one if one.stride(2) == 1 else one.contiguous() for one in (query, key, value))
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    strides = [one.stride(axis) for one in (query, key, value, out) for axis in (0, 1)]
    with torch.cuda.device(query.device if query.is_cuda else -1):
        _short_attention[(query.shape[1], len(bounds) - 1)](
            query,
            key,
            value,
            out,
            bounds,
            scale * math.log2(math.e),
            *strides,
            QUERIES,
            max(16, triton.next_power_of_2(longest)),
            query.shape[2],
            num_warps=WARPS,
        )
    return out
