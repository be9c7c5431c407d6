"""A separable natural evolution strategy (Schaul et al. 2011, High Dimensions and Heavy Tails for NES).

It has no paths and no matrix: the mean and d step sizes follow the natural gradient of the ranks. Candidates are
mirrored pairs, so each pair compares the two sides of the mean at the same distance.
"""

from __future__ import annotations

import math

import numpy as np

from .covariance import diverged
from .generation import Array, Start


class Snes:
    """The distribution N(m, diag(sigma)^2), started at m = 0."""

    ended = False

    def __init__(self, start: Start) -> None:
        """Start a strategy."""
        dim, popsize = start.dim, start.popsize
        self._randn, self._popsize = start.randn, popsize
        self._bound = start.bound or math.inf
        self._mean, self._deviations, self._drawn = np.zeros(dim), np.full(dim, start.sigma), np.empty((0, dim))
        self._rate = (3 + math.log(dim)) / (5 * math.sqrt(dim))
        raw = np.maximum(0.0, math.log(popsize / 2 + 1) - np.log(np.arange(1, popsize + 1)))
        self._utilities = raw / raw.sum() - 1 / popsize

    @property
    def sigma(self) -> float:
        """Geometric mean of the step sizes."""
        return float(np.exp(np.log(self._deviations).mean()))

    @property
    def axis_ratio(self) -> float:
        """Largest over smallest step size."""
        return float(self._deviations.max() / self._deviations.min())

    @property
    def centre(self) -> Array:
        """The mean, [d], within the bounds."""
        return self._mean.copy()

    def ask(self) -> Array:
        """Draw the next generation, [P, d]: pairs, and a single candidate if P is odd."""
        half = self._randn((self._popsize + 1) // 2, len(self._mean))
        self._drawn = np.stack([half, -half], axis=1).reshape(-1, half.shape[1])[: self._popsize]
        candidates = self._mean + self._deviations * self._drawn
        if self._bound < math.inf:  # learn from the steps within the bounds
            candidates = np.clip(candidates, -self._bound, self._bound)
            self._drawn = (candidates - self._mean) / self._deviations
        return candidates

    def tell(self, fitness: Array) -> None:
        """Learn from the fitness, [P], of the last candidates; less is better.

        Raises:
            NumericsError: if a step size is not finite or not above 0.
        """
        drawn = self._drawn[np.argsort(fitness, kind="stable")]
        mean = self._mean + self._deviations * (self._utilities @ drawn)
        self._mean = np.clip(mean, -self._bound, self._bound)
        self._deviations = self._deviations * np.exp(self._rate / 2 * (self._utilities @ (drawn**2 - 1)))
        if not (np.isfinite(self._deviations) & (self._deviations > 0)).all():
            raise diverged()
