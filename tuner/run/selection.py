"""``--select``: which prompts of a generation the development set scores, and which of two scores wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..search.generation import Array, Generation
from ..search.objective import Score

Prompts = tuple[Array, ...]
"""[d] per layer."""


@dataclass(frozen=True)
class Selection:
    """A selection rule."""

    prompts: Callable[[Generation, Sequence[int]], list[Prompts]]
    """Given a generation and the numbers of its candidates at which ``eval_every`` is due, returns prompts to score."""
    better: Callable[[Score, Score], bool]
    """Whether the first score is better than the second."""


def better(score: Score, than: Score) -> bool:
    """Return whether a development score is better: by the metric, then by the loss."""
    return (score.metric, -score.loss) > (than.metric, -than.loss)


def _best(generation: Generation, due: Sequence[int]) -> list[Prompts]:
    return [generation.best] if due else []


def _due(generation: Generation, due: Sequence[int]) -> list[Prompts]:
    """Return the due candidates, each with the prompts of the other layers at that time."""
    below, above = generation.before[: generation.layer], generation.before[generation.layer + 1 :]
    return [(*below, generation.candidates[number], *above) for number in due]


SELECTIONS = {
    "best": Selection(_best, better),
    "due": Selection(_due, lambda score, than: score.metric > than.metric),
}
