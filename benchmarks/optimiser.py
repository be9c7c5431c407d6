"""Measure CMA-ES: how long the device waits for it in a generation, and whole runs on an engine that takes no time.

    python benchmarks/optimiser.py                              d from 100 to 2000, populations 20 to 100, whole runs
    python benchmarks/optimiser.py --dim 500 --popsize 20

**Beside a device.** A sleep stands for the device: like a GPU, it leaves the CPU to the optimiser. The critical path is
the time that the device waits, from the losses of one generation to the candidates of the next. Before that the script
checks that both contenders draw the same candidates on pycma's schedule.

**Whole runs.** The script tunes on the demo, with journal, metrics, development set and progress bar. It replaces
projection, model and loss by functions that take no time. The rest is the overhead of a run.

The script writes a JSON record and two tables.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

from bbt_fast.benchmarks.harness.output import cells, markdown, packages, publish
from bbt_fast.benchmarks.harness.record import RESULTS, record_of, spread
from bbt_fast.benchmarks.harness.workload import ALGORITHMS, Algorithm
from bbt_fast.tuner.run import driver
from bbt_fast.tuner.run.driver import Search
from bbt_fast.tuner.run.single import Run
from bbt_fast.tuner.search.evolution import Evolution
from bbt_fast.tuner.search.generation import Array, Scores
from bbt_fast.tuner.search.objective import Objective, Score
from bbt_fast.tuner.search.threads import background
from bbt_fast.tuner.tune import tune

DIMS, POPSIZES, DEVICE_MS, ROUNDS = (100, 200, 500, 1000, 2000), (20, 50, 100), 30.0, 3
WARM_UP, AGREE = 3, 3
COLUMNS = {
    "d": "{dim}", "population": "{popsize}", "contender": "{contender}", "critical path": "{critical_ms:.2f}",
    "longest": "{longest_ms:.1f}", "CPU in all": "{cpu_ms:.2f}",
}  # fmt: skip

Pycma = partial(Evolution, optimizer="pycma")
"""pycma as `--optimizer pycma` runs it: in the caller's thread."""
CONTENDERS: dict[str, Callable[..., Any]] = {"pycma": Pycma, "bbt-fast": Evolution}


def fitness(candidates: Array) -> Array:
    """Return the sphere's value, [P]."""
    values: Array = ((candidates - 0.3) ** 2).sum(axis=1)
    return values


def check_agreement(dim: int, popsize: int) -> None:
    """Check that both contenders draw the same candidates on pycma's schedule.

    Raises:
        AssertionError: if they differ.
    """
    one, other = Pycma(dim, 1.0, popsize, seed=1), Evolution(dim, 1.0, popsize, seed=1, shifted=False)
    for _ in range(AGREE):
        drawn, expected = other.ask().candidates, one.ask().candidates
        np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-7)
        one.tell(fitness(expected))
        other.tell(fitness(drawn))


def measure(strategy: Any, generations: int, device_ms: float) -> dict[str, float]:
    """Return milliseconds per generation: mean and longest of the critical path, and the CPU time of all threads."""
    critical: list[float] = []
    began = math.nan
    for generation in range(WARM_UP + generations):
        if generation == WARM_UP:
            began = time.process_time()
        start = time.perf_counter()
        candidates = strategy.ask().candidates
        asked = time.perf_counter() - start
        time.sleep(device_ms / 1e3)
        values = fitness(candidates)
        start = time.perf_counter()
        strategy.tell(values)
        critical.append(1e3 * (asked + time.perf_counter() - start))
    cpu = 1e3 * (time.process_time() - began) / generations
    timed = critical[WARM_UP:]
    return {"critical_ms": float(np.mean(timed)), "longest_ms": max(timed), "cpu_ms": cpu}


def beside_a_device(dims: Sequence[int], popsizes: Sequence[int], generations: int, device_ms: float) -> list[Any]:
    """Measure each contender at each size."""
    rows: list[Any] = []
    cases = [(dim, popsize, name) for dim in dims for popsize in popsizes for name in CONTENDERS]
    for dim, popsize, name in tqdm(cases, desc="beside a device"):
        check_agreement(dim, popsize)
        with background() as aside:
            strategy = CONTENDERS[name](dim, 1.0, popsize, seed=1, aside=aside)
            rows.append({"dim": dim, "popsize": popsize, "contender": name} | measure(strategy, generations, device_ms))
    return rows


