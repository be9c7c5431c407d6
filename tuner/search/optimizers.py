"""The optimizers, as a table; each draws only from its given random stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .generation import Array, Start
from .local import Local
from .pycma import Pycma
from .separable import Separable
from .snes import Snes
from .strategy import Strategy


class Optimizer(Protocol):
    """Proposes candidates, and learns from the order of their fitness."""

    @property
    def sigma(self) -> float:
        """Step size."""

    @property
    def axis_ratio(self) -> float:
        """Longest over shortest axis."""

    @property
    def centre(self) -> Array:
        """The mean of the distribution, [d], within the bounds."""

    @property
    def ended(self) -> bool:
        """Whether its own criteria have stopped it."""

    def ask(self) -> Array:
        """Draw the next generation, [P, d]; does not move the mean."""

    def tell(self, fitness: Array) -> None:
        """Learn from the fitness, [P], of the last candidates; less is better."""


OPTIMIZERS: dict[str, Callable[[Start], Optimizer]] = {
    "cma": Strategy, "sep-cma": Separable, "snes": Snes, "pycma": Pycma, "cma-local": Local,
}  # fmt: skip
