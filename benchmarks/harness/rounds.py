"""A timed round: one generation per tuned layer, from ask to tell; on CUDA the mean of several rounds on end.

There a generation takes less time than a machine needs to come to speed again after another contender's turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bbt_fast.tuner.search.bbt import bbt
from bbt_fast.tuner.search.bbtv2 import bbtv2
from bbt_fast.tuner.search.generation import Array, Best, Generation, Scores
from bbt_fast.tuner.search.losses import cross_entropy_loss
from bbt_fast.tuner.search.metrics import METRICS
from bbt_fast.tuner.search.threads import background

from .contenders.base import Clock, Contender

GENERATIONS = 10**6
"""More than any benchmark runs."""
ON_END = {"cpu": 0.0, "cuda": 0.5}
"""How many seconds a turn has at least, by the kind of device."""


class Oracle:
    """Asks a contender what candidates are worth, and times the parts; layers are numbered as they are tuned."""

    def __init__(self, contender: Contender) -> None:
        """Draw the projections where the contender wants them."""
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


class Rounds:
    """Goes on with one search, a timed round at a time."""

    def __init__(self, contender: Contender) -> None:
        """Start the search."""
        self.oracle = Oracle(contender)
        self._steps = overlapping(self.oracle) if contender.overlaps else plain(self.oracle)

    def __call__(self) -> dict[str, float]:
        """Run a turn and return a round's seconds: the parts', and "total"; what no part has is the optimizer's."""
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


def overlapping(oracle: Oracle) -> Iterator[Generation]:
    """BBT or BBTv2 as a run has it, with the optimizer's work beside the engine's."""
    workload, model = oracle.contender.workload, oracle.contender.model
    with background() as aside:
        algorithm = {"bbt": bbt, "bbtv2": bbtv2}[workload.algorithm]
        yield from algorithm(oracle, workload.evolutions(model, aside), GENERATIONS)


def plain(oracle: Oracle) -> Iterator[Generation]:
    """BBT or BBTv2 as the original runs it: ask, evaluate and tell one after the other."""
    evolutions = oracle.contender.workload.evolutions(oracle.contender.model)
    best = Best(len(evolutions), evolutions[0].dim)
    for index in range(GENERATIONS):
        layer = index % len(evolutions)
        asked = evolutions[layer].ask()
        before, scores = tuple(best.candidates), oracle.evaluate(asked.candidates, layer)
        evolutions[layer].tell(scores.fitness)
        if best.update(layer, asked.candidates, scores.fitness) and len(evolutions) > 1:
            oracle.commit(best.candidates[layer], layer)
        yield Generation(
            index, layer, scores, tuple(best.candidates), tuple(best.losses), asked.sigma, asked.axis_ratio,
            asked.candidates, before,
        )  # fmt: skip
