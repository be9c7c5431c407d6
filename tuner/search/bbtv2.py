"""BBTv2: divide and conquer, one CMA-ES and one prompt per layer (Sun et al. 2022b, Algorithm 1).

A round visits the layers from the input up. Each layer runs one generation while the prompts of the other layers are
fixed. Then its own prompt is fixed to its best candidate so far, or to the mean of its strategy.

The strategies are independent, so a second thread hides their work behind the engine's: while a layer is evaluated, it
calls tell for the layer before and ask for the layer after. Every strategy still sees its own calls in the same order,
so the numbers are the same. The caller's thread calls the engine, because streams and gradient modes are per thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from .evolution import Asked, Evolution
from .generation import KEEPS, Array, Best, Generation, Oracle, Steps


def bbtv2(
    oracle: Oracle, evolutions: Sequence[Evolution], generations: int, aside: Executor | None = None, *,
    keep: str = "best", start: Sequence[float] | None = None,
) -> Steps:  # fmt: skip
    """Search one prompt per layer, one generation at a time.

    Args:
        oracle: scores candidates.
        evolutions: one strategy per layer.
        generations: rounds * L, with rounds = budget // (popsize * L).
        aside: runs ask and tell, one at a time and in order; None for a new thread.
        keep: a name in ``KEEPS``; "mean" waits for tell.
        start: the loss of p0 per layer, if known.

    Yields:
        Each generation after its evaluation and commit.
    """
    with aside or ThreadPoolExecutor(1) as pool:
        best = KEEPS[keep](len(evolutions), evolutions[0].dim, start)
        yield from _rounds(oracle, evolutions, generations, pool, best)


def _rounds(oracle: Oracle, evolutions: Sequence[Evolution], generations: int, pool: Executor, best: Best) -> Steps:
    layers = len(evolutions)
    upcoming: Future[Asked] = pool.submit(evolutions[0].ask)
    told: Future[None] | None = None
    for index in range(generations):
        layer, evolution, after = index % layers, evolutions[index % layers], evolutions[(index + 1) % layers]
        asked = upcoming.result()
        if after is not evolution:
            upcoming = pool.submit(after.ask)
        before, scores = tuple(best.candidates), oracle.evaluate(asked.candidates, layer)
        if told is not None:
            told.result()  # already done; raises its error, if any
        told = pool.submit(evolution.tell, scores.fitness)
        if after is evolution:
            upcoming = pool.submit(after.ask)
        if best.take(layer, asked.candidates, scores.fitness, _mean_after(told, evolution)):
            oracle.commit(best.candidates[layer], layer)
        yield Generation(
            index, layer, scores, tuple(best.candidates), tuple(best.losses), asked.sigma, asked.axis_ratio,
            asked.candidates, before,
        )  # fmt: skip


def _mean_after(told: Future[None], evolution: Evolution) -> Callable[[], Array]:
    def mean() -> Array:
        told.result()
        return evolution.mean()

    return mean
