"""The live line of a running search."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Never

from tqdm import tqdm


@dataclass(frozen=True)
class Standing:
    """The state of a search after a generation."""

    evaluations: int
    replayed: bool
    loss: float
    """Best training loss so far (of the current layer)."""
    train: float
    """Training metric of the generation's best candidate; NaN if unknown."""
    dev: float
    """Best development metric so far; NaN before the first."""


class Progress:
    """Receives the state of a search; this base class shows nothing."""

    def start(self, label: str, budget: int) -> None:
        """Begin a search of this many evaluations."""

    def update(self, standing: Standing) -> None:
        """Record a generation."""

    def finish(self) -> None:
        """End the search."""


class ProgressLine(Progress):
    """One line on a terminal: evaluations, evaluations per second, losses, metrics, time left. Elsewhere nothing."""

    def __init__(self, every: int) -> None:
        """Refresh the line once per this many evaluations."""
        self._every = every
        self._bar: tqdm[Never] | None = None

    def start(self, label: str, budget: int) -> None:
        """Open the line."""
        self._bar = tqdm(
            total=budget, desc=label, unit="eval", file=sys.stderr, dynamic_ncols=True, disable=None, mininterval=0,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_fmt}{postfix}, {remaining} left]",
        )  # fmt: skip

    def update(self, standing: Standing) -> None:
        """Show a generation."""
        assert self._bar is not None
        ahead = standing.evaluations - self._bar.n
        if standing.replayed:  # progress, but not speed
            self._bar.initial = self._bar.n = self._bar.last_print_n = standing.evaluations
            return
        if ahead < self._every and standing.evaluations < (self._bar.total or 0):
            return
        metrics = {"train": standing.train, "dev": standing.dev}
        known = {name: f"{value:.1%}" for name, value in metrics.items() if not math.isnan(value)}
        self._bar.set_postfix({"loss": f"{standing.loss:.4f}"} | known, refresh=False)
        self._bar.update(ahead)

    def finish(self) -> None:
        """Close the line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
