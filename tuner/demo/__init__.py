"""The embedded demo: a small masked language model and a two-class task of synthetic reviews.

Both are made by ``scripts/train_demo.py``, whose docstring says how and what the model may be used for.
"""

from pathlib import Path
from typing import Final

from .sentences import rows

MODEL_DIR: Final = Path(__file__).resolve().parent
"""Folder of the packaged model: `transformers` loads it like any checkpoint."""

__all__ = ["MODEL_DIR", "rows"]
