"""The optimizers, as a table; each draws from the stream that it is given, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from .generation import Array
from .local import Local
from .pycma import Pycma
from .separable import Separable
from .snes import Snes
from .strategy import Strategy


class Optimizer(Protocol):
    """Asks about candidates, and is told their fitness; only its order counts."""

    @property
    def sigma(self) -> float:
        """Step size."""

    @property
    def axis_ratio(self) -> float:
        """Longest over shortest axis."""

    @property
    def centre(self) -> Array:
        """The mean that candidates are drawn around, [d], within the bounds."""

    @property
    def ended(self) -> bool:
        """Whether it goes no further, by criteria of its own."""

    def ask(self) -> Array:
        """Draw the next generation, [P, d]; moves no mean."""

    def tell(self, fitness: Array) -> None:
        """Learn from the fitness, [P], of the candidates asked for last; less is better."""


class Make(Protocol):
    """Starts an optimizer at zero; the arguments are those of ``Strategy``."""

    def __call__(
        self, dim: int, sigma: float, popsize: int, randn: Callable[..., Array], *, bound: float = 0.0,
        shifted: bool = True, aside: Executor | None = None, generations: int = 0,
    ) -> Optimizer:  # fmt: skip
        """Start one."""


OPTIMIZERS: dict[str, Make] = {
    "cma": Strategy, "sep-cma": Separable, "snes": Snes, "pycma": Pycma, "cma-local": Local,
}  # fmt: skip
