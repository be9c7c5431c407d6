"""pycma as it is, which the original implementation calls: a loop over candidates, and stop criteria."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from .covariance import diverged
from .generation import Array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma misses matplotlib, which only its own plots need
    import cma


class Pycma:
    """``cma.CMAEvolutionStrategy``, started at zero; the arguments are those of ``Strategy``."""

    def __init__(
        self, dim: int, sigma: float, popsize: int, randn: Callable[..., Array], *, bound: float = 0.0,
        shifted: bool = True, aside: Executor | None = None, generations: int = 0,
    ) -> None:  # fmt: skip
        """Start a strategy; the last three arguments have nothing to say here."""
        del shifted, aside, generations
        options = {"popsize": popsize, "randn": randn, "seed": math.nan, "verbose": -9}
        self._strategy = cma.CMAEvolutionStrategy(
            dim * [0.0], sigma, options | ({"bounds": [-bound, bound]} if bound else {})
        )
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
        """Learn from the fitness, [P], of the candidates asked for last; less is better."""
        self._strategy.tell(self._asked, fitness.tolist())
        self.ended = bool(self._strategy.stop())
