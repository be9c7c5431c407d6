"""CMA-ES, then a local search around its best candidate.

These are the two stages of BBT-RGB (Sun et al. 2024) in populations: its second is COBYLA, which asks for one
candidate at a time. Here it is a (1 + P) evolution strategy. It draws steps from the distribution that CMA-ES has
learned, which stays as it is, and takes them from the best candidate so far. The step size follows the one-fifth rule
(Rechenberg 1973) with a generation as the trial: it grows where a candidate is better than all before, and shrinks
where none is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from .generation import Array
from .strategy import Strategy

GLOBAL_SHARE = 0.75
"""Of the generations, those of CMA-ES."""
FIRST_STEP = 0.2
"""The local search's first step size, in units of the last one of CMA-ES."""
GROWTH = 1.5
"""Of the step size after a success; after a failure it shrinks by the fourth root, so that one in five keeps it."""


class Local:
    """Drives ``Strategy``, then goes on from the best candidate."""

    ended = False

    def __init__(
        self, dim: int, sigma: float, popsize: int, randn: Callable[..., Array], *, bound: float = 0.0,
        shifted: bool = True, aside: Executor | None = None, generations: int = 0,
    ) -> None:  # fmt: skip
        """Start a strategy; the arguments are those of ``Strategy``."""
        self._wide = Strategy(dim, sigma, popsize, randn, bound=bound, shifted=shifted, aside=aside)
        self._left = math.ceil(GLOBAL_SHARE * generations)
        self._bound = bound or math.inf
        self._scale = FIRST_STEP
        self._best, self._loss, self._asked = np.zeros(dim), math.inf, np.empty((0, dim))

    @property
    def sigma(self) -> float:
        """Step size."""
        return self._wide.sigma * (1.0 if self._left else self._scale)

    @property
    def axis_ratio(self) -> float:
        """Longest over shortest axis of the steps."""
        return self._wide.axis_ratio

    @property
    def centre(self) -> Array:
        """The mean of CMA-ES, then the best candidate, [d]."""
        return self._wide.centre if self._left else self._best.copy()

    def ask(self) -> Array:
        """Draw the next generation, [P, d].

        Raises:
            NumericsError: if the search has diverged.
        """
        self._asked = self._wide.ask()
        if not self._left:
            steps = self._scale * (self._asked - self._wide.centre)
            self._asked = np.clip(self._best + steps, -self._bound, self._bound)
        return self._asked

    def tell(self, fitness: Array) -> None:
        """Learn from the fitness, [P], of the candidates asked for last; less is better."""
        winner = int(fitness.argmin())
        success = bool(fitness[winner] < self._loss)
        if success:
            self._best, self._loss = self._asked[winner].copy(), float(fitness[winner])
        if self._left:
            self._left -= 1
            self._wide.tell(fitness)
        else:
            self._scale *= GROWTH if success else GROWTH**-0.25
