"""A causal model's prompt, run once per candidate and handed to all buckets of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..export.model import Encoded
from .crew import Crew


class Run(Protocol):
    """Runs one stage; a Runner does."""

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return what the stage returns."""
        ...


def run_prefix(run: Run, encoded: Encoded, hidden: Tensor, prompts: Sequence[Tensor], first: int) -> list[Tensor]:
    """Run the stages from one to the last and return the prefix's state in each, [P, n, W].

    Args:
        run: the loaded prefix stages.
        encoded: the positions up to the prompt's end.
        hidden: [P', 1, n, H], what enters the first of these stages.
        prompts: one for each of the stages, [P, n, H] or [1, n, H].
        first: the number of the first of these stages.
    """
    states = []
    for stage, prompt in enumerate(prompts, first):
        state = run(stage, hidden, prompt, encoded.tensors)[:, 0]
        states.append(state)
        hidden = entering(state, encoded)
    return states


def entering(state: Tensor, encoded: Encoded) -> Tensor:
    """Return what enters the next stage, [P, 1, n, H], of a stage's state [P, n, W]."""
    return state[:, None, :, -encoded.hidden.shape[3] :].contiguous()


class SharedPrefix:
    """The positions up to the prompt's end of one session's texts.

    Their states under the committed prompts are computed once and kept until a prompt below them changes.

    Args:
        encoded: those positions, on the engine's device.
        run: the loaded prefix stages.
        n_stages: how many there are.
        committed: gives a stage's committed prompt, [1, n, H].
        count: is told each stage that runs and for how many candidates.
        crew: runs the candidates.
    """

    def __init__(
        self,
        encoded: Encoded,
        run: Run,
        n_stages: int,
        committed: Callable[[int], Tensor],
        count: Callable[[int, int], None],
        crew: Crew,
    ) -> None:
        self.encoded = encoded
        self._run, self._n_stages, self._committed, self._count = run, n_stages, committed, count
        self._crew = crew
        self._kept: list[Tensor] = []

    @property
    def length(self) -> int:
        """How many positions there are."""
        return self.encoded.hidden.shape[2]

    def hidden_states(self, stage: int) -> Tensor:
        """Return what enters a stage under the committed prompts, [1, 1, n, H]."""
        return entering(self.committed(stage - 1), self.encoded) if stage else self.encoded.hidden

    def committed(self, stage: int) -> Tensor:
        """Return the state of a stage under the committed prompts, [1, n, W]."""
        if stage >= len(self._kept):
            missing = [self._committed(number) for number in range(len(self._kept), stage + 1)]
            hidden = entering(self._kept[-1], self.encoded) if self._kept else self.encoded.hidden
            for number in range(len(self._kept), stage + 1):
                self._count(number, 1)
            self._kept += run_prefix(self._run, self.encoded, hidden, missing, len(self._kept))
        return self._kept[stage]

    def states(self, prompts: Tensor, layer: int, tokens_per_call: int) -> list[Tensor]:
        """Return the states of a layer's stage and of all above it for candidate prompts [P, n, H]: each [P, n, W].

        Args:
            prompts: the candidates.
            layer: the stage that they enter.
            tokens_per_call: how many tokens to run at once.
        """
        above = [self._committed(stage) for stage in range(layer + 1, self._n_stages)]
        hidden = self.hidden_states(layer)
        for stage in range(layer, self._n_stages):
            self._count(stage, len(prompts))
        size = max(1, min(tokens_per_call // self.length, -(-len(prompts) // self._crew.size)))

        def states(chunk: Tensor) -> list[Tensor]:
            return run_prefix(self._run, self.encoded, hidden, [chunk, *above], layer)

        chunks = self._crew.each(states, torch.split(prompts, size))
        return [torch.cat(states) for states in zip(*chunks, strict=True)]

    def forget(self, layer: int) -> None:
        """Forget what depends on a layer's committed prompt."""
        del self._kept[layer:]