def at_once(objective: Objective, candidates: Array, layer: int) -> Scores:
    """Score candidates without projection, model and loss."""
    del objective, layer
    return Scores(fitness(candidates), math.nan)


@contextmanager
def timed_runs(contender: Callable[..., Any]) -> Iterator[list[float]]:
    """Make runs search with a contender on an instant engine; yield a list of the seconds of their searches."""
    seconds: list[float] = []
    search = Search.run

    def run(self: Search) -> Any:
        began = time.perf_counter()
        found = search(self)
        seconds.append(time.perf_counter() - began)
        return found

    with (
        patch.object(driver, "Evolution", contender),
        patch.object(Objective, "evaluate", at_once),
        patch.object(Objective, "commit", lambda *_: None),
        patch.object(Run, "_score", lambda *_: Score(0.5, 0.5)),
        patch.object(Search, "run", run),
    ):
        yield seconds


def whole_runs(algorithm: Algorithm, dim: int, popsize: int, generations: int, rounds: int) -> dict[str, Any]:
    """Return the generations per second of whole searches, the contenders in turns."""
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, contender in CONTENDERS.items():
            with tempfile.TemporaryDirectory() as folder, timed_runs(contender) as seconds:
                tune(
                    algorithm=algorithm, engine="torch", device="cpu", intrinsic_dim=dim, popsize=popsize,
                    budget=generations * popsize, output_dir=str(Path(folder) / "run"), plots=False,
                    max_test_examples=8,
                )  # fmt: skip
                rates[name].append(generations / seconds[0])
    return {
        "algorithm": algorithm, "dim": dim, "popsize": popsize, "generations": generations,
        "per_second": {name: spread(some) for name, some in rates.items()},
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    about = record["environment"]
    versions = packages({name: about["versions"][name] for name in ("cma", "numpy")})
    runs = []
    for row in record["runs"]:
        rates = [row["per_second"][name] for name in CONTENDERS]
        shown = [f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})" for rate in rates]
        speed_up = f"{rates[1]['median'] / rates[0]['median']:.1f}"
        runs.append([row["algorithm"], row["dim"], row["popsize"], *shown, speed_up])
    lines = [
        f"**optimiser**: milliseconds per generation beside a device that takes {record['device_ms']:g} ms; "
        f"{record['generations']} generations. {about['device']}, {versions}; commit {about['commit']}.",
        "",
        *markdown(COLUMNS, "rrlr", [cells(COLUMNS, row) for row in record["rows"]]),
        "",
        "Generations per second of whole runs on an engine that answers at once, median (min to max):",
        "",
        *markdown(("algorithm", "d", "population", *CONTENDERS, "times"), "lr", runs),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, nargs="+", default=DIMS, help="lengths of the searched vector")
    parser.add_argument("--popsize", type=int, nargs="+", default=POPSIZES, help="candidates per generation")
    parser.add_argument("--generations", type=int, default=60, help="timed for each size")
    parser.add_argument("--device_ms", type=float, default=DEVICE_MS, help="milliseconds of the device per generation")
    parser.add_argument("--run_dim", type=int, default=500, help="d of the whole runs, whose population is 20")
    parser.add_argument("--run_generations", type=int, default=240, help="generations of a whole run")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="whole runs of each contender")
    parser.add_argument("--output", type=Path, default=RESULTS / "optimiser-cpu.json", help="the record")
    args = parser.parse_args(arguments)
    rows = beside_a_device(args.dim, args.popsize, args.generations, args.device_ms)
    runs = [whole_runs(name, args.run_dim, 20, args.run_generations, args.rounds) for name in ALGORITHMS]
    record = record_of(
        "optimiser", "cpu", 1, device_ms=args.device_ms, generations=args.generations, rows=rows, runs=runs
    )
    print(publish(record, args.output, table))


if __name__ == "__main__":
    main()
