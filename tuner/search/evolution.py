"""CMA-ES on the searched vector: pycma with a sampler of ours, and random numbers kept to itself.

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
from dataclasses import dataclass

import numpy as np

from .generation import Array
from .sampler import ShiftedSampler, one_thread

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma misses matplotlib, which only its own plots need
    import cma


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
        self, dim: int, sigma: float, popsize: int, generations: int, *, seed: int, layer: int = 0, bound: float = 0.0,
        shifted: bool = True,
    ) -> None:  # fmt: skip
        """Start a strategy.

        Args:
            dim: d, the length of the searched vector.
            sigma: initial step size.
            popsize: candidates per generation.
            generations: how many will be asked for.
            seed: the run's.
            layer: selects the random stream.
            bound: each coordinate stays in [-bound, bound]; 0 for no bounds.
            shifted: decompose the covariance beside the engine's work; False for pycma's own schedule.
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
        gap = self._strategy.sm.lazy_update_gap
        self._strategy.sm = ShiftedSampler(dim, gap, stream.randn, shifted)
        self._asked: list[Array] = []

    @one_thread()
    def ask(self) -> Asked:
        """Draw the next generation."""
        self._asked = self._strategy.ask()
        axes = self._strategy.D
        return Asked(np.stack(self._asked), float(self._strategy.sigma), float(axes.max() / axes.min()))

    @one_thread()
    def tell(self, fitness: Array) -> None:
        """Report the fitness, [P], of the candidates asked for last; less is better."""
        self._strategy.tell(self._asked, fitness.tolist())
