"""Measure the speed-up of two workers on this machine's cores, and compute it for 8 and 64 GPUs.

    python benchmarks/cluster.py                        the demo: scaling, five seeds, and the simulation
    python benchmarks/cluster.py --dry_run              the same in seconds, to test the script

**Measured.** One worker and two, each pinned to a core with one thread, answer generations of BBT and rounds of BBTv2.
The script also measures the parts: the evaluation of a share of the candidates, its slow-down while the other core is
busy (with a smaller population), CMA-ES, and a round of empty calls that carries the candidates. Five seeds run one
after another with one thread, and on two workers; the time includes their start. They run again with larger
populations, as many workers need them: fewer generations of the same number of evaluations.

**Computed.** A generation on W workers takes the time of CMA-ES, of a round of W calls, and of the largest share's
evaluation. For two workers the table compares this with the measurement. For GPUs the evaluation time is that of the
record of an H100, in proportion to the candidates; on a card that is slower on small shares, fewer workers pay. Workers
stop paying where twice as many are less than a fifth faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bbt_fast.benchmarks.harness.output import drawing, markdown, publish
from bbt_fast.benchmarks.harness.record import RESULTS, record_of, say
from bbt_fast.benchmarks.harness.workload import ALGORITHMS, Algorithm, Workload
from bbt_fast.engine.pool import Job
from bbt_fast.engine.workers import WorkersEngine, WorkersSession, load_workers
from bbt_fast.export.errors import BbtFastError
from bbt_fast.export.model import load_model
from bbt_fast.tuner.artifacts.result import RESULT
from bbt_fast.tuner.demo import MODEL_DIR
from bbt_fast.tuner.run.setup import CUTS
from bbt_fast.tuner.search.generation import Array
from bbt_fast.tuner.search.projection import Projection
from bbt_fast.tuner.search.threads import background

POPULATIONS = (20, 40, 100, 200, 400)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
SEEDS = "8,13,42,50,60"
LARGER = (100,)
"""The larger populations of the seeds."""
DIM = 500
WORTH = 1.2
"""The least speed-up at which twice as many workers pay."""
H100 = RESULTS / "gpu-roberta-large-h100-second.json"
H100_CONTENDER = "bbt-fast-torch-fp16"


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Return the median milliseconds of a call, after a warm-up."""
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - began))
    return median(found)


def pinned(engine: WorkersEngine) -> None:
    """Pin each worker to its own core."""
    cores = sorted(os.sched_getaffinity(0))
    for number, member in enumerate(engine.pool.members):
        engine.pool.run([Job("pin", (cores[number % len(cores)],), member)])


def measure(algorithm: Algorithm, sizes: Sequence[int], population: int, repeats: int) -> dict[str, Any]:
    """Measure generations on one worker and on two, and the parts of one."""
    cuts, model = CUTS[algorithm], str(MODEL_DIR)
    work = Workload("demo", algorithm, population=population)
    loaded = load_model(MODEL_DIR)
    examples, layers = work.examples(loaded), work.tuned_layers(loaded)
    projections = work.projections(loaded, torch.device("cpu"))
    z = np.random.default_rng(1).standard_normal((max(*sizes, population), DIM))
    found, answers = dict[str, Any](), []
    for count in (1, 2):
        engine = load_workers("ort", model, workers=count, cuts=cuts, precision="fp32", device="cpu")
        with closing(engine):
            pinned(engine)
            session = engine.open(examples)
            generation = partial(round_of, session, projections)
            answers.append(generation(z[:population]))
            whole = timed(partial(generation, z[:population]), repeats) / len(layers)
            round_ms = timed(partial(calls, engine, z[:population]), 10 * repeats)
            found |= {f"generation_ms_on_{count}": whole, f"calls_ms_on_{count}": round_ms}
            if count == 1:
                found["share_ms"] = {
                    size: max(0.0, timed(partial(generation, z[:size]), repeats) / len(layers) - round_ms)
                    for size in sizes
                }
            else:
                size = max(size for size in sizes if 2 * size < population)
                both = timed(partial(generation, z[: 2 * size]), repeats) / len(layers) - round_ms
                found["busy"] = max(1.0, both / found["share_ms"][size])
    one, two = answers
    if not torch.allclose(one, two, atol=1e-5, rtol=0):
        raise BbtFastError("one worker and two give different answers.")
    return found


def round_of(session: WorkersSession, projections: Mapping[int, Projection], candidates: Array) -> torch.Tensor:
    """Answer candidates at each tuned layer; return the last answers."""
    for layer, one in projections.items():
        answer = session.evaluate_projected(candidates, one.matrix, one.origin, layer)
    return answer


