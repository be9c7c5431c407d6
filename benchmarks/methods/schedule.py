"""The steps that a record lacks, their order, and their execution, one by one or several at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbt_fast.benchmarks.harness.record import provenance, say, usual_device
from bbt_fast.benchmarks.methods.run import figures_apart
from bbt_fast.benchmarks.methods.table import METHODS
from bbt_fast.tuner.input.options import Options

Measure = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One step: a setting on the development set of the first seed, or a seed with the chosen setting."""

    method: str
    seed: int
    setting: int | None
    """The number of the setting; None for the chosen one."""

    def __str__(self) -> str:
        """Return its name in the progress line."""
        return f"{self.method}, {self.step}"

    @property
    def step(self) -> str:
        """Return its name among the steps of its method."""
        tried = "" if self.setting is None else f", setting {self.setting + 1} of {len(METHODS[self.method].grid)}"
        return f"seed {self.seed}{tried}"


def jobs(methods: Sequence[str], seeds: Sequence[int], record: Mapping[str, Any]) -> list[Job]:
    """Return the steps that a record lacks, by method: first its grid, then its seeds.

    One seed tries all settings of a grid: the one that began it, or the first one.
    """
    found = []
    for method in methods:
        row = record["methods"].get(method, empty())
        grid = METHODS[method].grid
        if len(grid) > 1:
            seed = next((tried["seed"] for tried in row["grid"].values()), seeds[0])
            found += [Job(method, seed, number) for number in range(len(grid)) if str(number) not in row["grid"]]
        found += [Job(method, seed, None) for seed in seeds if str(seed) not in row["seeds"]]
    return found


def empty() -> dict[str, Any]:
    """Return a method's empty part of a record."""
    return {"grid": {}, "chosen": None, "seeds": {}, "failed": {}}


def compare(
    record: dict[str, Any], options: Options, methods: Sequence[str], seeds: Sequence[int], runs: Path,
    max_epochs: int | None = None, at_once: int = 1, measure: Measure = figures_apart,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Measure the steps that a record lacks, and yield the record after each step.

    The record keeps the reason of a failed step; the others continue.

    Args:
        record: the record to extend.
        options: the options of all methods.
        methods: keys of ``METHODS``.
        seeds: the first one selects the settings.
        runs: the folder of the runs of BBT and BBTv2.
        max_epochs: an upper limit for the epochs.
        at_once: the number of steps that run in parallel.
        measure: runs one method; tests replace it.
    """
    waiting = jobs(methods, seeds, record)
    total, took = len(waiting), list[float]()
    running: dict[Future[dict[str, Any]], Job] = {}

    def timed(job: Job, given: Options, setting: Mapping[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        found = measure(job.method, given, setting, test=job.setting is None, max_epochs=max_epochs)
        return found | {"step_seconds": time.perf_counter() - began}

    with ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            while len(running) < at_once and (job := _next(waiting, running.values())):
                waiting.remove(job)
                rows = {job.method: empty()} | record["methods"]
                record["methods"] = {method: rows[method] for method in METHODS if method in rows}
                row = record["methods"][job.method]
                number = _choose(row, job)
                if number is None:  # every setting of the grid failed, so the seed has none
                    total -= 1
                    continue
                given = options.changed(seed=job.seed, output_dir=str(runs / job.method / f"seed-{job.seed}"))
                running[pool.submit(timed, job, given, METHODS[job.method].grid[number])] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                row = record["methods"][job.method]
                outcome = _taken(row, job, future, options.device)
                if _outdated(row):
                    row["chosen"], row["seeds"] = None, {}
                    again = [Job(job.method, seed, None) for seed in seeds]
                    total += len(again := [one for one in again if one not in waiting])
                    waiting += again
                took.append(outcome.get("step_seconds", 0.0))
                rest = statistics.fmean(took) * (total - len(took)) / at_once
                say(f"{job}: {outcome['said']}; {len(took)} of {total} done, about {rest / 60:.0f} min left")
                yield record


def _next(waiting: Sequence[Job], running: Iterable[Job]) -> Job | None:
    """Return the first step that can start: a method's seeds wait for its grid."""
    trying = {job.method for job in (*waiting, *running) if job.setting is not None}
    return next((job for job in waiting if job.setting is not None or job.method not in trying), None)


def _choose(row: dict[str, Any], job: Job) -> int | None:
    """Return the number of a step's setting; None if the grid found none.

    The chosen setting has the best metric on the development set, and on a tie the lowest loss.
    """
    if job.setting is not None:
        return job.setting
    if row["chosen"] is None and len(METHODS[job.method].grid) == 1:
        row["chosen"] = 0
    elif row["chosen"] is None and row["grid"]:
        row["chosen"] = _best(row)
    chosen: int | None = row["chosen"]
    return chosen


def _best(row: Mapping[str, Any]) -> int:
    return int(max(row["grid"], key=lambda n: (row["grid"][n]["dev"], -row["grid"][n]["dev_loss"])))


def _outdated(row: Mapping[str, Any]) -> bool:
    """Say whether seeds have a setting that is no longer the best, because one that had failed now is."""
    return row["chosen"] is not None and bool(row["grid"]) and row["chosen"] != _best(row)


def _taken(row: dict[str, Any], job: Job, future: Future[dict[str, Any]], device: str) -> dict[str, Any]:
    """Write a step's figures, or the reason of its failure, into its method's part of the record, and return them."""
    row["failed"].pop(job.step, None)
    if error := future.exception():
        row["failed"][job.step] = reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"said": f"failed, {reason}"}
    found = future.result()
    if job.setting is not None:
        kept = ("setting", "dev", "dev_loss", "seconds", "step_seconds")
        row["grid"][str(job.setting)] = {"seed": job.seed} | {name: found[name] for name in kept}
        row["grid"] = dict(sorted(row["grid"].items(), key=lambda item: int(item[0])))
        return found | {"said": f"{100 * found['dev']:.1f} % on dev in {found['step_seconds']:.0f} s"}
    row["seeds"][str(job.seed)] = found | provenance(usual_device() if device == "auto" else device)
    row["seeds"] = dict(sorted(row["seeds"].items(), key=lambda item: int(item[0])))
    return found | {"said": f"{100 * found['test']:.1f} % on test in {found['step_seconds']:.0f} s"}
