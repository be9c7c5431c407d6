"""Compare how fast contenders evaluate a population of prompts; write a JSON record and print a table.

    python benchmarks/speed.py                                       minilm's shape, SST-2's lengths, BBT
    python benchmarks/speed.py --model roberta-base --algorithm bbtv2
    python benchmarks/speed.py --model FOLDER --contenders original bbt-fast-ort-fp32
    python benchmarks/speed.py --ablate reuse buckets answer_only label_head
    python benchmarks/speed.py --model gpt2 --contenders bbt-fast-ort-fp32 bbt-fast-ort-fp32-without-prefix

Every contender runs in its own process. The script checks its answers, warms it up, and then times the contenders in
turns, in alternating order. The exit status is 1 if a contender failed or gave wrong answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from bbt_fast.benchmarks.harness.contenders import known, usual
from bbt_fast.benchmarks.harness.lengths import CLASSES
from bbt_fast.benchmarks.harness.pool import own_process
from bbt_fast.benchmarks.harness.record import RESULTS, record_of, save, say, spread, usual_device
from bbt_fast.benchmarks.harness.worker import REFERENCE, WorkerError
from bbt_fast.benchmarks.harness.workload import ALGORITHMS, Workload
from bbt_fast.benchmarks.report import BUDGET, table
from bbt_fast.engine import Savings
from bbt_fast.export.errors import BbtFastError
from bbt_fast.export.parity import Parity, compare
from bbt_fast.export.precision import precision_of

DESCRIPTION = (
    "Compare how fast bbt-fast and the PyTorch baselines evaluate a population, answers checked first. "
    "Without flags: BBT on a small model's shape, with random weights and SST-2's text lengths."
)
"""Of ``bbt-fast bench``."""
LOADING, CHECKING = 0.55, 0.75
"""The shares of a limited time at which all contenders must be loaded, and checked; the rest is for repeats."""
TAKEN_APART = ("bbt-fast", "torch-best")
"""The first words of the contenders whose generations are profiled."""
FINISHING = 60.0
"""Seconds for a contender's last commands, after a limited time."""


@dataclass
class Entry:
    """A contender in a comparison, and its figures."""

    name: str
    worker: Any
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    wrong: str | None = None
    """How its answers are wrong, if it is timed nevertheless."""

    @property
    def runs(self) -> bool:
        """Whether it has not failed so far."""
        return "status" not in self.facts

    def __call__(self, command: str, limit: Limit) -> Any:
        """Run a command; a failure ends the contender, not the comparison."""
        self.worker.send(command)
        return self.receive(limit)

    def profile(self, limit: Limit) -> None:
        """Profile a generation; a failure does not affect the times."""
        self.worker.send("breakdown")
        try:
            self.facts["breakdown"] = self.worker.receive(limit.left)
        except WorkerError as error:
            say(f"{self.name}: a generation cannot be profiled: {error.reason}")

    def receive(self, limit: Limit) -> Any:
        """Return the answer to the last command, or None if the contender failed."""
        try:
            return self.worker.receive(limit.left)
        except WorkerError as error:
            self.end(error.status, error.reason)
            return None

    def end(self, status: str, reason: str) -> None:
        """Remove the contender from the comparison."""
        self.facts |= {"status": status, "reason": reason}
        say(f"{self.name}: {status}: {reason}")
        self.worker.close()


