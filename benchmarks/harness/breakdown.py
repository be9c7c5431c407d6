"""The device time of a generation by kind of kernel, from PyTorch's profiler.

On CUDA it includes the kernels of ONNX Runtime and TensorRT, as CUPTI reports those of the whole process. On a CPU it
has PyTorch's operators in place of kernels, and the time of other runtimes counts as gaps.
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
"""The kinds of kernels, and what their names match: the names of cuBLAS, cuDNN, PyTorch, Triton, ONNX Runtime and
TensorRT. The first match counts."""
OTHER, GAPS, OPTIMIZER = "other", "gaps", "optimizer"
KINDS = (*PATTERNS, OTHER, GAPS, OPTIMIZER)
MARK = "gpu_user_annotation"
"""The profiler's type of a device span that a program, such as PyTorch's compiler, named."""
CALLS = 3
TOP = 12
"""The number of kernels in a record."""

_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in PATTERNS.items()}


def kind_of(name: str) -> str:
    """Return the kind of a kernel or operator by its name."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), OTHER)


def breakdown(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Profile a call.

    Returns:
        ``kinds``: milliseconds per call by kind, with gaps between kernels; ``wall``: milliseconds of a call without a
        profiler; ``kernels``: the longest, each with name, kind, milliseconds and launches per call.
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
    """Return milliseconds and launches per call of each kernel; on a CPU of each operator without its callees."""
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
    """Return the breakdowns of the contenders that have one as Markdown; empty if none has."""
    rows = {name: found for name, row in contenders.items() if (found := shares(row))}
    if not rows:
        return ""
    cells = [[name, *(f"{found[kind]:.0%}" for kind in KINDS)] for name, found in rows.items()]
    return "\n".join(markdown(("share of a generation", *KINDS), "lr", cells))


def shares(figures: dict[str, Any]) -> dict[str, float] | None:
    """Return the share of each kind in a generation from a contender's figures, if they have a breakdown."""
    if "breakdown" not in figures or "parts_ms" not in figures:
        return None
    parts = figures["parts_ms"]
    kinds = figures["breakdown"]["kinds"] | {OPTIMIZER: parts["optimizer"] + parts["project"]}
    whole = sum(kinds.values())
    return {kind: kinds[kind] / whole for kind in KINDS}
