"""The common parts of engines in other processes: ``remote.py`` (a server) and ``workers.py`` (a Ray cluster)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..export.errors import ShapeError
from .wire import Array


@dataclass(frozen=True)
class DistantEmbeddings:
    """The word embeddings of a model in another process; the counterpart of ``LocalEmbeddings``."""

    digest: str
    spread: float
    width: int
    fetch: Callable[[Sequence[int]], Array]
    """Returns the embeddings of tokens, [len(ids), E] float32."""

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings of tokens, [len(ids), E] float32."""
        return torch.from_numpy(self.fetch(ids).copy())


def check_commit(prompt: Tensor, layer: int, shape: tuple[int, int], n_stages: int) -> None:
    """Check a prompt before it is committed to a layer.

    Args:
        prompt: the prompt.
        layer: the layer.
        shape: (n, H).
        n_stages: the number of layers that prompts can enter.

    Raises:
        ShapeError: if the prompt does not fit the graph or there is no such layer.
    """
    if tuple(prompt.shape) != shape:
        raise ShapeError(f"prompts must be {list(shape)}, not {list(prompt.shape)}.")
    if not 0 <= layer < n_stages:
        raise ShapeError(f"layer is {layer}, but prompts can enter layers 0 to {n_stages - 1} here.")


def floats(tensor: Tensor) -> Array:
    """Return a tensor as a contiguous float32 array."""
    array: Array = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    return array
