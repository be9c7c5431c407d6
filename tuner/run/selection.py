"""Which prompts of a generation the development set scores, and which of two scores is kept: ``--select``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..search.generation import Array, Generation
from ..search.objective import Score

Prompts = tuple[Array, ...]
"""[d] per layer."""


@dataclass(frozen=True)
class Selection:
    """A way to select."""

    prompts: Callable[[Generation, Sequence[int]], list[Prompts]]
    """From a generation, and its candidates at whose evaluation ``eval_every`` fell due, to what is scored."""
    better: Callable[[Score, Score], bool]
    """Whether the first score is better than the second."""


def better(score: Score, than: Score) -> bool:
    """Say whether a development score is better: by the metric, and by the loss where the metrics tie."""
    return (score.metric, -score.loss) > (than.metric, -than.loss)


def _best(generation: Generation, due: Sequence[int]) -> list[Prompts]:
    return [generation.best] if due else []


def _due(generation: Generation, due: Sequence[int]) -> list[Prompts]:
    """Return the candidates that were due, each beside the prompts that the other layers had."""
    below, above = generation.before[: generation.layer], generation.before[generation.layer + 1 :]
    return [(*below, generation.candidates[number], *above) for number in due]


SELECTIONS = {
    "best": Selection(_best, better),
    "due": Selection(_due, lambda score, than: score.metric > than.metric),
}
