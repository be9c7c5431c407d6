"""The attention operators and kernels that an engine runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from bbt_fast.engine import Engine, Session
from bbt_fast.export.graphs import node_counts

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


def torch_kernel(engine: Engine, session: Session) -> str:
    """List the operators that the evaluation of one candidate calls."""
    return attention_calls(lambda: _evaluate_one(engine, session))


def ort_kernel(engine: Engine, session: Session) -> str:
    """Count the graphs' attention nodes; on CUDA also list the kernels of an evaluation."""
    counts = sum((node_counts(path) for path in engine.artifacts), Counter[str]())
    nodes = listed({name: counts[name] for name in ("Attention", "PackedMultiHeadAttention") if counts[name]})
    if engine.device.type == "cpu":
        return f"{nodes}, CPU provider"
    return f"{nodes}, CUDA provider: {attention_kernels(lambda: _evaluate_one(engine, session))}"


def openvino_kernel(engine: Engine, session: Session) -> str:
    """Read the implementations from the compiled graphs; a fused node lists the ONNX nodes that it replaces."""
    del session
    found: Counter[str] = Counter()
    for runner in engine._runners.values():
        models: Any = runner._models  # type: ignore[attr-defined]
        for model in models:
            for node in model.get_runtime_model().get_ordered_ops():
                about = {key: str(value.value) for key, value in node.get_rt_info().items() if hasattr(value, "value")}
                if "attention" in about.get("originalLayersNames", "").lower():
                    found[f"{about['layerType']} {about['primitiveType']}"] += 1
    return listed(found)


def trt_kernel(engine: Engine, session: Session) -> str:
    """Return a placeholder: TensorRT's plans do not name kernels without detailed profiling."""
    del engine, session
    return "TensorRT's own"


KERNELS: dict[str, Callable[[Engine, Session], str]] = {
    "torch": torch_kernel,
    "ort": ort_kernel,
    "openvino": openvino_kernel,
    "trt": trt_kernel,
}
"""By engine."""


def _evaluate_one(engine: Engine, session: Session) -> None:
    session.evaluate(torch.zeros(1, engine.n_prompt_tokens, engine.hidden_size, device=engine.device))