def calls(engine: WorkersEngine, candidates: Array) -> None:
    """Send candidates to the workers in a round of empty calls."""
    engine.put(candidates.astype(np.float32))
    engine.pool.run([Job("facts", (), member) for member in engine.pool.ready])


def optimiser(algorithm: Algorithm, populations: Sequence[int], repeats: int) -> dict[int, float]:
    """Measure the milliseconds that a generation waits for CMA-ES, by population."""
    loaded, found = load_model(MODEL_DIR), {}
    for population in populations:
        with background() as aside:
            (evolution, *_) = Workload("demo", algorithm, population=population).evolutions(loaded, aside)

            def generation(evolution: Any = evolution, population: int = population) -> None:
                evolution.ask()
                evolution.tell(np.arange(population, dtype=float))

            found[population] = timed(generation, 5 * repeats)
    return found


def simulate(
    share_ms: Mapping[int, float], calls_ms: Mapping[int, float], optimiser_ms: float, population: int, workers: int,
    busy: float = 1.0,
) -> float:  # fmt: skip
    """Return the milliseconds of a generation.

    Args:
        share_ms: an evaluation by number of candidates; linear between and beyond these.
        calls_ms: a round of empty calls by number of workers, 1 and 2.
        optimiser_ms: the wait for CMA-ES.
        population: P.
        workers: W.
        busy: the slow-down of an evaluation by the other workers, if they share a machine.
    """
    each = max(0.0, calls_ms[2] - calls_ms[1])
    return optimiser_ms + calls_ms[1] + each * (workers - 1) + busy * _along(share_ms, -(-population // workers))


def _along(points: Mapping[int, float], at: int) -> float:
    sizes = sorted(points)
    if at > sizes[-1]:
        low, high = sizes[-2:]
        return points[high] + (points[high] - points[low]) / (high - low) * (at - high)
    return float(np.interp(at, sizes, [points[size] for size in sizes]))


def stops_to_pay(times: Mapping[int, float]) -> int:
    """Return the largest number of workers that pays: twice as many would be less than a fifth faster."""
    for workers in sorted(times):
        if 2 * workers not in times or times[workers] < WORTH * times[2 * workers]:
            return workers
    raise AssertionError


def h100_share(algorithm: Algorithm) -> dict[int, float]:
    """Return an H100's evaluation by number of candidates, in proportion to that of 20."""
    speed = json.loads(H100.read_text(encoding="utf-8"))["speed"][algorithm]["contenders"][H100_CONTENDER]
    twenty = 1e3 * 20 / float(speed["evals_per_s"])
    return {1: twenty / 20, 20: twenty}


def seeds(population: int, budget: int, cache: str) -> dict[str, Any]:
    """Run five seeds one after another with one thread, then on two workers, also with larger populations."""
    alone, _ = run_seeds(population, budget, cache)
    together, test = run_seeds(population, budget, cache, "--workers", "2")
    tests = {population: test} | {size: run_seeds(size, budget, cache, "--workers", "2")[1] for size in LARGER}
    times = {"one_after_another_s": alone, "two_workers_s": together, "speed_up": alone / together}
    return times | {"budget": budget, "populations": tests}


def run_seeds(population: int, budget: int, cache: str, *flags: str) -> tuple[float, dict[str, float]]:
    """Run five seeds of the demo as a command; return its seconds, and the test metric's mean and deviation."""
    program = "import sys; from bbt_fast.tuner.cli.main import main; sys.exit(main(sys.argv[1:]))"
    asked = ["--engine", "ort", "--precision", "fp32", "--device", "cpu", "--seeds", SEEDS, "--no-plots"]
    size = ["--popsize", str(population), "--budget", str(budget)]
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-c", program, *asked, *size, "--output_dir", f"{place}/r", *flags]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1", "BBT_FAST_CACHE": cache}
        began = time.perf_counter()
        subprocess.run(command, check=True, env=one_thread, capture_output=True)
        seconds = time.perf_counter() - began
        result = json.loads(Path(place, "r", RESULT).read_text(encoding="utf-8"))
    return seconds, {name: result[name]["test"] for name in ("mean", "std")}


def table(record: Mapping[str, Any]) -> str:
    """Return a record as Markdown."""
    about = record["environment"]
    measured = [
        (
            name, f"{row['generation_ms_on_1']:.1f}", f"{row['generation_ms_on_2']:.1f}",
            f"{row['generation_ms_on_1'] / row['generation_ms_on_2']:.2f}", f"{row['busy'] - 1:+.0%}",
            f"{row['expected_ms_on_2']:.1f}", f"{row['expected_ms_on_2'] / row['generation_ms_on_2'] - 1:+.1%}",
        )
        for name, row in record["measured"].items()
    ]  # fmt: skip
    headings = ("algorithm", "on 1, ms a generation", "on 2", "speed-up", "both cores busy", "computed for 2", "off by")
    lines = [
        f"**Several workers**, the demo's model, population {record['population']}, ONNX Runtime in fp32, one thread "
        f"each. {about['device']}; commit {about['commit']}.",
        "",
        *markdown(headings, "lr", measured),
    ]
    if record["seeds"]:
        row = record["seeds"]
        tests = [
            (size, row["budget"] // int(size), f"{100 * test['mean']:.1f} % ({100 * test['std']:.1f})")
            for size, test in row["populations"].items()
        ]
        lines += [
            "",
            f"Five seeds of {row['budget']} evaluations: {row['one_after_another_s']:.0f} s one after another, "
            f"{row['two_workers_s']:.0f} s on two workers, {row['speed_up']:.2f} times faster, start included.",
            "",
            *markdown(
                ("population", "generations", "test metric of the five seeds, mean (standard deviation)"), "r", tests
            ),
        ]
    computed = []
    for name, by_population in record["h100"].items():
        for size, row in by_population.items():
            ms = {int(count): its for count, its in row["ms"].items()}  # JSON keys are text
            computed.append((name, size, *(f"{ms[count]:.1f}" for count in (1, 8, 64)), row["stops_to_pay"]))
    columns = ("algorithm", "population", "on 1, ms", "on 8", "on 64", "more than this many do not pay")
    lines += [
        "",
        "Computed for an H100 each: RoBERTa-large, PyTorch in fp16, evaluation in proportion to candidates.",
        "",
        *markdown(columns, "lr", computed),
    ]
    return "\n".join(lines)


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the speed-up over the number of workers, a panel per algorithm and a line per population."""
    with drawing(path, 9, 3.6, columns=len(record["h100"])) as panels:
        for panel, (name, by_population) in zip(panels, record["h100"].items(), strict=True):
            for population, row in by_population.items():
                gains = [row["ms"][1] / row["ms"][count] for count in WORKERS]
                panel.plot(WORKERS, gains, label=f"population {population}")
            panel.plot(WORKERS, WORKERS, ":", color="gray")
            panel.set(xscale="log", yscale="log", xlabel="H100s (computed)", ylabel="times faster than one", title=name)
            panel.set_xticks(WORKERS, [str(count) for count in WORKERS])
        panels[0].legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, simulate, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--budget", type=int, default=4000, help="evaluations of each of the five seeds; 0 for no seeds"
    )
    parser.add_argument("--dry_run", action="store_true", help="few repeats, no seeds, no record without --output")
    parser.add_argument("--output", type=Path, help="file of the record (default: in benchmarks/results)")
    given = parser.parse_args(arguments)
    repeats, budget = (1, 0) if given.dry_run else (given.repeats, given.budget)
    torch.set_num_threads(1)
    sizes = (1, 5, 10, given.population)
    measured, h100 = dict[str, Any](), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="bbt-fast-cluster-") as cache:
        os.environ.setdefault("BBT_FAST_CACHE", cache)
        for algorithm in ALGORITHMS:
            say(algorithm)
            row = measure(algorithm, sizes, given.population, repeats)
            of_cma = optimiser(algorithm, POPULATIONS, repeats)
            rounds = {1: row["calls_ms_on_1"], 2: row["calls_ms_on_2"]}
            expected = simulate(row["share_ms"], rounds, 0.0, given.population, 2, row["busy"])
            measured[algorithm] = row | {"optimiser_ms": of_cma, "expected_ms_on_2": expected}
            h100[algorithm] = {}
            for population in POPULATIONS:
                share = h100_share(algorithm)
                ms = {count: simulate(share, rounds, of_cma[population], population, count) for count in WORKERS}
                h100[algorithm][population] = {"ms": ms, "stops_to_pay": stops_to_pay(ms)}
        side_by_side = seeds(given.population, budget, os.environ["BBT_FAST_CACHE"]) if budget else {}
    record = record_of(
        "cluster", "cpu", 1, population=given.population, measured=measured, seeds=side_by_side, h100=h100
    )
    if given.output or not given.dry_run:
        path = given.output or RESULTS / "cluster-demo.json"
        publish(record, path, table)
        plot(record, path.with_suffix(".png"))
    print(table(record))


if __name__ == "__main__":
    main()
