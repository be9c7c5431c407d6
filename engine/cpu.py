"""What the CPU can compute fast."""

from __future__ import annotations

from torch.cpu import get_capabilities

BF16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
"""Instruction sets that multiply bf16 matrices; without one of them bf16 is emulated."""

NOTABLE = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_fp16", "amx_int8", "amx_fp16", "neon", "sve", *BF16)


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that matter here and that this CPU has."""
    return tuple(name for name in NOTABLE if get_capabilities().get(name))


def computes_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices itself."""
    return any(get_capabilities().get(name) for name in BF16)


def cpu_kind() -> str:
    """Return what a kernel's numbers depend on, as part of a file name."""
    return "-".join(instruction_sets()) or "cpu"
