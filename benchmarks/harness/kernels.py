"""The kernel that an engine's attention runs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from bbt_fast.engine import Engine, Session
from bbt_fast.export.graphs import node_counts

from .attention_calls import attention_calls, attention_kernels, listed


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
