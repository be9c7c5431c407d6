"""The base class of runners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


class Runner(ABC):
    """A stage chain, loaded on one runtime."""

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The files that it runs, if any."""
        return ()

    @abstractmethod
    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return the hidden states [max(P', P), N, S, H] or logits [P, N, W] of a stage.

        Args:
            stage: the stage's number.
            hidden: [P', N, S, H] on the engine's device, in its dtype.
            prompt: [P, n, H], likewise; P' = 1 or P = 1 broadcasts.
            tensors: the stages' other inputs, by name.
        """

    def chain(self, first: int, hidden: Tensor, prompts: Sequence[Tensor], tensors: dict[str, Tensor]) -> Tensor:
        """Run consecutive stages from ``first``, one per prompt; return what the last one returns."""
        for stage, prompt in enumerate(prompts, first):
            hidden = self(stage, hidden, prompt, tensors)
        return hidden
