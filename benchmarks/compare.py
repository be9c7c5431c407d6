"""Compare black-box tuning with what a user would take instead: accuracy, time, memory and bytes, by one command.

    python benchmarks/compare.py                                                        the demo, every method
    python benchmarks/compare.py --model_name MODEL --task_name sst2,ag_news --data_dir DATA/{task} --seeds 8,13,42
    python benchmarks/compare.py ... --methods bbt,lora --seeds 8 --n_test 200          a quick look

All methods have the same splits, template and label words. Where a method has several settings, the development set of
the first seed chooses one, and all seeds take it. The test set is looked at once, at the end of each run. The record is
written after every step, and what it holds is not measured again: a comparison that was stopped goes on where it was,
and one of more seeds or methods adds to it. Runs of BBT and BBTv2 that were stopped go on too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbt_fast.benchmarks.harness.comparison import plot, table
from bbt_fast.benchmarks.harness.record import RESULTS, commit, device_name, save, say, versions
from bbt_fast.benchmarks.methods.run import figures_apart
from bbt_fast.benchmarks.methods.table import METHODS
from bbt_fast.export.errors import BbtFastError, UsageError
from bbt_fast.tuner.input.options import Options

SEEDS = (8, 13, 42)
GIVEN = (
    "model_name",
    "task_name",
    "k_shot",
    "cat_or_add",
    "n_prompt_tokens",
    "budget",
    "engine",
    "precision",
    "device",
)
"""Options that the command passes on under their own names; a record is of one value of each."""
ALL = "all"
Measure = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One thing to measure: a setting on the development set of the first seed, or a seed with the chosen setting."""

    method: str
    seed: int
    setting: int | None
    """The number of the setting to try; None for the chosen one."""

    def __str__(self) -> str:
        """Name it for the progress line."""
        tried = "" if self.setting is None else f", setting {self.setting + 1} of {len(METHODS[self.method].grid)}"
        return f"{self.method}, seed {self.seed}{tried}"


def jobs(methods: Sequence[str], seeds: Sequence[int], record: Mapping[str, Any]) -> list[Job]:
    """Return what a record lacks, method by method: first its grid, then its seeds."""
    found = []
    for method in methods:
        row = record["methods"].get(method, {"grid": [], "seeds": {}})
        grid = METHODS[method].grid
        if len(grid) > 1 and row.get("chosen") is None:
            found += [Job(method, seeds[0], number) for number in range(len(row["grid"]), len(grid))]
        found += [Job(method, seed, None) for seed in seeds if str(seed) not in row["seeds"]]
    return found


