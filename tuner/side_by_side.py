"""Runs whole seeds in parallel: each worker of a Ray cluster takes the next seed, with its own run folder and journal.

All workers see the folder of the command. If a worker dies, another worker resumes its seed from the journal. If the
last seed would leave all other workers idle, it runs in this process and the workers share its generations.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ..engine.worker import Facts, Fetch, Worker
from .artifacts.folder import RunFolder
from .command import Command
from .input.options import Options
from .run.control import Control, RunInterruptedError
from .run.progress import Progress, Standing
from .run.seeds import child_name
from .run.setup import CUTS, Setup, require_ray
from .tasks.task import load_task

logger = logging.getLogger(__name__)

TICK = 0.5
"""Seconds between two polls of the runs' states."""


class Watch(Progress):
    """Stores the state of a worker's search for another thread."""

    def __init__(self) -> None:
        """Start without any state."""
        self.standing: dict[int, tuple[int, float]] = {}
        """By seed, the evaluations and the best training loss."""
        self.seed = 0

    def update(self, standing: Standing) -> None:
        """Record a generation."""
        self.standing[self.seed] = standing.evaluations, standing.loss


class SeedWorker(Worker):
    """Runs seeds, or answers shares of a generation, on one engine in a process of a cluster."""

    def __init__(self, options: Options, pinned: dict[str, str], folder: Path, fetch: Fetch) -> None:
        """Load the objects that the seeds share.

        Args:
            options: the command's, resolved.
            pinned: the engine, precision and device that replace "auto" in the options.
            folder: the command's; a file ``stop`` in it ends the runs.
            fetch: returns the value behind a reference.
        """
        self._options, self._folder = options.changed(workers=None, ray_address=None), folder
        self._setup = Setup(self._options, load_task(options.task_name))
        self._watch, self._lock = Watch(), threading.Lock()
        super().__init__(self._setup.load_engine(pinned), fetch)

    def run(self, seed: int) -> None:
        """Run a seed in its folder, from the end of its journal."""
        with self._lock:
            self._watch.seed = seed
            options, child = self._options, RunFolder(self._folder / child_name(seed))
            stop = [RunFolder(self._folder).stop]
            control = Control(options.max_time, options.target_metric, options.patience, stop)
            parts = self._setup.encode(self._setup.splits(seed))
            Command(self._setup, self._engine, control, self._watch).run_seed(options, seed, parts, child)

    def standing(self) -> dict[int, tuple[int, float]]:
        """Return the states of the searches; callable while one runs."""
        return dict(self._watch.standing)


class Board:
    """Combines the states of all runs into one progress line."""

    def __init__(self, pool: Any, control: Control, folder: RunFolder, progress: Progress, options: Options) -> None:
        """Start the line."""
        self._pool, self._control, self._folder, self._progress = pool, control, folder, progress
        self._asked: dict[Any, Any] = {}
        self._standing: dict[int, tuple[int, float]] = {}
        self.stopped: str | None = None
        """The signal or file that requested a stop, if any."""
        seeds, budget = len(options.seeds or ()), int(options.budget or 0)
        progress.start(f"{options.algorithm}, {seeds} seeds", seeds * budget)

    def __call__(self) -> None:
        """Poll the runs and forward a stop request to them."""
        if self.stopped is None and (asked_by := self._control.interrupted_by) is not None:
            self.stopped = asked_by
            self._folder.stop.touch()
        for member in self._pool.members:
            if not member.ready:
                self._asked.pop(member, None)
            elif member not in self._asked:
                self._asked[member] = member.handle.call.remote("standing")
        for member, standing in self._pool.answers(self._asked).items():
            del self._asked[member]
            self.take(standing)

    def take(self, standing: dict[int, tuple[int, float]]) -> None:
        """Record the states of some searches: by seed, the evaluations and the best training loss."""
        self._standing |= standing
        if self._standing:
            evaluations = sum(count for count, _ in self._standing.values())
            loss = sum(loss for _, loss in self._standing.values()) / len(self._standing)
            self._progress.update(Standing(evaluations, False, loss, float("nan"), float("nan")))


class Reporter(Watch):
    """Reports the state of the search in this process to a board."""

    def __init__(self, board: Board, seed: int) -> None:
        """Take the board and the search's seed."""
        super().__init__()
        self._board, self.seed = board, seed

    def update(self, standing: Standing) -> None:
        """Record a generation."""
        super().update(standing)
        self._board.take(self.standing)


def run_side_by_side(
    options: Options, pinned: dict[str, str], folder: RunFolder, control: Control, progress: Progress,
    run_here: Callable[[int, Any, Progress], None],
) -> None:  # fmt: skip
    """Run every unfinished seed, one per worker at a time.

    Args:
        options: resolved, with ``seeds`` and ``workers``.
        pinned: the engine, precision and device of an interrupted part.
        folder: claimed and begun; on a file system that all workers see.
        control: can stop the runs.
        progress: receives the combined state.
        run_here: runs a seed in this process, given an engine and a progress.

    Raises:
        BbtFastError: if a run raised it.
        RunInterruptedError: if a signal or a stop file requested a stop.
    """
    require_ray()
    import torch

    from ..engine.pool import Job, Pool
    from ..engine.ray_cluster import Cluster, fetch
    from ..engine.workers import WorkersEngine

    seeds, workers = options.seeds or (), int(options.workers or 1)
    todo = [seed for seed in seeds if not RunFolder(folder.path / child_name(seed)).finished]
    for seed in seeds:
        if seed not in todo:
            logger.info("seed %d is finished in %s", seed, folder.path / child_name(seed))
    if not todo:
        return
    workers = min(workers, len(todo)) if len(todo) > 1 else workers
    last = todo.pop() if workers > 1 and len(todo) % workers == 1 else None
    place = folder.path.resolve()
    asked = {
        "mode": options.cat_or_add, "cuts": CUTS[options.algorithm], "n_prompt_tokens": options.n_prompt_tokens,
    }  # fmt: skip

    def recipe(first: Facts | None) -> tuple[Any, ...]:
        found = pinned
        if first is not None:
            found = {"name": first.engine, "precision": first.precision, "device": first.device}
        return SeedWorker, options, found, place, fetch

    with closing(Cluster(options.ray_address, workers, torch.get_num_threads())) as cluster:
        share = cluster.share(workers, options.device)
        alike = bool(pinned) or "auto" not in (options.engine_name, options.precision)
        with closing(Pool(cluster, share, workers, recipe, Facts.difference, alike=alike, lanes=2)) as pool:
            board = Board(pool, control, folder, progress, options)
            try:
                pool.run([Job("run", (seed,)) for seed in todo], board, TICK)
                if last is not None:
                    run_here(last, WorkersEngine(pool, cluster, share, asked), Reporter(board, last))
            except RunInterruptedError as error:
                if board.stopped is None:
                    raise
                raise RunInterruptedError(f"stopped by {board.stopped}; every seed keeps its journal.") from error
            finally:
                progress.finish()