class Limit:
    """The time at which a comparison must end."""

    def __init__(self, seconds: float | None) -> None:
        """Start the clock; None for no limit."""
        self._ends = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds left; None without a limit."""
        return None if self._ends is None else self._ends - time.monotonic()


def compare_speed(
    workload: Workload,
    names: Sequence[str],
    repeats: int,
    cache: str | None = None,
    *,
    seconds: float | None = None,
    take_apart: bool = False,
    start: Callable[[str, Workload, str | None], Any] = own_process,
) -> dict[str, Any]:
    """Run a comparison and return its record.

    Args:
        workload: the model, texts and search.
        names: the contenders.
        repeats: timed rounds of each.
        cache: folder for built graphs; None for a fresh one per contender.
        seconds: a time limit. With one, contenders load at the same time, so load times are longer and a GPU's memory
            per contender is unknown. Contenders that are not ready in time are skipped.
        take_apart: whether to profile a generation, by kind of kernel, of all but the slow baselines.
        start: starts the process that runs a contender.

    Raises:
        WorkerError: if the reference cannot be run.
    """
    limit, loading, checking = (Limit(seconds and part * seconds) for part in (1, LOADING, CHECKING))
    reference = start(REFERENCE, workload, cache)
    entries: list[Entry] = []
    if seconds is not None:
        entries = [_loading(name, workload, cache, start) for name in names]
    reference("load", limit.left)
    expected = reference("check", limit.left)
    reference.close()
    if seconds is None:
        for name in names:
            entries.append(_loading(name, workload, cache, start))
            entries[-1].facts |= entries[-1].receive(limit) or {}
            _check(entries[-1], expected, limit, workload.refused)
    else:
        for entry in entries:
            entry.facts |= entry.receive(loading) or {}
        for entry in entries:
            _check(entry, expected, checking, workload.refused)
    spent = 0.0
    for repeat in range(repeats):
        if limit.left is not None and limit.left < spent:
            say(f"there is no time for repeat {repeat + 1} of {repeats}")
            break
        say(f"repeat {repeat + 1} of {repeats}")
        began = time.monotonic()
        for entry in entries if repeat % 2 == 0 else reversed(entries):
            _repeat(entry, limit)
        spent = time.monotonic() - began
    for entry in entries:
        if entry.runs:
            entry.facts |= entry("finish", Limit(seconds and FINISHING)) or {}
        if entry.runs and entry.rounds and take_apart and entry.name.startswith(TAKEN_APART):
            entry.profile(Limit(seconds and FINISHING))
        entry.worker.close()
        if seconds is not None and workload.device != "cpu":
            entry.facts["peak_mib"] = None  # it is the device's memory, and others loaded meanwhile
    return record_of(
        "speed",
        workload.device,
        workload.threads,
        workload=asdict(workload) | {"n_examples": workload.examples_count, "lengths": workload.lengths.tolist()},
        budget=BUDGET,
        contenders={entry.name: _figures(entry, workload) for entry in entries},
    )


def _loading(name: str, workload: Workload, cache: str | None, start: Callable[..., Any]) -> Entry:
    """Start loading a contender."""
    say(f"{name}: loading")
    entry = Entry(name, start(name, workload, cache))
    entry.worker.send("load")
    return entry


def _check(entry: Entry, expected: list[Any], limit: Limit, refused: bool) -> None:
    """Check a contender's answers, and warm it up; keep one with wrong answers only if ``refused``."""
    answers = entry("check", limit) if entry.runs else None
    if answers is not None:
        found = agreement(expected, answers)
        entry.facts["agreement"] = found.as_dict()
        fault = disagreement(found, entry.facts["precision"])
        if fault and refused:
            entry.wrong = fault
        elif fault:
            entry.end("wrong", fault)
    if entry.runs:
        entry("round", limit)


def _repeat(entry: Entry, limit: Limit) -> None:
    """Time a round, and after it a matrix product."""
    seconds = entry("round", limit) if entry.runs else None
    rate = entry("matmul", limit) if seconds is not None else None
    if seconds is not None and rate is not None:
        entry.rounds.append(seconds)
        entry.rates.append(rate)


