"""One search: from its first generation, or from the end of its journal, to the kept prompt."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ...export.errors import UsageError
from ..artifacts.economics import held_bytes
from ..artifacts.folder import RunFolder
from ..artifacts.metrics_log import MetricsLog
from ..input.options import Options
from ..search.bbt import bbt
from ..search.bbtv2 import bbtv2
from ..search.evolution import Evolution, random_stream
from ..search.generation import Array, Generation, Steps
from ..search.objective import Objective, Score, project_all
from ..search.projection import Space
from ..search.threads import background
from .control import Control, RunInterruptedError
from .progress import Progress, Standing
from .replay import Replay
from .selection import SELECTIONS, Prompts

logger = logging.getLogger(__name__)


ALGORITHMS: dict[str, Callable[..., Steps]] = {"bbt": bbt, "bbtv2": bbtv2}
"""By name; both take an oracle, a strategy per prompt, the number of generations, ``keep`` and ``start``."""


@dataclass(frozen=True)
class Kept:
    """The best prompt on the development set so far."""

    prompts: Tensor
    """[1 or L, n, H]."""
    score: Score


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    kept: Kept
    evaluations: int
    seconds: float
    overhead: float
    """Share of the generations' time in which the engine waited for CMA-ES, projection and journal; NaN if every
    generation was replayed."""
    stopped_by: str
    """budget, max_time, target_metric, patience, or optimizer if its own criteria ended the search."""
    scored: int
    """Prompts scored on the development set."""
    held_bytes: int
    """Memory of CMA-ES."""


def n_generations(options: Options, layers: int) -> int:
    """Return the number of generations in the budget; a round of BBTv2 has one per layer.

    Raises:
        UsageError: if the budget is smaller than one round per embedding.
    """
    assert options.budget is not None
    size = options.generation_size * layers
    rounds = options.budget // size
    if not rounds:
        raise UsageError(
            f"budget {options.budget} is below one round: {options.generation_size} candidates (popsize) for each of "
            f"{layers} layers are {size} evaluations. Raise the budget or lower the popsize."
        )
    if rounds < options.embeddings:
        raise UsageError(
            f"budget {options.budget} pays for {rounds} rounds of {size} evaluations, but embeddings is "
            f"{options.embeddings}: raise the budget or lower --embeddings."
        )
    return rounds * layers


def start_evolutions(
    options: Options, dim: int, layers: int, rounds: int, aside: Executor | None = None, embedding: int = 0
) -> list[Evolution]:
    """Start a strategy per layer, for this many rounds over the layers in one embedding."""
    assert options.sigma is not None
    shared = random_stream(options.seed, 0) if options.streams == "original" else None
    if shared and layers > 1:
        aside = None  # layers that draw ahead from one stream would draw in the order of the threads
    start = partial(
        Evolution, dim, options.sigma, options.generation_size, seed=options.seed, bound=options.bound, aside=aside,
        optimizer=options.optimizer, generations=rounds, embedding=embedding, stream=shared,
    )  # fmt: skip
    return [start(layer=layer) for layer in range(layers)]


class Search:
    """Drives an algorithm; writes the curves and the best prompt; decides when to stop."""

    def __init__(
        self,
        options: Options,
        folder: RunFolder,
        objective: Objective,
        replay: Replay,
        draw: Callable[[int, Tensor], Sequence[Space]],
        save: Callable[[Tensor], None],
        control: Control,
        progress: Progress,
        report: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Bind a search to the objects that it uses.

        Args:
            options: resolved.
            folder: claimed and begun.
            objective: the oracle behind ``replay``.
            replay: the oracle that the algorithm calls.
            draw: given an embedding's number and p0, [1 or L, n, H], draws its projections, one per layer.
            save: writes prompts [1 or L, n, H] into the folder.
            control: can end the search early.
            progress: receives the state of the search.
            report: receives every line of metrics.jsonl, from the first on.
        """
        self._options, self._folder, self._objective, self._replay = options, folder, objective, replay
        self._draw, self._save = draw, save
        self._control, self._progress, self._report = control, progress, report
        self._layers = len(objective.projections)
        self._generations = n_generations(options, self._layers)
        self._selection = SELECTIONS[options.select]
        self._evolutions: list[Evolution] = []
        """The strategies of the current embedding."""
        self._kept: Kept | None = None
        self._kept_at = 0
        """Evaluations at the time it was kept."""
        self._clock = Clock()
        self._live_seconds = 0.0
        self._scored = 0
        self._warned = False
        """Whether the warning about lost curves was logged."""

    def run(self) -> Found:
        """Search until the budget or a limit ends the search.

        Raises:
            RunInterruptedError: if a signal or a stop file requested a stop.
        """
        options, size = self._options, self._options.generation_size
        if self._replay.replaying:
            logger.info("resuming %s", self._folder.path)
        log = MetricsLog(self._folder.metrics)
        self._progress.start(f"{options.algorithm} seed {options.seed}", self._generations * size)
        try:
            with closing(log), background() as aside, closing(self._steps(aside)) as steps:
                generation, stopped_by = self._drive(steps, log)
        finally:
            self._progress.finish()
        assert self._kept is not None
        spent = self._live_seconds
        return Found(
            kept=self._kept,
            evaluations=(generation.index + 1) * size,
            seconds=self._clock.seconds,
            overhead=1 - self._objective.engine_seconds / spent if spent else math.nan,
            stopped_by=stopped_by,
            scored=self._scored,
            held_bytes=held_bytes(*self._evolutions),
        )

    def _drive(self, steps: Steps, log: MetricsLog) -> tuple[Generation, str]:
        """Run the generations; return the last one, and the limit that ended the search."""
        stopped_by = None
        for replayed, generation in self._timed(steps):
            if stopped_by := self._take(generation, log, replayed):
                break
        return generation, stopped_by or "budget"

    def _steps(self, aside: Executor) -> Steps:
        """Search one embedding after another, each from the best prompts so far."""
        options, layers = self._options, self._layers
        algorithm, count, rounds = ALGORITHMS[options.algorithm], options.embeddings, self._generations // layers
        start: Sequence[float] | None = None
        for embedding in range(count):
            first, last = (rounds * number // count for number in (embedding, embedding + 1))
            dim = self._objective.projections[0].dim
            self._evolutions = start_evolutions(options, dim, layers, last - first, aside, embedding)
            generations = (last - first) * layers
            steps = algorithm(self._replay, self._evolutions, generations, keep=options.keep, start=start)
            with closing(steps):
                for generation in steps:
                    yield replace(generation, index=first * layers + generation.index)
            if embedding + 1 < count:
                self._objective.projections = self._draw(embedding + 1, self._project(generation.best))
                self._replay.moved()
                start = generation.losses

    def _project(self, candidates: Sequence[Array]) -> Tensor:
        """Return the prompts [1 or L, n, H] of candidates, [d] per layer."""
        return project_all(self._objective.projections, candidates)

    def _timed(self, steps: Iterator[Generation]) -> Iterator[tuple[bool, Generation]]:
        """Yield (whether the journal answered it, generation); add up the time of the others."""
        while True:
            replayed, began = self._replay.replaying, time.perf_counter()
            generation = next(steps, None)
            if generation is None:
                return
            if not replayed:
                self._live_seconds += time.perf_counter() - began
            yield replayed, generation

    def _take(self, generation: Generation, log: MetricsLog, replayed: bool) -> str | None:
        """Score the best prompt if it is due, record the generation, and return the limit that is reached, if any."""
        known = log.known(generation.index)
        if replayed:
            self._clock.set(known["seconds"] if known else self._clock.base)
        size, every = self._options.generation_size, self._options.eval_every
        evaluations = (generation.index + 1) * size
        due = [number for number in range(size) if (evaluations - size + number + 1) % every == 0]
        scored = self._selection.prompts(generation, due)
        last = generation.index + 1 == self._generations
        if not scored and (self._replay.development_next or (last and self._scores_at_end)):
            scored = [generation.best]
        score = None
        for prompts in scored:
            found = self._develop(prompts, evaluations)
            if score is None or self._selection.better(found, score):
                score = found
        ended = self._limit(generation, score, evaluations)
        if ended and score is None and self._scores_at_end:
            score = self._develop(generation.best, evaluations)
        if replayed:
            self._restore(generation, known is not None)
        if known is None or not replayed:
            known = self._line(generation, evaluations, score)
            log.append(known)
        self._report(known)
        dev = self._kept.score.metric if self._kept else math.nan
        self._progress.update(Standing(evaluations, replayed, generation.best_loss, generation.scores.metric, dev))
        if not self._replay.replaying:
            self._end_if_asked(generation, evaluations)
        return ended

    def _restore(self, generation: Generation, known: bool) -> None:
        """Warn about lost curves, and restore the prompt file at the end of the journal."""
        if not known and self._replay.replaying and not self._warned:
            self._warned = True
            logger.warning(
                "%s is missing or damaged from generation %d on: its lines are recomputed, except the times and the "
                "training metric.",
                self._folder.metrics, generation.index,
            )  # fmt: skip
        if self._kept is not None and not self._replay.replaying:
            if not self._folder.prompt.exists():
                logger.warning("%s is missing: the run writes it again.", self._folder.prompt)
            self._save(self._kept.prompts)

    @property
    def _scores_at_end(self) -> bool:
        """Whether the search scores the best prompt at its end: always, or only if it has kept none."""
        return self._options.select == "best" or self._kept is None

    def _limit(self, generation: Generation, score: Score | None, evaluations: int) -> str | None:
        """Return the option whose limit is reached; the clock counts only after the journal ends."""
        if score is not None and self._control.reached(score.metric):
            return "target_metric"
        if score is not None and self._control.hopeless(evaluations - self._kept_at):
            return "patience"
        if not self._replay.replaying and self._control.out_of_time(self._clock.seconds):
            return "max_time"
        return "optimizer" if generation.ended else None

    def _develop(self, prompts: Prompts, evaluations: int) -> Score:
        """Score prompts on the development set; keep them if they beat the kept ones."""
        replayed = self._replay.replaying
        score = self._replay.develop(prompts)
        self._scored += 1
        if self._kept is None or self._selection.better(score, self._kept.score):
            self._kept, self._kept_at = Kept(self._project(prompts), score), evaluations
            if not replayed:
                self._save(self._kept.prompts)
        return score

    def _end_if_asked(self, generation: Generation, evaluations: int) -> None:
        asked_by = self._control.interrupted_by
        if asked_by is None:
            return
        if self._kept is None:
            self._save(self._project(generation.best))
        raise RunInterruptedError(
            f"stopped by {asked_by} after {evaluations} evaluations. The best prompt so far is {self._folder.prompt}."
        )

    def _line(self, generation: Generation, evaluations: int, score: Score | None) -> dict[str, Any]:
        """Return a generation's line of metrics.jsonl."""
        fitness = generation.scores.fitness
        return {
            "generation": generation.index,
            "layer": generation.layer,
            "evaluations": evaluations,
            "loss": float(fitness.min()),
            "mean_loss": float(fitness.mean()),
            "best_loss": generation.best_loss,
            "train": generation.scores.metric,
            "dev": score.metric if score else None,
            "dev_loss": score.loss if score else None,
            "sigma": generation.sigma,
            "axis_ratio": generation.axis_ratio,
            "seconds": self._clock.seconds,
        }


class Clock:
    """Seconds of search, over all parts of an interrupted run."""

    def __init__(self) -> None:
        """Start at zero."""
        self.set(0.0)

    def set(self, base: float) -> None:
        """Continue from this many seconds."""
        self.base = base
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.base + time.perf_counter() - self._began
