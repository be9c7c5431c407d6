"""BBTv2: divide and conquer, one CMA-ES and one prompt per layer (Sun et al. 2022b, Algorithm 1).

A round goes through the layers from the input up. Each gets one generation, during which the other layers' prompts
stand still; then the best candidate that this layer has had so far is fixed, or the mean of its strategy.

The strategies are independent, so their bookkeeping hides behind the engine's work: while a layer is evaluated, a
second thread tells the layer before it its fitness and asks the layer after it for candidates. Every strategy still
sees its own asks and tells in the same order, so the numbers do not depend on it. The engine is called from the
caller's thread, because streams and gradient modes belong to threads.
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
    """Search one prompt per layer, a generation at a time.

    Args:
        oracle: answers what candidates are worth.
        evolutions: one strategy per layer.
        generations: rounds * L, with rounds = budget // (popsize * L).
        aside: runs ask and tell, one at a time and in order; None for a thread of its own.
        keep: a name in ``KEEPS``. "mean" is known only after tell, which then is waited for.
        start: the loss of p0 per layer, if it is known.

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
            told.result()  # nothing to wait for but an error
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