def agreement(expected: list[Any], answers: list[Any]) -> Parity:
    """Compare answers [P, N, C] at each checked layer with the reference's; return the worst of each figure."""
    found = [compare(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(expected, answers, strict=True)]
    worst = max(found, key=lambda parity: parity.mean_loss_error / parity.loss_spread)
    return replace(worst, spearman=min(parity.spearman for parity in found))


def disagreement(found: Parity, precision: str) -> str | None:
    """Return how answers differ by more than their precision allows, or None."""
    limits = precision_of(precision)
    error = found.mean_loss_error / found.loss_spread
    if found.spearman >= limits.min_spearman and error <= limits.max_loss_error:
        return None
    return (
        f"mean loss error {found.mean_loss_error:.2e}, {error:.2f} of the population's spread (at most "
        f"{limits.max_loss_error} in {precision}), Spearman {found.spearman:.3f} (at least {limits.min_spearman})"
    )


def _figures(entry: Entry, workload: Workload) -> dict[str, Any]:
    """Return a contender's part of the record."""
    facts: dict[str, Any] = {"status": "ok"} | entry.facts
    if entry.wrong:
        facts |= {"status": "wrong", "reason": entry.wrong}
    if not entry.runs:
        return facts
    if not entry.rounds:
        return facts | {"status": "skipped", "reason": "the time was up"}
    generations = facts["generations"]
    totals = [seconds["total"] for seconds in entry.rounds]
    rate = spread(entry.rates)
    middle = spread(totals)["median"]
    evaluations = workload.population * generations
    per_generation = {
        part: spread([seconds.get(part, 0.0) / generations * 1e3 for seconds in entry.rounds])["median"]
        for part in entry.rounds[0]
    }
    return facts | {
        "round_seconds": spread(totals),
        "evals_per_s": evaluations / middle,
        "generation_ms": middle / generations * 1e3,
        "parts_ms": per_generation,
        "optimizer_share": (per_generation["optimizer"] + per_generation["project"]) / per_generation["total"],
        "matmul_flop_per_s": rate,
        "flop_per_s": facts["round_flop"] / middle,
        "matmul_share": facts["round_flop"] / middle / rate["median"],
        "full_run_s": facts["load_seconds"] + BUDGET / evaluations * middle,
    }


def failed(record: dict[str, Any]) -> bool:
    """Say whether a contender of a record was wrong or failed."""
    return any(figures["status"] in ("wrong", "failed") for figures in record["contenders"].values())


def run(options: argparse.Namespace) -> str:
    """Run the comparison that the flags ask for, and return its table.

    Raises:
        BbtFastError: if a contender gave wrong answers or broke; the message holds the table.
    """
    record = measured(options, options.output)
    if failed(record):
        raise BbtFastError(f"a contender was wrong or failed.\n{table(record)}")
    return table(record)


def measured(options: argparse.Namespace, path: Path | None) -> dict[str, Any]:
    """Run the comparison that the flags ask for, write its record and return it.

    Args:
        options: the parsed flags.
        path: the record's file; None writes none.
    """
    workload = Workload(
        options.model,
        options.algorithm,
        options.task,
        options.population,
        options.examples,
        layers=tuple(options.layers or ()),
        sample=options.sample,
        threads=options.threads,
        device=options.device,
        refused=options.refused,
    )
    names = options.contenders or usual(torch.device(options.device).type, options.ablate, options.ablated)
    record = compare_speed(workload, names, options.repeats, options.cache)
    if path is not None:
        save(record, path)
        say(f"record: {path}")
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    options = parser.parse_args(arguments)
    name = f"speed-{Path(options.model).name}-{options.algorithm}-{options.device}.json"
    try:
        record = measured(options, options.output or RESULTS / name)
    except BbtFastError as error:
        print(f"speed.py: {error}", file=sys.stderr)
        return 2
    print(table(record))
    return int(failed(record))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a comparison."""
    add = parser.add_argument
    shapes = "a shape (toy, minilm, roberta-base, ...), or a RoBERTa, BERT or GPT-2 by folder or hub id"
    add("--model", default="minilm", help=shapes)
    add("--algorithm", default="bbt", choices=ALGORITHMS)
    add("--task", default="sst2", choices=list(CLASSES), help="the task of the text lengths and the number of classes")
    add("--population", type=int, default=20)
    add("--examples", type=int, default=0, help="texts; 0 for 16 per class")
    add("--contenders", nargs="+", type=known, help="names (default: all that suit the device)")
    savings = [saving.name for saving in fields(Savings)]
    add("--ablate", nargs="+", default=[], choices=savings, help="savings; each adds a contender without it")
    add("--ablated", default="ort-fp32", help="engine and precision of these contenders")
    add("--repeats", type=int, default=5)
    add("--layers", type=int, nargs="+", help="tune only these layers in a round of BBTv2")
    add("--sample", type=int, default=0, help="candidates that one-by-one contenders run; 0 for all")
    add("--threads", type=int, default=0)
    add("--device", default=usual_device())
    add("--cache", help="folder that keeps built graphs; export times then depend on it")
    add("--refused", action="store_true", help="also time contenders with wrong answers; the table marks them")
    add("--output", type=Path, help="the record's file")


if __name__ == "__main__":
    sys.exit(main())