def compare(
    record: dict[str, Any], options: Options, methods: Sequence[str], seeds: Sequence[int], runs: Path,
    max_epochs: int | None = None, measure: Measure = figures_apart,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Measure what a record lacks, and yield it after each step.

    Args:
        record: the one to add to.
        options: what all methods share.
        methods: keys of ``METHODS``.
        seeds: the first chooses the settings.
        runs: BBT and BBTv2 keep their runs here.
        max_epochs: for a quick look.
        measure: runs one method; a test need not take a process for each.

    Raises:
        BbtFastError: if the options, the model or the data cannot be used.
    """
    left = jobs(methods, seeds, record)
    took: list[float] = []
    for number, job in enumerate(left, 1):
        row = record["methods"].setdefault(job.method, {"grid": [], "chosen": None, "seeds": {}})
        grid, tries = METHODS[job.method].grid, job.setting is not None
        if not tries and row["chosen"] is None:
            row["chosen"] = _best(row["grid"]) if len(grid) > 1 else 0
        setting = grid[job.setting if job.setting is not None else row["chosen"]]
        folder = runs / job.method / f"seed-{job.seed}"
        began = time.perf_counter()
        given = options.changed(seed=job.seed, output_dir=str(folder))
        found = measure(job.method, given, setting, test=not tries, max_epochs=max_epochs)
        took.append(time.perf_counter() - began)
        found |= {"device": device_name(_device(options.device)), "versions": versions(), "commit": commit()}
        if tries:
            row["grid"].append({name: found[name] for name in ("setting", "dev", "dev_loss", "seconds")})
        else:
            row["seeds"][str(job.seed)] = found
            row["seeds"] = dict(sorted(row["seeds"].items(), key=lambda item: int(item[0])))
        rest = statistics.fmean(took) * (len(left) - number)
        metric = found["dev"] if tries else found["test"]
        say(
            f"{job}: {100 * metric:.1f} % on {'dev' if tries else 'test'} in {took[-1]:.0f} s; "
            f"{number} of {len(left)} done, about {rest / 60:.0f} min left"
        )
        yield record


def _best(tried: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the setting with the best metric on the development set, by the loss where metrics tie."""
    return max(range(len(tried)), key=lambda number: (tried[number]["dev"], -tried[number]["dev_loss"]))


def _device(name: str) -> str:
    import torch

    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return auto if name == "auto" else name


def opened(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a file, or a new one.

    Raises:
        UsageError: if the file is of other options.
    """
    if not path.exists():
        return {"benchmark": "compare", "made": "", "about": dict(about), "methods": {}}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    other = [f"{k} is {record['about'].get(k)!r} there" for k, v in about.items() if record["about"].get(k) != v]
    if other:
        raise UsageError(
            f"{path} is of another comparison: {', '.join(other)}. Give the same options, or another --output."
        )
    return record


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    default = Options()
    parser.add_argument("--methods", default=ALL, help=f"all, or some of {','.join(METHODS)}")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="the first chooses the settings")
    parser.add_argument("--model_name", help="hub id or folder of the model")
    parser.add_argument("--task_name", default=default.task_name, help="one or more, with commas between")
    parser.add_argument("--data_dir", help="folder of the data; {task} in it stands for the task's name")
    parser.add_argument("--n_test", type=int, help="test on this many examples, for a quick look")
    parser.add_argument("--max_epochs", type=int, help="train for so many epochs at most, for a quick look")
    parser.add_argument("--k_shot", type=int, default=default.k_shot)
    parser.add_argument("--cat_or_add", default=default.cat_or_add, choices=("add", "cat"))
    parser.add_argument("--n_prompt_tokens", type=int, default=default.n_prompt_tokens)
    parser.add_argument("--budget", type=int, help="evaluations of BBT and BBTv2; without it the task's preset")
    parser.add_argument("--engine", default=default.engine, help="who answers BBT and BBTv2")
    parser.add_argument("--precision", default=default.precision, help="of BBT and BBTv2; the others are in fp32")
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="BBT and BBTv2 keep their runs here")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the records, tables and plots")


def run(args: argparse.Namespace) -> str:
    """Compare on every task that was asked for, and return the tables.

    Raises:
        BbtFastError: if an option, the data or the model cannot be used.
    """
    methods = tuple(METHODS) if args.methods == ALL else tuple(args.methods.split(","))
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"there is no method {unknown[0]!r}; they are {', '.join(METHODS)}.")
    seeds = Options.of(seeds=args.seeds).seeds or ()
    return "\n\n".join(_compared(args, task, methods, seeds) for task in args.task_name.split(","))


def _compared(args: argparse.Namespace, task: str, methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Compare on one task, and return the table."""
    given = {name: getattr(args, name) for name in GIVEN if getattr(args, name) is not None} | {"task_name": task}
    options = Options.of(
        **given,
        data_dir=None if args.data_dir is None else args.data_dir.replace("{task}", Path(task).stem),
        max_test_examples=args.n_test,
        plots=False,
    )
    names = {"model_name": Path(args.model_name or "demo").name, "task_name": Path(task).stem}
    about = {name: getattr(options, name) for name in GIVEN} | names
    about |= {"n_test": args.n_test, "max_epochs": args.max_epochs}
    name = "-".join(["compare", *names.values(), *([f"n{args.n_test}"] if args.n_test else [])])
    path = Path(args.output) / f"{name}.json"
    record = opened(path, about)
    for measured in compare(record, options, methods, seeds, Path(args.runs).absolute() / name, args.max_epochs):
        save(measured | {"made": time.strftime("%Y-%m-%d")}, path)
    path.with_suffix(".md").write_text(table(record) + "\n", encoding="utf-8")
    plot(record, path.with_suffix(".png"))
    return table(record)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the sub-command; the parsed arguments hold the function that answers them as ``text``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "compare",
        allow_abbrev=False,
        description="Compare BBT and BBTv2 with a manual prompt, in-context learning, classifiers on features, and "
        "gradient-based tuning, on the same examples: accuracy, time, memory, queries and bytes.",
    )
    parser.set_defaults(text=run)
    add_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    try:
        print(run(parser.parse_args(arguments)))
    except BbtFastError as error:
        parser.exit(2, f"compare: {error}\n")


if __name__ == "__main__":
    main()
