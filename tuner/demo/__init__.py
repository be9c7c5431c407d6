"""The embedded demo: a small masked language model and a two-class task of synthetic reviews.

``scripts/train_demo.py`` creates both; its docstring explains how, and the permitted use of the model.
"""

from pathlib import Path
from typing import Final

from .sentences import rows

MODEL_DIR: Final = Path(__file__).resolve().parent
"""Folder of the packaged model, which `transformers` loads like any checkpoint."""

__all__ = ["MODEL_DIR", "rows"]
