"""What the CPU can compute fast."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch.cpu import get_capabilities
from torch.nn.functional import linear

NOTABLE = (
    "avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_fp16", "avx512_bf16", "avx10_2",
    "amx_int8", "amx_fp16", "amx_bf16", "neon", "bf16", "sve", "sve_bf16",
)  # fmt: skip

PAYS = 1.2
"""How many times fp32's rate of matrix products bf16 must reach to be worth its lost digits."""
SIZE = 512
"""Rows and columns of the matrices that are timed; three fp32 ones fill 3 MB, about what a core's own cache holds."""
TURNS = 5


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that matter here and that this CPU has."""
    return tuple(name for name in NOTABLE if get_capabilities().get(name))


@cache
def bf16_speedup() -> float:
    """Measure how many times as fast as in fp32 this CPU multiplies matrices in bf16; takes some milliseconds.

    The instructions alone do not tell: a core with AVX512-BF16 may do twice fp32's rate or, if it was built to leave
    that to matrix units (AMX) that a virtual machine hides, half of it. The two take turns and each counts its best
    time, so that other work on the machine does not decide.
    """
    matrices = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    best: dict[torch.dtype, float] = {}
    for turn in range(TURNS):
        for dtype in (torch.float32, torch.bfloat16):
            a, b = matrices.to(dtype)
            began = time.perf_counter()
            linear(a, b)
            spent = time.perf_counter() - began
            if turn:  # the first prepares kernels
                best[dtype] = min(spent, best.get(dtype, spent))
    return best[torch.float32] / best[torch.bfloat16]


def bf16_fault() -> str | None:
    """Say why bf16 is not worth taking on this CPU, or None if it is."""
    speedup = bf16_speedup()
    if speedup >= PAYS:
        return None
    return f"this CPU multiplies matrices in bf16 at {speedup:.1f} times its rate in fp32, so it gains nothing"


def cpu_kind() -> str:
    """Return what a kernel's numbers depend on, as part of a file name."""
    return "-".join(instruction_sets()) or "cpu"
