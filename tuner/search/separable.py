"""CMA-ES with a diagonal covariance: a variance per coordinate, no rotation and no decomposition.

It learns d numbers instead of d (d + 1) / 2 and so can learn them faster (Ros and Hansen 2008, A Simple Modification in
CMA-ES Achieving Linear Time and Space Complexity). The rates are pycma's; all weights are positive, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .covariance import LARGEST_CONDITION, Lesson, diverged
from .generation import Array, Start
from .strategy import Rates, Strategy


@dataclass(frozen=True)
class Spread:
    """The axes of N(0, C), which are parallel to the coordinates'."""

    lengths: Array
    """The square roots of C's diagonal, [d]."""

    def project(self, steps: Array) -> Array:
        """Return z of each row y = sqrt(C) z, [K, d]."""
        return steps / self.lengths

    def unfold(self, drawn: Array) -> Array:
        """Return y of each row z, [K, d]."""
        return drawn * self.lengths

    def turn(self, drawn: Array) -> Array:
        """Return B z, [d]; B is I."""
        return drawn


class Diagonal:
    """C's diagonal; each update is in use at once."""

    shifted = False

    def __init__(self, dim: int) -> None:
        """Start from C = I."""
        self._variances = np.ones(dim)
        self.axes = Spread(np.ones(dim))

    def learn(self, lesson: Lesson) -> None:
        """Update C by a generation.

        Raises:
            NumericsError: if a variance is not finite.
        """
        learned = lesson.keep * self._variances + lesson.weights @ lesson.rows**2
        if not np.isfinite(learned).all():
            raise diverged()
        self._variances = np.maximum(learned, learned.max() / LARGEST_CONDITION)
        self.axes = Spread(np.sqrt(self._variances))

    def diagonal(self) -> Array:
        """Return C's diagonal, [d]."""
        return self._variances.copy()


class Separable(Strategy):
    """The distribution N(m, sigma^2 C) with C diagonal."""

    OPTIONS: ClassVar[dict[str, Any]] = {**Strategy.OPTIONS, "CMA_diagonal": True}

    def _model(self, published: Any, start: Start) -> Any:
        return Diagonal(start.dim)

    def _rates(self, published: Any) -> Rates:
        sp = published.sp
        return Rates(sp.cc_sep, sp.c1_sep, sp.cmu_sep, np.array(sp.weights.positive_weights))
