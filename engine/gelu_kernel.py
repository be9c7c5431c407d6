"""A matrix product fused with GELU for Hopper GPUs, in Triton (part of PyTorch's CUDA builds).

The kernel is persistent: each program loops over tiles of the product, and the copy engine fetches the next tile's
operands meanwhile. GELU is a polynomial, because CUDA's error function would take a third of the product's time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .gelu_polynomial import COEFFICIENTS, LIMIT

ROWS, COLUMNS, DEPTH = 128, 256, 64
"""The size of a tile of the product, and the depth of its operands per fetch."""
TOGETHER = 8
"""Tiles of rows per band; a band is finished before the next starts, so that its operands stay in the cache."""
WARPS, STAGES = 8, 3

_P = tl.constexpr(COEFFICIENTS)
_LIMIT = tl.constexpr(LIMIT)


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    u = tl.minimum(tl.maximum(x, -_LIMIT), _LIMIT)
    v = u * u * (2 / (_LIMIT * _LIMIT)) - 1
    y = _P[8] * v + _P[7]
    for power in tl.static_range(6, -1, -1):
        y = y * v + _P[power]
    return 0.5 * x + 0.5 * x * (u * y)


@triton.jit  # type: ignore[untyped-decorator]
def _linear_gelu(  # type: ignore[no-untyped-def]
    states,
    weight,
    out,
    bias,
    n_rows,
    n_columns,
    depth,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    tiles_down, tiles_across = tl.cdiv(n_rows, ROWS), tl.cdiv(n_columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles_down * tiles_across, PROGRAMS, flatten=True):
        band = tile // (TOGETHER * tiles_across)
        high = min(tiles_down - band * TOGETHER, TOGETHER)
        inside = tile % (TOGETHER * tiles_across)
        row = (band * TOGETHER + inside % high) * ROWS
        column = inside // high * COLUMNS
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, depth, DEPTH):
            total = tl.dot(states.load([row, start]), weight.load([column, start]).T, total)
        # In halves: the output goes through shared memory, which the operands also need.
        halves = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        for half in tl.static_range(2):
            columns = column + half * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
            added = tl.load(bias + columns, mask=columns < n_columns, other=0.0).to(tl.float32)
            out.store([row, column + half * (COLUMNS // 2)], _gelu(halves[half] + added[None, :]).to(out.dtype))


def linear_gelu_rows(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return gelu(states @ weight.T + bias) in the dtype of all three, the sums in float32.

    Args:
        states: [M, in], contiguous; sizes are multiples of 8.
        weight: [out, in], likewise.
        bias: [out].
    """
    out = states.new_empty(len(states), len(weight))
    tiles = triton.cdiv(len(states), ROWS) * triton.cdiv(len(weight), COLUMNS)
    programs = torch.cuda.get_device_properties(states.device).multi_processor_count if states.is_cuda else 2
    with torch.cuda.device(states.device if states.is_cuda else -1):
        _linear_gelu[(min(programs, tiles),)](
            TensorDescriptor.from_tensor(states.contiguous(), [ROWS, DEPTH]),
            TensorDescriptor.from_tensor(weight, [COLUMNS, DEPTH]),
            TensorDescriptor.from_tensor(out, [ROWS, COLUMNS // 2]),
            bias,
            len(states),
            len(weight),
            states.shape[1],
            ROWS,
            COLUMNS,
            DEPTH,
            TOGETHER,
            programs,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return out
