"""Black-Box Tuning: one CMA-ES, one prompt at the model's input (Sun et al. 2022, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

from .evolution import Evolution
from .generation import KEEPS, Generation, Oracle, Steps


def bbt(
    oracle: Oracle, evolutions: Sequence[Evolution], generations: int, *, keep: str = "best",
    start: Sequence[float] | None = None,
) -> Steps:  # fmt: skip
    """Search the input prompt, one generation at a time.

    Args:
        oracle: scores candidates.
        evolutions: one strategy.
        generations: budget // popsize.
        keep: a name in ``KEEPS``.
        start: the loss of p0, if known.

    Yields:
        Each generation after its evaluation.
    """
    (evolution,) = evolutions
    best = KEEPS[keep](1, evolution.dim, start)
    for index in range(generations):
        asked = evolution.ask()
        before, scores = tuple(best.candidates), oracle.evaluate(asked.candidates, 0)
        evolution.tell(scores.fitness)
        best.take(0, asked.candidates, scores.fitness, evolution.mean)
        yield Generation(
            index, 0, scores, tuple(best.candidates), tuple(best.losses), asked.sigma, asked.axis_ratio,
            asked.candidates, before, evolution.ended,
        )  # fmt: skip
