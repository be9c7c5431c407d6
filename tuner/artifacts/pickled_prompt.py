"""The original implementation's prompt file: a pickled embedding, read without running code from the pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...export.errors import DataError

SUFFIXES = (".pt", ".pth", ".bin")
"""Usual suffixes of PyTorch's pickles."""

BROKEN = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
    AttributeError,
)  # fmt: skip
"""The errors that PyTorch raises for files that it refuses or cannot read."""


def read_pickled(path: Path) -> Tensor:
    """Return the prompt [n, H] of a file that holds an ``nn.Embedding``, such as ``nli_base_prompt.pt``, or a tensor.

    PyTorch's weights-only loader reads it: it accepts tensors, plain containers and, here, this one module, and calls
    nothing else that the file names.

    Raises:
        DataError: if it holds other objects, or is damaged.
    """
    try:
        with torch.serialization.safe_globals([nn.Embedding, set]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path} is refused: a pickled prompt is one embedding module or one tensor, but this file is damaged or "
            f"holds more ({reason[:120]}). Save the tensor [n, H] with safetensors instead."
        ) from error
    prompt = getattr(found, "weight", None) if isinstance(found, nn.Embedding) else found
    if not isinstance(prompt, Tensor) or prompt.ndim not in (2, 3) or not prompt.is_floating_point():
        raise DataError(
            f"{path} holds a {type(found).__name__}, but a pickled prompt is one embedding module or one float tensor "
            "[n, H] or [L, n, H]."
        )
    return prompt.detach().float()
