"""Answering: ``evaluate(prompts) -> label logits``, on PyTorch, ONNX Runtime and others."""

from ..export.examples import Examples
from .base import Engine, Savings
from .loading import ENGINES, load_engine
from .session import Session

__all__ = ["ENGINES", "Engine", "Examples", "Savings", "Session", "load_engine"]
