"""CMA-ES, then a local search around its best candidate.

These are the two stages of BBT-RGB (Sun et al. 2024) on populations. Its second stage is COBYLA, which evaluates one
candidate at a time; here it is a (1 + P) evolution strategy. It draws steps from the final distribution of CMA-ES and
adds them to the best candidate so far. The step size follows the one-fifth rule (Rechenberg 1973) per generation: it
grows if a candidate beats all earlier ones, and shrinks otherwise.
"""

from __future__ import annotations

import math

import numpy as np

from .generation import Array, Start
from .strategy import Strategy

GLOBAL_SHARE = 0.75
"""Share of the generations that CMA-ES runs."""
FIRST_STEP = 0.2
"""The local search's first step size, in units of the last one of CMA-ES."""
GROWTH = 1.5
"""Factor of the step size after a success; a failure divides it by the fourth root, so one success in five keeps it."""


class Local:
    """Drives ``Strategy``, then searches around the best candidate."""

    ended = False

    def __init__(self, start: Start) -> None:
        """Start with CMA-ES."""
        self._wide = Strategy(start)
        self._left = math.ceil(GLOBAL_SHARE * start.generations)
        self._bound = start.bound or math.inf
        self._scale = FIRST_STEP
        self._best, self._loss, self._asked = np.zeros(start.dim), math.inf, np.empty((0, start.dim))

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
        self._asked = self._wide.ask(told=self._left > 0)
        if not self._left:
            steps = self._scale * (self._asked - self._wide.centre)
            self._asked = np.clip(self._best + steps, -self._bound, self._bound)
        return self._asked

    def tell(self, fitness: Array) -> None:
        """Learn from the fitness, [P], of the last candidates; less is better."""
        winner = int(fitness.argmin())
        success = bool(fitness[winner] < self._loss)
        if success:
            self._best, self._loss = self._asked[winner].copy(), float(fitness[winner])
        if self._left:
            self._left -= 1
            self._wide.tell(fitness)
        else:
            self._scale *= GROWTH if success else GROWTH**-0.25
