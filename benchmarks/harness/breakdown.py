"""Where a generation's time goes on the device, by kind of kernel, as PyTorch's profiler sees it.

Kernels of ONNX Runtime and TensorRT on CUDA are seen too, as CUPTI reports all of a process. On a CPU operators take
the place of kernels, and only PyTorch's own are seen: the time of other runtimes counts as gaps.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from .attention_calls import ATTENTION, profiled
from .contenders.base import synchronise
from .output import markdown

PATTERNS: dict[str, str] = {
    "attention": ATTENTION,
    "products": r"nvjet|gemm|gemv|cublas|xmma|cutlass|wgmma|splitk|triton_tem|linear|matmul|scaled_mm"
    r"|(?:^|:|_)(?:add|b|badd)?mm\b",
    "norms": r"layer_?norm|rms_?norm|layernorm|lnorm|__myl\w*mean",
    "gelu": r"gelu|tanh|(?<![a-z])erf|__myl\w*erf",
    "adds": r"(?<!p)add|op_add|sum",
    "copies": r"mem(?:cpy|set)|copy|cat(?:array|_|$)|concat|gather|scatter|index|expand|transpose|permute|repeat|fill"
    r"|cast|slice|split|pad|::to$|embedding|clone|contiguous|zero",
}
"""Kinds of kernels, each with what is in their names, the first that fits: cuBLAS, cuDNN, PyTorch, Triton, ONNX Runtime
and TensorRT each have names of their own."""
OTHER, GAPS, OPTIMIZER = "other", "gaps", "optimizer"
KINDS = (*PATTERNS, OTHER, GAPS, OPTIMIZER)
MARK = "gpu_user_annotation"
"""How the profiler calls a span on the device that a program, such as PyTorch's compiler, has named."""
CALLS = 3
TOP = 12
"""How many kernels are named."""

_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in PATTERNS.items()}


def kind_of(name: str) -> str:
    """Return the kind of a kernel or operator by its name."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), OTHER)


def breakdown(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Take a call apart.

    Returns:
        ``kinds``: milliseconds a call by kind, gaps between kernels included; ``wall``: a call's milliseconds without a
        profiler; ``kernels``: the longest, each with name, kind, milliseconds and launches a call.
    """
    run()
    walls = []
    for _ in range(CALLS):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        walls.append(time.perf_counter() - began)
    on_cuda = device.type == "cuda"
    spent, launches = _spent(profiled(run, on_cuda, CALLS), on_cuda)
    return _by_kind(spent, launches, 1e3 * median(walls))


def _spent(events: Any, on_cuda: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Return each kernel's milliseconds and launches a call; on a CPU each operator's own."""
    spent: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    for event in events:
        marked = event.is_user_annotation or getattr(event, "activity_type", "") == MARK
        if event.device_type.name != ("CUDA" if on_cuda else "CPU") or marked:
            continue
        spent[event.name] += (event.time_range.elapsed_us() if on_cuda else event.self_cpu_time_total) / 1e3 / CALLS
        launches[event.name] += 1
    return spent, launches


def _by_kind(spent: dict[str, float], launches: dict[str, int], wall: float) -> dict[str, Any]:
    kinds = dict.fromkeys((*PATTERNS, OTHER), 0.0)
    for name, some in spent.items():
        kinds[kind_of(name)] += some
    longest = sorted(spent, key=lambda name: -spent[name])[:TOP]
    return {
        "kinds": kinds | {GAPS: max(0.0, wall - sum(kinds.values()))},
        "wall": wall,
        "kernels": [
            {"name": name[:120], "kind": kind_of(name), "ms": spent[name], "launches": launches[name] / CALLS}
            for name in longest
        ],
    }


def table(contenders: dict[str, Any]) -> str:
    """Return where a generation's time goes, of the contenders whose figures tell, as Markdown; empty if none does."""
    rows = {name: found for name, row in contenders.items() if (found := shares(row))}
    if not rows:
        return ""
    cells = [[name, *(f"{found[kind]:.0%}" for kind in KINDS)] for name, found in rows.items()]
    return "\n".join(markdown(("share of a generation", *KINDS), "lr", cells))


def shares(figures: dict[str, Any]) -> dict[str, float] | None:
    """Return the part of a generation that each kind takes, of a contender's figures in a record, if they have it."""
    if "breakdown" not in figures or "parts_ms" not in figures:
        return None
    parts = figures["parts_ms"]
    kinds = figures["breakdown"]["kinds"] | {OPTIMIZER: parts["optimizer"] + parts["project"]}
    whole = sum(kinds.values())
    return {kind: kinds[kind] / whole for kind in KINDS}
