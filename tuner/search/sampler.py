"""pycma's full-covariance sampler with the eigendecomposition beside the engine's work and no loop over candidates.

The equations are pycma's (Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772). Two things differ:

- The norms that the negative weights need (eq. 46) are one matrix product for the whole population.
- The lazy schedule is shifted. pycma decomposes C = B D^2 B^T when ``lazy_update_gap`` generations have passed, and
  draws from the new axes at once. Here the decomposition begins at that generation, on a thread of its own, and its
  axes are used from the generation on at which the next one begins: one gap later. The shift is counted in generations,
  never in seconds, so equal runs stay equal to the bit. Where the gap is one generation or less, as in few dimensions,
  nothing is shifted.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .generation import Array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma misses matplotlib, which only its own plots need
    from cma.sampler import GaussFullSampler

Axes = tuple[Array, Array]


class _OneThread:
    """Keeps numpy's matrix library, and no engine's, on one thread while anyone holds it.

    The library's limit is the process's, not the thread's: the first to enter sets it, and the last to leave lifts it.
    """

    def __init__(self) -> None:
        self._library = ThreadpoolController().select(internal_api="openblas")
        self._lock = threading.Lock()
        self._holders = 0
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            if not self._holders:
                self._limit = self._library.limit(limits=1)
            self._holders += 1

    def leave(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._limit.restore_original_limits()


@cache
def _limit() -> _OneThread:
    return _OneThread()


@contextmanager
def one_thread() -> Iterator[None]:
    """Have numpy's matrix routines run on one thread, in all threads of the process."""
    _limit().enter()
    try:
        yield
    finally:
        _limit().leave()


@cache
def _aside() -> ThreadPoolExecutor:
    """Return the thread that decomposes, for all strategies of the process; LAPACK releases the interpreter lock."""
    return ThreadPoolExecutor(1, "bbt-fast-eigh")


def _decompose(covariance: Array) -> Axes:
    """Return the eigenvalues [d], ascending, and the eigenvectors as columns [d, d]."""
    with one_thread():
        values, vectors = np.linalg.eigh(covariance)
    return values, vectors


class ShiftedSampler(GaussFullSampler):  # type: ignore[misc]  # pycma has no types
    """N(0, C) for pycma's strategy, which finds it under ``sm``."""

    def __init__(self, dim: int, gap: float, randn: Callable[..., Array], shifted: bool = True) -> None:
        """Start from C = I.

        Args:
            dim: d.
            gap: pycma's ``lazy_update_gap``, in generations.
            randn: draws N(0, 1).
            shifted: False waits for every decomposition where it begins, which is pycma's own schedule.
        """
        super().__init__(dim, lazy_update_gap=gap, randn=randn)
        self.last_update: int = 0
        self._shifted = shifted and gap > 1
        self._begun: Future[Axes] | None = None
        self._product = np.empty((dim, dim))

    def sample(self, number: int, lazy_update_gap: float | None = None, same_length: bool = False) -> Array:
        """Draw y = B D z, [number, d] (eq. 39); z are the numbers that pycma would draw."""
        if same_length:
            return super().sample(number, lazy_update_gap, same_length)  # type: ignore[no-any-return]
        self.update_now(lazy_update_gap)
        drawn: Array = (self.randn(number, self.dimension) * self.D) @ self.B.T
        return drawn

    def update(self, vectors: Sequence[Array], weights: Sequence[float], c1_times_delta_hsigma: float = 0) -> None:
        """Learn from row vectors [K, d] with weights [K], rank one and rank mu together (eqs. 46 and 47)."""
        rows, factors = np.asarray(vectors), np.array(weights, dtype=float)
        self.C *= 1 + c1_times_delta_hsigma - factors.sum()
        negative = factors < 0
        if negative.any():
            lengths = np.linalg.norm(rows[negative] @ self.B / self.D, axis=1)
            factors[negative] *= self.dimension / (lengths + 1e-9) ** 2
        if not np.isfinite(factors).all():
            raise FloatingPointError("a candidate's step is not finite: the search has diverged")
        np.matmul(factors * rows.T, rows, out=self._product)
        self.C += self._product
        self.count_tell += 1

    def norm(self, x: Array) -> float:
        """Return the Mahalanobis norm of x, [d]."""
        return float(np.linalg.norm((self.B.T @ x) / self.D))

    def update_now(self, lazy_update_gap: float | None = None) -> None:
        """Begin a decomposition where the lazy schedule has one, and take over the axes of the one before."""
        if lazy_update_gap is not None or not self._shifted:
            self._begun = None
            super().update_now(lazy_update_gap)
        elif self.count_tell >= self.last_update + self.lazy_update_gap:
            if self._begun is not None:
                self._take(self._begun.result())
            self._begun = _aside().submit(_decompose, self.C.copy())
            self.last_update = self.count_tell

    def multiply_C(self, factor: Any) -> None:  # noqa: N802
        """Scale C; the axes of the C before it are not waited for."""
        self._begun = None
        super().multiply_C(factor)

    def _decompose_C(self) -> None:  # noqa: N802
        self._begun = None
        super()._decompose_C()

    def _take(self, axes: Axes) -> None:
        values, vectors = axes
        if values[0] <= 0:
            self._decompose_C()  # pycma's way out of a C that rounding has made indefinite
            return
        self.D, self.B = np.sqrt(values), vectors
        self._inverse_root_C = None
        self.count_eigen += 1
