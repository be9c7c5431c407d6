"""Measure CMA-ES: what the device waits for in a generation, and all the CPU's work, pycma as it is beside ours.

    python benchmarks/optimiser.py                              d from 100 to 2000, populations 20 to 100
    python benchmarks/optimiser.py --dim 500 --popsize 20

A device of 30 ms is a sleep: it leaves the CPU to the optimiser as a GPU would. Agreement is checked first: on
pycma's schedule both contenders draw the same candidates. Writes a JSON record and a table.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import cma
import numpy as np

from bbt_fast.benchmarks.harness.record import RESULTS, environment, save
from bbt_fast.tuner.search.evolution import Evolution
from bbt_fast.tuner.search.generation import Array
from bbt_fast.tuner.search.threads import background, one_thread

DIMS, POPSIZES, DEVICE_MS = (100, 200, 500, 1000, 2000), (20, 50, 100), 30.0
WARM_UP, AGREE = 3, 3


class Pycma:
    """pycma with its own sampler, driven as a run without ours would drive it."""

    def __init__(self, dim: int, popsize: int, aside: Executor | None = None) -> None:
        """Start a strategy, which has no use for a thread."""
        del aside
        options = {"randn": np.random.RandomState(1).randn, "seed": math.nan, "popsize": popsize, "verbose": -9}
        self._strategy = cma.CMAEvolutionStrategy(dim * [0.0], 1.0, options)

    @one_thread()
    def ask(self) -> Array:
        """Draw [P, d]."""
        self._asked = self._strategy.ask()
        return np.stack(self._asked)

    @one_thread()
    def tell(self, fitness: Array) -> None:
        """Report the fitness [P]."""
        self._strategy.tell(self._asked, fitness.tolist())


class Ours:
    """The strategy of a run."""

    def __init__(self, dim: int, popsize: int, aside: Executor | None = None, shifted: bool = True) -> None:
        """Start a strategy that decomposes on a thread, as a run lends it one."""
        self._evolution = Evolution(dim, 1.0, popsize, seed=1, shifted=shifted, aside=aside)
        self.tell = self._evolution.tell

    def ask(self) -> Array:
        """Draw [P, d]."""
        return self._evolution.ask().candidates


CONTENDERS: dict[str, Callable[[int, int, Executor], Any]] = {"pycma": Pycma, "bbt-fast": Ours}


def fitness(candidates: Array) -> Array:
    """Return the sphere's value, [P]."""
    values: Array = ((candidates - 0.3) ** 2).sum(axis=1)
    return values


def check_agreement(dim: int, popsize: int) -> None:
    """See that both draw the same on pycma's schedule.

    Raises:
        AssertionError: if they do not.
    """
    one, other = Pycma(dim, popsize), Ours(dim, popsize, shifted=False)
    for _ in range(AGREE):
        drawn, expected = other.ask(), one.ask()
        np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-7)
        one.tell(fitness(expected))
        other.tell(fitness(drawn))


def measure(strategy: Any, generations: int, device_ms: float) -> dict[str, float]:
    """Return milliseconds per generation: mean and longest on the critical path, and of the CPU in all."""
    critical: list[float] = []
    began = math.nan
    for generation in range(WARM_UP + generations):
        if generation == WARM_UP:
            began = time.process_time()
        start = time.perf_counter()
        candidates = strategy.ask()
        asked = time.perf_counter() - start
        time.sleep(device_ms / 1e3)
        values = fitness(candidates)
        start = time.perf_counter()
        strategy.tell(values)
        critical.append(1e3 * (asked + time.perf_counter() - start))
    cpu = 1e3 * (time.process_time() - began) / generations
    timed = critical[WARM_UP:]
    return {"critical_ms": float(np.mean(timed)), "longest_ms": max(timed), "cpu_ms": cpu}


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    about = record["environment"]
    lines = [
        f"**optimiser**: milliseconds per generation beside a device that takes {record['device_ms']:g} ms; "
        f"{record['generations']} generations. {about['device']}; commit {about['commit']}.",
        "",
        "| d | population | contender | critical path ms | longest ms | CPU ms in all |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['dim']} | {row['popsize']} | {row['contender']} | {row['critical_ms']:.2f} | {row['longest_ms']:.1f} "
        f"| {row['cpu_ms']:.2f} |"
        for row in record["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, nargs="+", default=DIMS)
    parser.add_argument("--popsize", type=int, nargs="+", default=POPSIZES)
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--device_ms", type=float, default=DEVICE_MS)
    args = parser.parse_args()
    rows = []
    for dim in args.dim:
        for popsize in args.popsize:
            check_agreement(dim, popsize)
            for name, make in CONTENDERS.items():
                with background() as aside:
                    figures = measure(make(dim, popsize, aside), args.generations, args.device_ms)
                rows.append({"dim": dim, "popsize": popsize, "contender": name, **figures})
                print(rows[-1], flush=True)
    record = {
        "kind": "optimiser", "environment": environment("cpu", 0), "device_ms": args.device_ms,
        "generations": args.generations, "rows": rows,
    }  # fmt: skip
    print(table(record))
    save(record, RESULTS / "optimiser-cpu.json")


if __name__ == "__main__":
    main()
