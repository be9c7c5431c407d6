"""Whole seeds side by side: each worker of a Ray cluster takes the next one, in a run folder with a journal of its own.

All workers see the folder of the command. A seed whose worker died goes on in another from its journal. A last seed
that would leave all other workers idle is run here, and the workers share its generations.
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
"""Seconds between two looks at how the runs stand."""


class Watch:
    """Keeps how a worker's search stands, for another thread to read."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.standing: dict[int, tuple[int, float]] = {}
        """By seed, the evaluations and the best training loss."""
        self.seed = 0

    def start(self, label: str, budget: int) -> None:
        """Begin a search of so many evaluations."""

    def update(self, standing: Standing) -> None:
        """Take in a generation."""
        self.standing[self.seed] = standing.evaluations, standing.loss

    def finish(self) -> None:
        """End the search."""


class SeedWorker(Worker):
    """Runs seeds, or answers shares of a generation, in a process of a cluster, on one engine."""

    def __init__(self, options: Options, pinned: dict[str, str], folder: Path, fetch: Fetch) -> None:
        """Load what the seeds share.

        Args:
            options: resolved, of the command.
            pinned: the engine, precision and device to take where options say "auto".
            folder: of the command; a file ``stop`` in it ends the runs.
            fetch: returns the value that a reference stands for.
        """
        self._options, self._folder = options.changed(workers=None, ray_address=None), folder
        self._setup = Setup(self._options, load_task(options.task_name))
        self._watch, self._lock = Watch(), threading.Lock()
        super().__init__(self._setup.load_engine(pinned), fetch)

    def run(self, seed: int) -> None:
        """Run a seed in its folder, from where its journal ends."""
        with self._lock:
            self._watch.seed = seed
            options, child = self._options, RunFolder(self._folder / child_name(seed))
            stop = [RunFolder(self._folder).stop]
            control = Control(options.max_time, options.target_metric, options.patience, stop)
            parts = self._setup.encode(self._setup.splits(seed))
            Command(self._setup, self._engine, control, self._watch).run_seed(options, seed, parts, child)

    def standing(self) -> dict[int, tuple[int, float]]:
        """Say how the searches stand, while one runs."""
        return dict(self._watch.standing)


class Board:
    """Adds up how all runs stand: one progress line."""

    def __init__(self, pool: Any, control: Control, folder: RunFolder, progress: Progress, options: Options) -> None:
        """Start the line."""
        self._pool, self._control, self._folder, self._progress = pool, control, folder, progress
        self._asked: dict[Any, Any] = {}
        self._standing: dict[int, tuple[int, float]] = {}
        self.stopped: str | None = None
        """What asked for the end, if anything did."""
        seeds, budget = len(options.seeds or ()), int(options.budget or 0)
        progress.start(f"{options.algorithm}, {seeds} seeds", seeds * budget)

    def __call__(self) -> None:
        """Look at the runs; pass a wish for the end on to them."""
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
        """Take in how some searches stand: by seed, the evaluations and the best training loss."""
        self._standing |= standing
        if self._standing:
            evaluations = sum(count for count, _ in self._standing.values())
            loss = sum(loss for _, loss in self._standing.values()) / len(self._standing)
            self._progress.update(Standing(evaluations, False, loss, float("nan"), float("nan")))


class Reporter(Watch):
    """Tells a board how the search in this process stands."""

    def __init__(self, board: Board, seed: int) -> None:
        """Take the board and the search's seed."""
        super().__init__()
        self._board, self.seed = board, seed

    def update(self, standing: Standing) -> None:
        """Take in a generation."""
        super().update(standing)
        self._board.take(self.standing)


def run_side_by_side(
    options: Options, pinned: dict[str, str], folder: RunFolder, control: Control, progress: Progress,
    run_here: Callable[[int, Any, Progress], None],
) -> None:  # fmt: skip
    """Run every seed that is not finished, so many at a time as there are workers.

    Args:
        options: resolved, with ``seeds`` and ``workers``.
        pinned: the engine, precision and device that an interrupted part was started with.
        folder: claimed and begun; on a file system that all workers see.
        control: may ask for the end.
        progress: is told how all go.
        run_here: runs a seed in this process, on an engine, telling a progress of its own.

    Raises:
        BbtFastError: what a run raised.
        RunInterruptedError: if a signal or a stop file asked for the end.
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
                raise RunInterruptedError(f"stopped by {board.stopped}; all seeds keep what they have.") from error
            finally:
                progress.finish()
