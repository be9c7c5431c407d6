"""The protocol of runners."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor


class Runner(Protocol):
    """A stage chain, loaded on one runtime."""

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The files that it runs, if any."""
        ...

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return the hidden states [max(P', P), N, S, H] or logits [P, N, W] of a stage.

        Args:
            stage: the stage's number.
            hidden: [P', N, S, H] on the engine's device, in its dtype.
            prompt: [P, n, H], likewise; P' = 1 or P = 1 broadcasts.
            tensors: the stages' other inputs, by name.
        """
        ...
