"""CMA-ES on the searched vector: a thin wrapper of pycma that keeps its random numbers to itself.

pycma seeds numpy's global generator when a strategy is made and draws from it ever after, so the original BBTv2, with a
strategy per layer, reseeds one stream L times and then interleaves it. Here each strategy owns its stream. Layer 0's is
the one that the original's BBT draws from (``RandomState(seed)``), number for number; deeper layers have streams
derived from (seed, layer), which is where a BBTv2 run departs from the original's.

numpy's matrix routines run on one thread here. How many there are changes their last bits, the eigenvectors of a
covariance that is still nearly round turn by any angle on these, and a run could then be resumed only with as many
threads as it began with. One is also the faster: the engine's threads want the same cores.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from .generation import Array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma misses matplotlib, which only its own plots need
    import cma


Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


@cache
def _numpy_threads() -> ThreadpoolController:
    """Return what sets the threads of numpy's own matrix library, and of no engine's."""
    return ThreadpoolController().select(internal_api="openblas")


def on_one_thread(work: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Have a function's matrix routines run on one thread."""

    @wraps(work)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        with _numpy_threads().limit(limits=1):
            return work(*arguments, **named)

    return run


@dataclass(frozen=True)
class Asked:
    """A generation's candidates and the distribution they were drawn from."""

    candidates: Array
    """[P, d]."""
    sigma: float
    """Step size."""
    axis_ratio: float
    """Longest over shortest axis."""


class Evolution:
    """One CMA-ES over a vector of length d, started at zero."""

    def __init__(
        self, dim: int, sigma: float, popsize: int, generations: int, *, seed: int, layer: int = 0, bound: float = 0.0
    ) -> None:
        """Start a strategy.

        Args:
            dim: d, the length of the searched vector.
            sigma: initial step size.
            popsize: candidates per generation.
            generations: how many will be asked for.
            seed: the run's.
            layer: selects the random stream.
            bound: each coordinate stays in [-bound, bound]; 0 for no bounds.
        """
        bits = np.random.MT19937(np.random.SeedSequence([seed, layer])) if layer else np.random.MT19937()
        stream = np.random.RandomState(bits)
        if not layer:
            stream.seed(seed)
        options = {
            "randn": stream.randn,
            "seed": math.nan,  # pycma leaves numpy's global generator alone
            "popsize": popsize,
            "maxiter": generations,
            "verbose": -1,
        }
        if bound:
            options["bounds"] = [-bound, bound]
        self.dim = dim
        self._strategy = cma.CMAEvolutionStrategy(dim * [0.0], sigma, options)
        self._asked: list[Array] = []

    @on_one_thread
    def ask(self) -> Asked:
        """Draw the next generation."""
        self._asked = self._strategy.ask()
        axes = self._strategy.D
        return Asked(np.stack(self._asked), float(self._strategy.sigma), float(axes.max() / axes.min()))

    @on_one_thread
    def tell(self, fitness: Array) -> None:
        """Report the fitness, [P], of the candidates asked for last; less is better."""
        self._strategy.tell(self._asked, fitness.tolist())
