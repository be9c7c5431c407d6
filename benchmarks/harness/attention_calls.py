"""The attention operators that PyTorch calls, and the attention kernels that run on CUDA."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

ATTENTION = r"attention|attn|sdpa|fmha|mha|flash|softmax"
"""Matches the names of attention kernels."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators with attention in their names."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            with self:  # a dispatcher: count the operator that it selects
                return func.decompose(*args, **(kwargs or {}))
        if "attention" in name or "attn" in name:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def attention_calls(run: Callable[[], Any]) -> str:
    """Call a function, and list the attention operators that it called, if any."""
    with _Watch() as watch:
        run()
    return listed(watch.found) or "no fused attention"


def attention_kernels(run: Callable[[], Any]) -> str:
    """Call a function, and list the attention kernels that it ran on CUDA, if any."""
    run()
    names = [event.name for event in profiled(run, on_cuda=True) if event.device_type.name == "CUDA"]
    found = Counter(short_name(name) for name in names if re.search(ATTENTION, name, re.IGNORECASE))
    return listed(found) or "no fused attention"


def profiled(run: Callable[[], Any], on_cuda: bool, calls: int = 1) -> list[Any]:
    """Return the events of PyTorch's profiler in some calls."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as seen:
        for _ in range(calls):
            run()
        if on_cuda:
            torch.cuda.synchronize()
    return list(seen.events() or [])


def short_name(kernel: str) -> str:
    """Return a kernel's name without its return type, template arguments and parameters."""
    return kernel.removeprefix("void ").split("<")[0].split("(")[0].strip() or kernel


def listed(found: Mapping[str, int]) -> str:
    """Return counts as text."""
    return ", ".join(f"{name} x{count}" for name, count in sorted(found.items()))
