"""CMA-ES on whole populations: pycma's algorithm and default parameters without its loops over candidates.

A population is an array; ask and tell are a few matrix products. The equations are pycma's (Hansen, The CMA Evolution
Strategy: A Tutorial, arXiv 1604.00772, whose equations are cited). pycma itself provides the parameters, the rule for
the step size, cumulative or by two mirrored candidates, and the transformation into bounds. A search for prompts does
not need restarts, logs, stopping, integer variables, injected candidates, mirrored ones in a population below six, and
pycma's change of coordinates when C's condition exceeds 1e8, so they are left out.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .covariance import Axes, Covariance, Lesson
from .generation import Array, Start

GAPS = 2
"""Gap between decompositions, in units of pycma's lazy gap."""
NEARLY_ROUND = math.exp(1e-4)
"""Upper limit of the longest axis of the first C."""
Drawn = tuple[Array, Array]
"""Random numbers z and steps y = B D z, [K, d] each."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of the covariance."""

    cc: float
    """Rate of its path."""
    c1: float
    """Rate of the update from the path."""
    cmu: float
    """Rate of the update from a generation's steps."""
    weights: Array
    """Weights of the steps, best first; steps beyond them have none."""


class Strategy:
    """The distribution N(m, sigma^2 C), started at m = 0 and C = I; pycma's rules for sigma read its attributes."""

    ended = False
    OPTIONS: ClassVar[dict[str, Any]] = {"CMA_mirrors": 0, "seed": math.nan, "verbose": -9}
    """pycma's options."""

    def __init__(self, start: Start) -> None:
        """Start a strategy."""
        import cma  # takes a second, which only a search needs

        dim = start.dim
        options = {"popsize": start.popsize, **self.OPTIONS}
        bounds = {"bounds": [-start.bound, start.bound]} if start.bound else {}
        published = cma.CMAEvolutionStrategy(dim * [0.0], start.sigma, options | bounds)
        self.N, self.sp, self.opts, self.countiter = dim, published.sp, published.opts, 0
        self.sigma, self.mean, self.isotropic_mean_shift = start.sigma, np.zeros(dim), np.zeros(dim)
        self.covariance = self._model(published, start)
        self._randn, self._aside, self._ahead = start.randn, start.aside, Future[Drawn]()
        self._box = published.boundary_handler if start.bound else None
        self._sigma_rule = published.adapt_sigma
        self._mirrors = isinstance(self._sigma_rule, cma.sigma_adaptation.CMAAdaptSigmaTPA)
        self._learning = self._rates(published)
        self._recombination = np.array(self.sp.weights.positive_weights)
        self._path, self._shift = np.zeros(dim), np.zeros(dim)
        self._scale = np.ones(dim) * published.sigma_vec.scaling
        self._longest = np.ones(dim) * published.opts["maxstd"]
        self._variances = self.covariance.diagonal()
        self._numbers, self._steps = np.empty((0, dim)), np.empty((0, dim))

    def ask(self, *, told: bool = True) -> Array:
        """Draw the next generation, [P, d] (eqs. 38 to 40).

        Args:
            told: whether ``tell`` will follow. It may change the axes of the generation that is drawn ahead.

        Raises:
            NumericsError: if the search has diverged.
        """
        mirrored = self._mirrors and self.countiter > 0
        if self._ahead.cancel():  # not submitted, or not started yet
            drawn = self._draw(self.covariance.axes, self.sp.popsize - mirrored)
        else:
            drawn = self._ahead.result()
        self._numbers, self._steps = self._mirrored(*drawn) if mirrored else drawn
        if self._aside is not None and self.covariance.shifted:
            self._ahead = self._aside.submit(self._draw_ahead, self.covariance.upcoming(told))
        candidates: Array = self.mean + self.sigma * self._scale * self._steps
        return candidates if self._box is None else np.stack([self._box.repair(x) for x in candidates])

    @property
    def axis_ratio(self) -> float:
        """Longest over shortest axis of C."""
        lengths = self.covariance.axes.lengths
        return float(lengths.max() / lengths.min())

    @property
    def centre(self) -> Array:
        """The mean, [d], within the bounds."""
        return self.mean if self._box is None else np.asarray(self._box.repair(self.mean))

    def tell(self, fitness: Array) -> None:
        """Learn from the fitness, [P], of the last candidates; less is better."""
        order = np.argsort(fitness, kind="stable")
        steps, numbers, sp, parents = self._steps[order], self._numbers[order], self.sp, len(self._recombination)
        self.countiter += 1
        mean_step = self._recombination @ steps[:parents]
        self._shift = self.sigma * self._scale * mean_step
        self.mean = self.mean + self._shift  # eq. 42
        turned = self.covariance.axes.turn(self._recombination @ numbers[:parents])
        self.isotropic_mean_shift = math.sqrt(sp.weights.mueff) * turned  # the path's step, eq. 43
        moving = bool(self._sigma_rule.hsig(self))
        cc = self._learning.cc
        self._path = (1 - cc) * self._path
        if moving:
            self._path += math.sqrt(cc * (2 - cc) * sp.weights.mueff) * mean_step  # eq. 45
        lesson = self._lesson(steps, np.linalg.norm(numbers, axis=1), moving)
        self.covariance.learn(lesson)
        self.sigma *= float(self._sigma_rule.update2(self, function_values=fitness))
        if self._box is not None:
            self._limit(lesson)

    def _draw(self, axes: Axes, rows: int) -> Drawn:
        numbers = self._randn(rows, self.N)
        return numbers, axes.unfold(numbers)

    def _draw_ahead(self, axes: Future[Axes]) -> Drawn:
        return self._draw(axes.result(), self.sp.popsize - self._mirrors)

    def _mirrored(self, numbers: Array, steps: Array) -> Drawn:
        """Put the last step of the mean and its mirror before P - 1 drawn steps, one of which gives the pair its norm.

        The fitter one of the pair changes the step size (Hansen et al. 2014, How to Assess Step-Size Adaptation
        Mechanisms in Randomised Search). If the mean's step was long, pycma draws two lengths before this one.
        """
        axes = self.covariance.axes
        step = self._shift / self._scale
        number = axes.project(step)
        length = float(np.linalg.norm(number))
        unused = 0
        if length > self.sigma * math.sqrt(self.N):
            unused = 2
            more = self._draw(axes, unused)
            numbers, steps = np.concatenate([numbers, more[0]]), np.concatenate([steps, more[1]])
        factor = float(np.linalg.norm(numbers[unused])) / length if length > 0 else 0.0
        pair = factor * np.array([[1.0], [-1.0]])
        rest = slice(unused + 1, None)
        return np.concatenate([pair * number, numbers[rest]]), np.concatenate([pair * step, steps[rest]])

    def _lesson(self, steps: Array, lengths: Array, moving: bool) -> Lesson:
        """Return C's update (eqs. 46, 47) from the path and the steps [P, d], best first, with |z| [P]."""
        rates = self._learning
        c1 = rates.c1 if moving else rates.c1 * (1 - rates.cc * (2 - rates.cc))
        weights = rates.cmu * rates.weights
        keep = 1 - c1 - float(weights.sum())
        steps, lengths = steps[: len(weights)], lengths[: len(weights)]
        negative = weights < 0
        weights[negative] *= self.N / (lengths[negative] + 1e-9) ** 2
        return Lesson(keep, np.concatenate([self._path[None], steps]), np.concatenate([[rates.c1], weights]))

    def _model(self, published: Any, start: Start) -> Any:
        """Return the covariance."""
        gap = published.sm.lazy_update_gap * (GAPS if start.shifted else 1)
        return Covariance(start.dim, gap, start.shifted, start.aside)

    def _rates(self, published: Any) -> Rates:
        """Return the learning rates of the covariance."""
        sp = published.sp
        rates = published.sm.parameters(mueff=sp.weights.mueff, lam=sp.popsize)
        return Rates(sp.cc, rates["c1"], rates["cmu"], np.array(sp.weights))

    def _limit(self, lesson: Lesson) -> None:
        """Keep each coordinate's deviation within a third of its range, as pycma does."""
        self._variances = lesson.keep * self._variances + lesson.weights @ lesson.rows**2
        deviations = self._scale * self.sigma * np.sqrt(self._variances)
        most = self._longest * (NEARLY_ROUND if self.countiter <= 2 else 1.0)
        self._scale = np.where(deviations > most, self._scale * self._longest / deviations, self._scale)
