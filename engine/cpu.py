"""What the CPU can compute fast."""

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
"""Those of them that multiply bf16."""
LIMIT = "ONEDNN_MAX_CPU_ISA"
"""The environment variable that keeps oneDNN, which PyTorch and OpenVINO multiply with, from newer instructions."""
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Its values that leave no bf16 instructions."""

PAYS = 1.2
"""How many times fp32's rate of matrix products bf16 must reach to be worth its lost digits."""
SIZE = 512
"""Rows and columns of the matrices that are timed; three fp32 ones fill 3 MB, about what a core's own cache holds."""
TURNS = 5


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that matter here and that this CPU has."""
    return tuple(name for name in NOTABLE if get_capabilities().get(name))


def has_bf16() -> bool:
    """Tell whether this CPU has bf16 instructions that oneDNN may use."""
    hidden = os.environ.get(LIMIT, "").upper() in WITHOUT_BF16
    return not hidden and any(get_capabilities().get(name) for name in BF16)


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
