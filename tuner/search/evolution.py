"""An optimizer on the searched vector, with its own stream of random numbers.

pycma seeds numpy's global generator at the start of a strategy and draws from it, so the original BBTv2, with a
strategy per layer, reseeds one stream L times and then interleaves it. Here each strategy owns its stream. Layer 0 has
the stream of the original's BBT (``RandomState(seed)``), number for number. Deeper layers have streams derived from
(seed, layer), which differ from the original's BBTv2 unless all share layer 0's. The candidates equal pycma's except
for rounding, until the first axes that are used one gap late (``covariance.py``).
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from .generation import Array, Start
from .optimizers import OPTIMIZERS
from .threads import one_thread


@dataclass(frozen=True)
class Asked:
    """A generation's candidates and the scale of their distribution."""

    candidates: Array
    """[P, d]."""
    sigma: float
    """Step size."""
    axis_ratio: float
    """Longest over shortest axis."""


class Evolution:
    """One optimizer over a vector of length d, started at zero."""

    def __init__(
        self, dim: int, sigma: float, popsize: int, *, seed: int, layer: int = 0, embedding: int = 0,
        bound: float = 0.0, shifted: bool = True, aside: Executor | None = None, optimizer: str = "cma",
        generations: int = 0, stream: np.random.RandomState | None = None,
    ) -> None:  # fmt: skip
        """Start a strategy.

        Args:
            dim: d, the length of the searched vector.
            sigma: initial step size.
            popsize: candidates per generation.
            seed: the run's.
            layer: selects the random stream, with ``embedding``.
            embedding: the number of searches in other projections before this one.
            bound: each coordinate stays in [-bound, bound]; 0 for no bounds.
            shifted: begin to draw from new axes one gap after their covariance; False for pycma's own schedule.
            aside: decomposes covariances beside the engine's work (``threads.background``); None for the caller's
                thread, with the same numbers.
            optimizer: a name in ``OPTIMIZERS``.
            generations: the planned number; 0 if unknown.
            stream: the random stream; None for that of seed, layer and embedding.
        """
        stream = stream or random_stream(seed, layer, embedding)
        self.dim = dim
        self._strategy = OPTIMIZERS[optimizer](
            Start(dim, sigma, popsize, stream.randn, bound, shifted, aside, generations)
        )

    @property
    def ended(self) -> bool:
        """Whether the optimizer's own criteria have stopped it."""
        return self._strategy.ended

    @one_thread()
    def ask(self) -> Asked:
        """Draw the next generation.

        Raises:
            NumericsError: if the search has diverged.
        """
        candidates = self._strategy.ask()
        return Asked(candidates, self._strategy.sigma, self._strategy.axis_ratio)

    @one_thread()
    def tell(self, fitness: Array) -> None:
        """Report the fitness, [P], of the last candidates; less is better."""
        self._strategy.tell(fitness)

    def mean(self) -> Array:
        """Return the mean of the distribution, [d], within the bounds."""
        return self._strategy.centre


def random_stream(seed: int, layer: int, embedding: int = 0) -> np.random.RandomState:
    """Return the random stream of a layer's candidates in one embedding."""
    first = not layer and not embedding
    bits = np.random.MT19937() if first else np.random.MT19937(np.random.SeedSequence([seed, layer, embedding]))
    stream = np.random.RandomState(bits)
    if first:
        stream.seed(seed)
    return stream
