"""Which kernel an engine's attention runs on: a speed without it is half a story."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import onnxruntime as ort
import torch

from bbt_fast.engine import Engine, Session
from bbt_fast.export.graphs import node_counts

from .attention_calls import attention_calls, listed

ORT_SAYS = re.compile(r"Attention: using ([\w ]+?)(?: path| \(|$)", re.MULTILINE)
"""How ONNX Runtime's CUDA provider (1.31) names the kernel of an attention node in its verbose log."""
VERBOSE, ERRORS, INHERITED = 0, 3, -1
"""Levels of its logs."""


def torch_kernel(engine: Engine, session: Session) -> str:
    """Look on while one candidate is evaluated."""
    return attention_calls(lambda: _evaluate_one(engine, session))


def ort_kernel(engine: Engine, session: Session) -> str:
    """Count the graphs' Attention nodes; on CUDA also read what the provider prints about them."""
    counts = sum((node_counts(path) for path in engine.artifacts), Counter[str]())
    nodes = listed({name: counts[name] for name in ("Attention", "PackedMultiHeadAttention") if counts[name]})
    if engine.device.type == "cpu":
        return f"{nodes}, CPU provider"
    return f"{nodes}, CUDA provider: {_printed(engine, session)}"


def openvino_kernel(engine: Engine, session: Session) -> str:
    """Read the implementations out of the compiled graphs; a fused node lists the ONNX nodes that it stands for."""
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
    """TensorRT chooses when it builds; its plans tell only with detailed profiling."""
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


def _printed(engine: Engine, session: Session) -> str:
    """Return the kernels that the CUDA provider names in its log, on standard error, during one evaluation."""
    runners: Any = engine._runners.values()
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            for runner in runners:
                runner._options.log_severity_level = VERBOSE
            ort.set_default_logger_severity(VERBOSE)
            _evaluate_one(engine, session)
        finally:
            ort.set_default_logger_severity(ERRORS)
            for runner in runners:
                runner._options.log_severity_level = INHERITED
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return listed(Counter(ORT_SAYS.findall(file.read()))) or "not said"
