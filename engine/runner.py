"""What runs a loaded chain of stages, on any runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor


class Runner(Protocol):
    """A loaded stage chain: runs one stage on one runtime."""

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The files it runs, if it runs any."""
        ...

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return the hidden states [max(P', P), N, S, H] or logits [P, N, W] of a stage.

        Args:
            stage: its number in the chain.
            hidden: [P', N, S, H] on the engine's device, in its dtype.
            prompt: [P, n, H], likewise; P' = 1 or P = 1 broadcasts.
            tensors: what else the stages take, by name.
        """
        ...
