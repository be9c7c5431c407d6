"""The covariance C = B D^2 B^T of a search, updated every generation and decomposed every few.

The equations are pycma's (Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772, eq. 47). The schedule of
their computation differs:

- Only the decomposition needs C. A generation only stores its steps and weights; one matrix product adds all
  generations of a gap to C just before its decomposition.
- The lazy schedule is shifted. pycma decomposes C after ``lazy_update_gap`` generations, and draws from the new axes at
  once. Here the decomposition starts at that generation, on another thread beside the engine's work, and its axes are
  in use from the start of the next decomposition on: one gap later. The shift is counted in generations, not seconds,
  so equal runs stay equal to the bit. If the gap is one generation or less, as in few dimensions, nothing is shifted.
- The gap is ``strategy.GAPS`` times pycma's: at d = 500 the decomposition takes half of pycma's time.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from ...export.errors import NumericsError
from .generation import Array

LARGEST_CONDITION = 1e14
"""Largest over smallest eigenvalue of C; past it, float64 no longer tells the smallest from zero."""


@dataclass(frozen=True)
class Axes:
    """The axes of N(0, C)."""

    lengths: Array
    """The diagonal of D, [d], ascending."""
    directions: Array
    """B, [d, d], an axis in each column."""

    def project(self, steps: Array) -> Array:
        """Return z = D^-1 B^T y of each row y, [K, d]."""
        turned: Array = (steps @ self.directions) / self.lengths
        return turned

    def unfold(self, drawn: Array) -> Array:
        """Return y = B D z of each row z, [K, d] (eq. 39)."""
        steps: Array = (drawn * self.lengths) @ self.directions.T
        return steps

    def turn(self, drawn: Array) -> Array:
        """Return B z, [d]."""
        turned: Array = self.directions @ drawn
        return turned


@dataclass(frozen=True)
class Lesson:
    """A generation's update of C."""

    keep: float
    """Factor of the previous C."""
    rows: Array
    """[K, d]."""
    weights: Array
    """[K], of the rows' outer products."""


class Covariance:
    """C and the axes to draw from; like pycma's, it starts nearly as I, with distinct eigenvalues."""

    def __init__(self, dim: int, gap: float, shifted: bool = True, aside: Executor | None = None) -> None:
        """Start from C = I.

        Args:
            dim: d.
            gap: generations from one decomposition to the next, as pycma's ``lazy_update_gap``.
            shifted: False uses new axes at once, which is pycma's own schedule.
            aside: decomposes; None for the caller's thread. The numbers are the same.
        """
        variances = np.exp(1e-4 / dim * np.arange(dim))
        self.gap, self.shifted = gap, shifted and gap > 1
        self._matrix = np.diag(variances)
        self._lessons: list[Lesson] = []
        self._aside = aside
        self._axes: Future[Axes] = Future()
        self._axes.set_result(Axes(np.sqrt(variances), np.eye(dim)))
        self._begun = self._axes

    @property
    def axes(self) -> Axes:
        """The axes of the next generation.

        Raises:
            NumericsError: if C could not be decomposed.
        """
        return self._axes.result()

    def upcoming(self, lesson: bool) -> Future[Axes]:
        """Return the axes after one more lesson, or without it; only for a shifted schedule."""
        return self._begun if lesson and self._due(len(self._lessons) + 1) else self._axes

    def learn(self, lesson: Lesson) -> None:
        """Store a generation; if the schedule says so, start a decomposition and use the previous one."""
        self._lessons.append(lesson)
        if self._due(len(self._lessons)):
            lessons, self._lessons = self._lessons, []
            self._axes, self._begun = self._begun, self._begin(lessons)
            if not self.shifted:
                self._axes = self._begun

    def matrix(self) -> Array:
        """Return C, [d, d], including all lessons."""
        self._begun.result()
        return absorb(self._matrix.copy(), self._lessons)

    def diagonal(self) -> Array:
        """Return C's diagonal, [d]."""
        return self.matrix().diagonal().copy()

    def _due(self, lessons: int) -> bool:
        return lessons >= self.gap

    def _begin(self, lessons: list[Lesson]) -> Future[Axes]:
        if self._aside is not None:
            return self._aside.submit(self._decompose, lessons)
        done: Future[Axes] = Future()
        done.set_result(self._decompose(lessons))
        return done

    def _decompose(self, lessons: list[Lesson]) -> Axes:
        return decompose(absorb(self._matrix, lessons))


def absorb(matrix: Array, lessons: list[Lesson]) -> Array:
    """Update a covariance [d, d] in place by the generations in order (eq. 47); return it."""
    weights, keep = [], 1.0
    for lesson in reversed(lessons):
        weights.append(keep * lesson.weights)
        keep *= lesson.keep
    if lessons:
        rows = np.concatenate([lesson.rows for lesson in reversed(lessons)])
        matrix *= keep
        matrix += (np.concatenate(weights) * rows.T) @ rows
    return matrix


def decompose(matrix: Array) -> Axes:
    """Return the axes of a covariance [d, d], after limiting its condition in place.

    Raises:
        NumericsError: if it is not finite, or LAPACK fails.
    """
    if not np.isfinite(np.trace(matrix)):
        raise diverged()
    try:
        values, directions = np.linalg.eigh(matrix)
    except np.linalg.LinAlgError as error:
        raise NumericsError(
            f"the covariance of CMA-ES could not be decomposed: {error}. Run the same command again to resume from the "
            "last generation, or try another --seed."
        ) from error
    lacking = values[-1] / LARGEST_CONDITION - values[0]
    if lacking > 0:
        matrix[np.diag_indices_from(matrix)] += lacking
        values += lacking
    return Axes(np.sqrt(values), directions)


def diverged() -> NumericsError:
    """Return the error about a distribution with non-finite values."""
    return NumericsError(
        "the search has diverged: its distribution holds a value that is NaN or infinite. Try a smaller --sigma, or a "
        "--bound."
    )
