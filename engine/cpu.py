"""The CPU's instruction sets, and its speed in bf16."""

from __future__ import annotations

import os
import time
from functools import cache

import torch
from torch.cpu import get_capabilities
from torch.nn.functional import linear

NOTABLE = (
    "avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_fp16", "avx512_bf16", "avx10_2",
    "amx_int8", "amx_fp16", "amx_bf16", "neon", "bf16", "sve", "sve_bf16",
)  # fmt: skip

BF16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
"""The instruction sets with bf16 products."""
LIMIT = "ONEDNN_MAX_CPU_ISA"
"""The environment variable that limits the instruction set of oneDNN, the library of PyTorch and OpenVINO."""
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""The values of LIMIT without bf16 instructions."""

PAYS = 1.2
"""The least speedup of bf16 matrix products over fp32 that justifies the loss of precision."""
SIZE = 512
"""Rows and columns of the timed matrices; three in fp32 take 3 MB, about the cache of one core."""
TURNS = 5


def instruction_sets() -> tuple[str, ...]:
    """Return this CPU's instruction sets among NOTABLE."""
    return tuple(name for name in NOTABLE if get_capabilities().get(name))


def has_bf16() -> bool:
    """Return whether this CPU has bf16 instructions that oneDNN may use."""
    hidden = os.environ.get(LIMIT, "").upper() in WITHOUT_BF16
    return not hidden and any(get_capabilities().get(name) for name in BF16)


@cache
def bf16_speedup() -> float:
    """Measure this CPU's speedup of matrix products in bf16 over fp32; takes some milliseconds.

    The instruction set is not enough: a core with AVX512-BF16 may reach twice the rate of fp32, or half of it if a
    virtual machine hides its matrix units (AMX). The measurements alternate and the best times count, which reduces the
    influence of other processes.
    """
    matrices = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    best: dict[torch.dtype, float] = {}
    for turn in range(TURNS):
        for dtype in (torch.float32, torch.bfloat16):
            a, b = matrices.to(dtype)
            began = time.perf_counter()
            linear(a, b)
            spent = time.perf_counter() - began
            if turn:  # the first is a warm-up
                best[dtype] = min(spent, best.get(dtype, spent))
    return best[torch.float32] / best[torch.bfloat16]


def bf16_fault() -> str | None:
    """Return why bf16 does not pay on this CPU, or None if it does."""
    speedup = bf16_speedup()
    if speedup >= PAYS:
        return None
    return f"this CPU multiplies matrices in bf16 at {speedup:.1f} times its rate in fp32, so it gains nothing"


def cpu_kind() -> str:
    """Return the instruction sets, which affect numerical results, as part of a file name."""
    return "-".join(instruction_sets()) or "cpu"
