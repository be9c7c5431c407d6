"""From the searched vector to a soft prompt: the random projection p = A z + p0 (Sun et al. 2022, eq. 2), or none.

The host draws A from the stream (seed, layer), so that every engine and device searches the same space. A is on the
engine's device, [n*H, d]; one matrix product projects a whole population.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PROJECTION_STREAM = 1
NONE = "none"
"""The kind of projection that searches the prompt itself."""
TRANSFERRED = 0.5
"""Share of a matrix's variance along earlier prompts, if there are any."""


@dataclass(frozen=True)
class Projection:
    """p = A z + p0 for a whole population."""

    matrix: Tensor
    """A, [n*H, d] float32."""
    origin: Tensor
    """p0, [n, H] float32."""

    @property
    def dim(self) -> int:
        """Length of z."""
        return self.matrix.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of the matrix."""
        return self.matrix.nbytes

    def __call__(self, candidates: NDArray[np.float64]) -> Tensor:
        """Return the prompts [P, n, H] of the candidates [P, d]."""
        z = torch.from_numpy(candidates.astype(np.float32)).to(self.matrix.device, non_blocking=True)
        return (z @ self.matrix.T).reshape(-1, *self.origin.shape) + self.origin


@dataclass(frozen=True)
class FullSpace:
    """p = s z + p0: z is as long as a prompt, and there is no matrix."""

    scale: float
    """s."""
    origin: Tensor
    """p0, [n, H] float32."""
    nbytes = 0

    @property
    def dim(self) -> int:
        """Length of z, n*H."""
        return self.origin.numel()

    def __call__(self, candidates: NDArray[np.float64]) -> Tensor:
        """Return the prompts [P, n, H] of the candidates [P, n*H]."""
        z = torch.from_numpy(candidates.astype(np.float32)).to(self.origin.device, non_blocking=True)
        return self.scale * z.reshape(-1, *self.origin.shape) + self.origin


Space = Projection | FullSpace
"""A map from z to prompts."""


def normal(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """Draw N(0, scale^2)."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def uniform(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """Draw U(-1/sqrt(d), 1/sqrt(d)), PyTorch's initialization of a linear layer; the scale is unused."""
    return (rng.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)) / np.float32(math.sqrt(shape[1]))


PROJECTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int], float], NDArray[np.float32]]] = {
    "normal": normal,
    "uniform": uniform,
}


def normal_scale(spread: float, dim: int, alpha: float, sigma: float) -> float:
    """Return A's standard deviation, alpha * spread / (sqrt(d) * sigma), for values of this spread (Sec. 3.2).

    With d = 1 it is the factor of a full space whose first prompts have the spread of projected ones.
    """
    return alpha * spread / (math.sqrt(dim) * sigma)


def transferred(
    rng: np.random.Generator, matrix: NDArray[np.float32], scale: float, earlier: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Turn the columns of a matrix towards earlier prompts.

    Each column becomes a weighted sum of itself and a random mixture of the prompts, which hold ``TRANSFERRED`` of the
    variance. All prompts have equal weight, whatever their norm.

    Args:
        rng: draws the mixtures.
        matrix: A, [n*H, d], of N(0, scale^2).
        scale: A's standard deviation, which is unchanged.
        earlier: [K, n*H]; prompts of zeros, as of an untuned layer, are ignored.
    """
    earlier = earlier[earlier.any(axis=1)]
    if not len(earlier):
        return matrix
    unit = earlier / np.sqrt(np.mean(earlier**2, axis=1, keepdims=True))
    mixtures = normal(rng, (len(earlier), matrix.shape[1]), scale / math.sqrt(len(earlier)))
    turned: NDArray[np.float32] = math.sqrt(1 - TRANSFERRED) * matrix + math.sqrt(TRANSFERRED) * (unit.T @ mixtures)
    return turned


def draw_projection(
    kind: str, seed: int, layer: int, dim: int, scale: float, origin: Tensor, device: torch.device, embedding: int = 0,
    earlier: Tensor | None = None,
) -> Projection:  # fmt: skip
    """Draw the projection of one layer; see ``draw_projections``."""
    rng = np.random.default_rng([seed, PROJECTION_STREAM, layer, embedding])
    matrix = PROJECTIONS[kind](rng, (origin.numel(), dim), scale)
    if earlier is not None:
        matrix = transferred(rng, matrix, scale, earlier.flatten(1).numpy())
    return Projection(torch.from_numpy(matrix).to(device), origin.to(device, torch.float32))


def draw_projections(
    kind: str, seed: int, dim: int, scales: Sequence[float], origins: Sequence[Tensor], device: torch.device,
    embedding: int = 0, earlier: Tensor | None = None,
) -> list[Projection]:  # fmt: skip
    """Draw one projection per layer.

    Args:
        kind: a name in ``PROJECTIONS``.
        seed: the run's; layer i draws from the stream (seed, i).
        dim: d, the length of the searched vector.
        scales: one standard deviation per layer (``normal`` only).
        origins: p0 of each layer, [n, H].
        device: the device of A.
        embedding: the number of the embedding; each has its own streams.
        earlier: turns the columns towards these prompts, [K, layers, n, H] float32 on the CPU (``normal`` only).
    """

    def draw(layer: int) -> Projection:
        towards = None if earlier is None else earlier[:, layer]
        return draw_projection(kind, seed, layer, dim, scales[layer], origins[layer], device, embedding, towards)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # drawing 24 layers of 51,200 x 500 numbers takes seconds
        return list(pool.map(draw, range(len(scales))))
