"""What a search and its surroundings say to each other: the oracle it asks, and the generations it hands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What a generation's candidates are worth on the training examples."""

    fitness: Array
    """[P], the loss of each candidate; less is better."""
    metric: float
    """The metric of the best candidate; NaN when it was not computed again (a replayed generation)."""


class Oracle(Protocol):
    """Answers what candidates are worth; an algorithm knows nothing else of the model."""

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
    """[d] per layer, what ``--keep`` holds best so far; zeros (p = p0) where a layer had no turn yet."""
    losses: tuple[float, ...]
    """Per layer, the loss of the best candidate so far; infinite where a layer had no turn yet."""
    sigma: float
    """CMA-ES step size that this generation was drawn with."""
    axis_ratio: float
    """Longest over shortest axis of the distribution that this generation was drawn from."""
    candidates: Array
    """[P, d]."""
    before: tuple[Array, ...]
    """What was held best while they were evaluated."""
    ended: bool = False
    """Whether the optimizer goes no further, by criteria of its own."""

    @property
    def best_loss(self) -> float:
        """Of this generation's layer, so far."""
        return self.losses[self.layer]


Steps = Generator[Generation, None, None]
"""What an algorithm is: it hands out one generation after the other, until its last or until it is closed."""


@dataclass
class Best:
    """Each layer's best candidate so far."""

    layers: int
    dim: int
    start: Sequence[float] | None = None
    """The losses of p0; None where it has not been scored."""
    candidates: list[Array] = field(init=False)
    losses: list[float] = field(init=False)

    def __post_init__(self) -> None:
        """Start from p0."""
        self.candidates = [np.zeros(self.dim) for _ in range(self.layers)]
        self.losses = [math.inf] * self.layers if self.start is None else list(self.start)

    def update(self, layer: int, candidates: Array, fitness: Array) -> bool:
        """Keep the generation's best if it beats what the layer has; the first one wins a tie. Say whether it did."""
        winner = int(fitness.argmin())
        if not fitness[winner] < self.losses[layer]:
            return False
        self.candidates[layer], self.losses[layer] = candidates[winner].copy(), float(fitness[winner])
        return True

    def take(self, layer: int, candidates: Array, fitness: Array, mean: Callable[[], Array]) -> bool:
        """Take in a generation, and say whether the layer has another prompt now.

        Args:
            layer: whose turn it was.
            candidates: [P, d].
            fitness: [P].
            mean: waits until the optimizer has been told, and returns its mean, [d].
        """
        del mean
        return self.update(layer, candidates, fitness)


class Mean(Best):
    """The mean that each layer's candidates are drawn around; the losses stay those of the best candidates.

    A mean of many candidates has less of what made a single one lucky on the training examples.
    """

    def take(self, layer: int, candidates: Array, fitness: Array, mean: Callable[[], Array]) -> bool:
        """Keep the mean after every generation."""
        self.update(layer, candidates, fitness)
        self.candidates[layer] = mean()
        return True


KEEPS: dict[str, type[Best]] = {"best": Best, "mean": Mean}
