"""A timed round: one generation per tuned layer, from ask to tell; on CUDA the mean of several consecutive rounds.

On CUDA a generation is shorter than the time in which a machine regains its speed after another contender's turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from typing import Any

from bbt_fast.tuner.search.bbt import bbt
from bbt_fast.tuner.search.bbtv2 import bbtv2
from bbt_fast.tuner.search.generation import Array, Generation, Scores
from bbt_fast.tuner.search.losses import cross_entropy_loss
from bbt_fast.tuner.search.metrics import METRICS
from bbt_fast.tuner.search.threads import background

from .contenders.base import Clock, Contender

GENERATIONS = 10**6
"""More than any benchmark runs."""
ON_END = {"cpu": 0.0, "cuda": 0.5}
"""The least seconds of a turn, by kind of device."""


class Oracle:
    """Scores candidates with a contender and times the parts; numbers layers in the order in which they are tuned."""

    def __init__(self, contender: Contender) -> None:
        """Draw the projections on the contender's device for them."""
        workload, model = contender.workload, contender.model
        self.contender = contender
        self.layers = workload.tuned_layers(model)
        self.projections = workload.projections(model, contender.projection_device)
        self.clock = Clock(contender.device)
        self._labels = workload.labels

    def evaluate(self, candidates: Array, layer: int) -> Scores:
        """Score candidates [P, d] for the layer-th tuned layer."""
        at = self.layers[layer]
        logits = self.contender.evaluate(self.projections[at], candidates, at, self.clock)
        with self.clock("loss"):
            fitness = cross_entropy_loss(logits.cpu(), self._labels, METRICS["accuracy"]).double().numpy()
        return Scores(fitness, float("nan"))

    def commit(self, candidate: Array, layer: int) -> None:
        """Fix the layer-th tuned layer's prompt."""
        at = self.layers[layer]
        with self.clock("commit"):
            self.contender.commit(self.projections[at](candidate[None])[0], at)


class InTurn(Executor):
    """Runs a task when it is submitted, in the caller's thread."""

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a task and return its result."""
        done: Future[Any] = Future()
        done.set_result(task(*args, **kwargs))
        return done


class Rounds:
    """Continues one search, a timed round at a time."""

    def __init__(self, contender: Contender) -> None:
        """Start the search."""
        self.oracle = Oracle(contender)
        self._steps = steps(self.oracle)

    def __call__(self) -> dict[str, float]:
        """Run a turn; return the seconds of a round: "total" and its parts, the remainder as "optimizer"."""
        clock, layers = self.oracle.clock, len(self.oracle.layers)
        clock.seconds.clear()
        clock.unmeasured = 0.0
        rounds, began = 0, time.perf_counter()
        while not rounds or time.perf_counter() - began < ON_END[self.oracle.contender.device.type]:
            for _ in range(layers):
                next(self._steps)
            rounds += 1
        total = (time.perf_counter() - began + clock.unmeasured) / rounds
        parts: dict[str, Any] = {part: seconds / rounds for part, seconds in clock.seconds.items()}
        return {**parts, "optimizer": total - sum(parts.values()), "total": total}


def steps(oracle: Oracle) -> Iterator[Generation]:
    """Run BBT or BBTv2, as bbt-fast does with the optimizer's work beside the engine's, or as the original in turn."""
    contender, workload = oracle.contender, oracle.contender.workload
    with background() if contender.overlaps else nullcontext() as aside:
        evolutions = workload.evolutions(contender.model, aside)
        if workload.algorithm == "bbt":
            yield from bbt(oracle, evolutions, GENERATIONS)
        else:
            yield from bbtv2(oracle, evolutions, GENERATIONS, None if contender.overlaps else InTurn())
