"""Unmodified pycma, as in the original implementation: it loops over candidates and has stop criteria."""

from __future__ import annotations

import math

import numpy as np

from .covariance import diverged
from .generation import Array, Start


class Pycma:
    """``cma.CMAEvolutionStrategy``."""

    def __init__(self, start: Start) -> None:
        """Start a strategy."""
        import cma  # takes a second, which only a search needs

        options = {"popsize": start.popsize, "randn": start.randn, "seed": math.nan, "verbose": -9}
        bounds = {"bounds": [-start.bound, start.bound]} if start.bound else {}
        self._strategy = cma.CMAEvolutionStrategy(start.dim * [0.0], start.sigma, options | bounds)
        self._asked: list[Array] = []
        self.ended = False

    @property
    def sigma(self) -> float:
        """Step size."""
        return float(self._strategy.sigma)

    @property
    def axis_ratio(self) -> float:
        """Longest over shortest axis."""
        return float(np.max(self._strategy.D) / np.min(self._strategy.D))

    @property
    def centre(self) -> Array:
        """The mean, [d], within the bounds."""
        return np.asarray(self._strategy.result.xfavorite)

    def ask(self) -> Array:
        """Draw the next generation, [P, d].

        Raises:
            NumericsError: if the search has diverged.
        """
        self._asked = self._strategy.ask()
        candidates = np.stack(self._asked)
        if not np.isfinite(candidates).all():
            raise diverged()
        return candidates

    def tell(self, fitness: Array) -> None:
        """Learn from the fitness, [P], of the last candidates; less is better."""
        self._strategy.tell(self._asked, fitness.tolist())
        self.ended = bool(self._strategy.stop())
