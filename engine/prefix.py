"""Run the shared prefix of a causal model once per candidate for all buckets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..export.model import Encoded
from .crew import Crew
from .runner import Runner


def run_prefix(run: Runner, encoded: Encoded, hidden: Tensor, prompts: Sequence[Tensor], first: int) -> list[Tensor]:
    """Run consecutive prefix stages from ``first``, one per prompt; return the prefix's state of each, [P, n, W]."""
    states = []
    for stage, prompt in enumerate(prompts, first):
        state = run(stage, hidden, prompt, encoded.tensors)[:, 0]
        states.append(state)
        hidden = entering(state, encoded)
    return states


def entering(state: Tensor, encoded: Encoded) -> Tensor:
    """Return the next stage's input, [P, 1, n, H], from a stage's state [P, n, W]."""
    return state[:, None, :, -encoded.hidden.shape[3] :].contiguous()


class SharedPrefix:
    """The shared prefix of one session's texts.

    Its states under the committed prompts are computed once and cached until a prompt below them changes.

    Args:
        encoded: the positions up to the prompt's end, on the engine's device.
        run: the loaded prefix stages.
        n_stages: the number of stages.
        committed: returns a stage's committed prompt, [1, n, H].
        count: called with each stage that runs and its number of candidates.
        crew: the threads for the candidates.
    """

    def __init__(
        self,
        encoded: Encoded,
        run: Runner,
        n_stages: int,
        committed: Callable[[int], Tensor],
        count: Callable[[int, int], None],
        crew: Crew,
    ) -> None:
        self.encoded = encoded
        self._run, self._n_stages, self._committed, self._count = run, n_stages, committed, count
        self._crew = crew
        self._kept: list[Tensor] = []

    def hidden_states(self, stage: int) -> Tensor:
        """Return a stage's input under the committed prompts, [1, 1, n, H]."""
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
        """Return the states of a layer's stage and all above it for candidate prompts [P, n, H], each [P, n, W]."""
        above = [self._committed(stage) for stage in range(layer + 1, self._n_stages)]
        hidden = self.hidden_states(layer)
        for stage in range(layer, self._n_stages):
            self._count(stage, len(prompts))
        size = max(1, min(tokens_per_call // hidden.shape[2], -(-len(prompts) // self._crew.size)))

        def states(chunk: Tensor) -> list[Tensor]:
            return run_prefix(self._run, self.encoded, hidden, [chunk, *above], layer)

        chunks = self._crew.each(states, torch.split(prompts, size))
        return [torch.cat(states) for states in zip(*chunks, strict=True)]

    def forget(self, layer: int) -> None:
        """Discard the states that depend on a layer's committed prompt."""
        del self._kept[layer:]
