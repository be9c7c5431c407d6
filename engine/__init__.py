"""Engines: evaluate soft prompts to label logits, on PyTorch, ONNX Runtime, OpenVINO or TensorRT."""

from ..export.examples import Examples
from .base import Engine
from .loading import ENGINES, load_engine
from .savings import Savings
from .session import Session

__all__ = ["ENGINES", "Engine", "Examples", "Savings", "Session", "load_engine"]
