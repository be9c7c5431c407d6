"""The interface of a search: the oracle that it calls, the optimizers' arguments, the generations that it yields."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Start:
    """The arguments of every optimizer, which starts at zero."""

    dim: int
    """d, the length of the searched vector."""
    sigma: float
    """Initial step size."""
    popsize: int
    """Candidates per generation, P."""
    randn: Callable[..., Array]
    """Draws N(0, 1)."""
    bound: float = 0.0
    """Each coordinate stays in [-bound, bound]; 0 for no bounds."""
    shifted: bool = True
    """CMA-ES: begin to draw from new axes one gap after their covariance; False for pycma's own schedule."""
    aside: Executor | None = None
    """CMA-ES: decomposes covariances, and draws a generation while the previous one is evaluated; None for the caller's
    thread. The numbers are the same."""
    generations: int = 0
    """The planned number of generations; 0 if unknown."""


@dataclass(frozen=True)
class Scores:
    """The scores of a generation's candidates on the training examples."""

    fitness: Array
    """[P], the loss of each candidate; less is better."""
    metric: float
    """The metric of the best candidate; NaN in a replayed generation, which does not compute it."""


class Oracle(Protocol):
    """Scores candidates; an algorithm knows nothing else of the model."""

    def evaluate(self, candidates: Array, layer: int) -> Scores:
        """Score candidates [P, d] for a layer's prompt; changes nothing."""

    def commit(self, candidate: Array, layer: int) -> None:
        """Fix a layer's prompt, given as the candidate [d], for all later calls."""


@dataclass(frozen=True)
class Generation:
    """One generation after its evaluation."""

    index: int
    layer: int
    scores: Scores
    best: tuple[Array, ...]
    """[d] per layer, the kept candidates so far (``--keep``); zeros (p = p0) before a layer's first generation."""
    losses: tuple[float, ...]
    """Per layer, the loss of the best candidate so far; infinite before a layer's first generation."""
    sigma: float
    """Step size of this generation's distribution."""
    axis_ratio: float
    """Longest over shortest axis of this generation's distribution."""
    candidates: Array
    """[P, d]."""
    before: tuple[Array, ...]
    """The kept candidates during the evaluation."""
    ended: bool = False
    """Whether the optimizer's own criteria have stopped it."""

    @property
    def best_loss(self) -> float:
        """The best loss so far of this generation's layer."""
        return self.losses[self.layer]


Steps = Generator[Generation, None, None]
"""An algorithm: it yields generations until its last one or until it is closed."""


@dataclass
class Best:
    """Each layer's best candidate so far."""

    layers: int
    dim: int
    start: Sequence[float] | None = None
    """The losses of p0; None if it has not been scored."""
    candidates: list[Array] = field(init=False)
    losses: list[float] = field(init=False)

    def __post_init__(self) -> None:
        """Start from p0."""
        self.candidates = [np.zeros(self.dim) for _ in range(self.layers)]
        self.losses = [math.inf] * self.layers if self.start is None else list(self.start)

    def update(self, layer: int, candidates: Array, fitness: Array) -> bool:
        """Keep the generation's best candidate if it beats the layer's; the earlier wins a tie. Return if it did."""
        winner = int(fitness.argmin())
        if not fitness[winner] < self.losses[layer]:
            return False
        self.candidates[layer], self.losses[layer] = candidates[winner].copy(), float(fitness[winner])
        return True

    def take(self, layer: int, candidates: Array, fitness: Array, mean: Callable[[], Array]) -> bool:
        """Record a generation, and return whether the layer's prompt has changed.

        Args:
            layer: the layer of the generation.
            candidates: [P, d].
            fitness: [P].
            mean: waits for the optimizer's tell, and returns its mean, [d].
        """
        del mean
        return self.update(layer, candidates, fitness)


class Mean(Best):
    """The mean of each layer's distribution; the losses stay those of the best candidates.

    A mean of many candidates overfits the training examples less than a single candidate.
    """

    def take(self, layer: int, candidates: Array, fitness: Array, mean: Callable[[], Array]) -> bool:
        """Keep the mean after every generation."""
        self.update(layer, candidates, fitness)
        self.candidates[layer] = mean()
        return True


KEEPS: dict[str, type[Best]] = {"best": Best, "mean": Mean}
