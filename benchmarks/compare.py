"""Compare black-box tuning with what a user would take instead: accuracy, time, memory and bytes, by one command.

    python benchmarks/compare.py                                                        the demo, every method
    python benchmarks/compare.py --model_name MODEL --task_name sst2,ag_news --data_dir DATA/{task} --seeds 8,13,42
    python benchmarks/compare.py ... --methods bbt,lora --seeds 8 --n_test 200          a quick look
    python benchmarks/compare.py ... --jobs 4                                           four steps at once

All methods have the same splits, template and label words. Where a method has several settings, the development set of
the first seed chooses one, and all seeds take it. The test set is looked at once, at the end of each run. The record is
written after every step, and what it holds is not measured again: a comparison that was stopped goes on where it was,
and one of more seeds or methods adds to it. Runs of BBT and BBTv2 that were stopped go on too. A step that fails is
named, the others go on, and the next start tries it again; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbt_fast.benchmarks.harness.comparison import failures, plot, table
from bbt_fast.benchmarks.harness.record import RESULTS
from bbt_fast.benchmarks.methods.schedule import compare
from bbt_fast.benchmarks.methods.table import METHODS
from bbt_fast.export.errors import BbtFastError, PartlyFailedError, UsageError
from bbt_fast.tuner.artifacts.files import write_whole
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task

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
    parser.add_argument("--jobs", type=int, default=1, help="steps at once; side by side they slow each other down")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="BBT and BBTv2 keep their runs here")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the records, tables and plots")


def run(args: argparse.Namespace) -> str:
    """Compare on every task that was asked for, and return the tables.

    Raises:
        PartlyFailedError: if a step failed; it holds the tables.
        BbtFastError: if an option, the data or the model cannot be used.
    """
    methods = tuple(METHODS) if args.methods == ALL else tuple(args.methods.split(","))
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"there is no method {unknown[0]!r}; they are {', '.join(METHODS)}.")
    seeds = Options.of(seeds=args.seeds).seeds or ()
    if args.jobs < 1:
        raise UsageError(f"jobs is {args.jobs}, but must be at least 1.")
    if args.jobs > 1:  # read by the libraries when the processes of the steps load them
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    records = [_compared(args, task, methods, seeds) for task in args.task_name.split(",")]
    text = "\n\n".join(map(table, records))
    if any(map(failures, records)):
        raise PartlyFailedError("some steps failed; the same command tries them again.", text)
    return text


def _compared(args: argparse.Namespace, task: str, methods: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Compare on one task, and return the record."""
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
    the_task = load_task(options.task_name)
    setup = Setup(resolve(options, the_task.preset), the_task)
    setup.encoder.encode(
        setup.splits(seeds[0]).train, quiet=True
    )  # what no method can do without is missed here, and not by each of them
    runs = Path(args.runs).absolute() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for measured in compare(record, options, methods, seeds, runs, args.max_epochs, args.jobs):
        kept = measured | {"made": time.strftime("%Y-%m-%d")}
        write_whole(path, json.dumps(kept, indent=1).encode() + b"\n")
        write_whole(path.with_suffix(".md"), table(record).encode() + b"\n")
    plot(record, path.with_suffix(".png"))
    return record


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
    except PartlyFailedError as error:
        print(error.done)
        parser.exit(1, f"compare: {error}\n")
    except BbtFastError as error:
        parser.exit(2, f"compare: {error}\n")


if __name__ == "__main__":
    main()
