"""Checked access to a request: tensors of a type and rank, parameters of a type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbt_fast.engine.wire import Array, Message
from bbt_fast.export.errors import NumericsError, ShapeError, UsageError


def numbers(message: Message, name: str, axes: int) -> Array:
    """Return a tensor of finite numbers as float32, none of its axes empty.

    Raises:
        ShapeError: if it is missing or has another rank.
        NumericsError: if it holds NaN or infinity.
    """
    found = message.tensors.get(name)
    if found is None or found.dtype.kind != "f" or found.ndim != axes or 0 in found.shape:
        raise ShapeError(f"{name} must be numbers (FP16, FP32 or FP64) with {axes} axes, none of them empty.")
    with np.errstate(over="ignore"):
        values = found.astype(np.float32)
    if not np.isfinite(values).all():
        raise NumericsError(f"{name} holds NaN or infinity.")
    return values


def integers(message: Message, name: str) -> Array:
    """Return a tensor of integers as int64.

    Raises:
        ShapeError: if it is missing.
    """
    found = message.tensors.get(name)
    if found is None or found.dtype.kind != "i":
        raise ShapeError(f"{name} must be integers (INT32 or INT64).")
    return found.astype(np.int64)


def class_labels(message: Message, rows: int, classes: int) -> Tensor | None:
    """Return the tensor `labels`, [N] class indices, or None if there is none.

    Raises:
        ShapeError: if its length is not the number of rows, or an index is out of range.
    """
    if "labels" not in message.tensors:
        return None
    labels = integers(message, "labels")
    if labels.shape != (rows,) or (rows and not 0 <= labels.min() <= labels.max() < classes):
        raise ShapeError(f"labels must be [N], each from 0 to {classes - 1}.")
    return torch.from_numpy(labels.copy())


def parameter(message: Message, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """Return a parameter.

    Raises:
        UsageError: if it has another type.
    """
    value = message.parameters.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"parameter {name!r} is {value!r:.60}, which is of the wrong type.")
    return value
