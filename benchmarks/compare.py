"""Compare black-box tuning with its alternatives in one command: accuracy, time, memory and bytes.

    python benchmarks/compare.py                                                        the demo, every method
    python benchmarks/compare.py --model_name MODEL --task_name sst2,ag_news --data_dir DATA/{task} --seeds 8,13,42
    python benchmarks/compare.py ... --methods bbt,lora --seeds 8 --n_test 200          a quick look
    python benchmarks/compare.py ... --jobs 4                                           four steps at once
    python benchmarks/compare.py ... --sweep intrinsic_dim=50,100,200,500,1000          BBT and BBTv2 with each of these

All methods use the same splits, template and label words. If a method has several settings, the development set of the
first seed selects one, and all seeds use it. Each run reads the test set once, at its end. The script writes the record
after every step and skips the steps that the record holds. So an interrupted comparison resumes, and new seeds or
methods extend the record, on another machine too. Interrupted runs of BBT and BBTv2 resume. If a step fails, the script
names it, continues with the others, and exits with status 1; the next start repeats the failed step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from bbt_fast.benchmarks.harness import sweeps
from bbt_fast.benchmarks.harness.comparison import failures, plot, table
from bbt_fast.benchmarks.harness.output import publish
from bbt_fast.benchmarks.harness.record import RESULTS
from bbt_fast.benchmarks.methods.black_box import WHERE
from bbt_fast.benchmarks.methods.schedule import compare
from bbt_fast.benchmarks.methods.table import METHODS
from bbt_fast.export.errors import BbtFastError, PartlyFailedError, UsageError
from bbt_fast.tuner.artifacts.files import digest
from bbt_fast.tuner.cli.quiet import hide_progress_bars
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task

DESCRIPTION = (
    "Compare BBT and BBTv2 with a manual prompt, in-context learning, classifiers on features, and "
    "gradient-based tuning, on the same examples: accuracy, time, memory, queries and bytes."
)
SEEDS = (8, 13, 42)
COMPARED = ("model_name", "task_name", "k_shot", "cat_or_add", "n_prompt_tokens", "budget")
"""Options that the command passes on, besides WHERE; a record has one value of each."""
ALL, SWEPT = "all", "bbt,bbtv2"
"""The default methods, without and with a sweep."""


@dataclass(frozen=True)
class Comparison:
    """A comparison on one task, with one value of the swept option."""

    options: Options
    about: Mapping[str, Any]
    """The values that identify the record, by name."""
    sources: Mapping[str, str]
    """The digests of what these names stand for on this machine."""
    name: str
    """The name of its files, without a suffix."""
    swept: str
    """The option whose values have a table; the task without --sweep."""


def opened(path: Path, comparison: Comparison, methods: Sequence[str]) -> dict[str, Any]:
    """Return the record in a file, or a new one, with the methods' steps in equal comparisons of the same folder.

    Raises:
        UsageError: if the record in the file has other options, another model or other data.
    """
    about, sources = dict(comparison.about), dict(comparison.sources)
    record: dict[str, Any] = {"benchmark": "compare", "made": time.strftime("%Y-%m-%d")}
    record |= {"swept": comparison.swept, "about": about, "sources": sources, "methods": {}}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        other = [f"{k} is {record['about'].get(k)!r} there" for k, v in about.items() if record["about"].get(k) != v]
        there = record.get("sources", {})
        other += [f"the {what} are others there" for what, its in sources.items() if there.get(what) != its]
        if other:
            raise UsageError(
                f"{path} is of another comparison: {', '.join(other)}. Give the same options, or another --output."
            )
    rows = dict(record["methods"])
    for equal in path.parent.glob("compare-*.json"):  # of another sweep
        its = json.loads(equal.read_text(encoding="utf-8"))
        if (_unusual(its["about"]), its.get("sources")) == (_unusual(about), sources):
            for method in its["methods"].keys() & set(methods):
                row = its["methods"][method]
                rows[method] = max(rows.get(method, row), row, key=lambda one: len(one["seeds"]))
    return record | {"swept": comparison.swept, "methods": {name: rows[name] for name in METHODS if name in rows}}


def _unusual(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a record, without a swept option that has its default value."""
    default = vars(Options())
    usual = {name for name in default.keys() - set(COMPARED) if about.get(name) == default[name]}
    return {name: value for name, value in about.items() if name not in usual}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    default = Options()
    parser.add_argument("--methods", help=f"{ALL}, or some of {','.join(METHODS)} (default with --sweep: {SWEPT})")
    parser.add_argument("--sweep", help="an option of a run and its values, such as intrinsic_dim=50,100,200,500,1000")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="seeds; the first selects the settings")
    parser.add_argument("--model_name", help="hub id or folder of the model")
    parser.add_argument("--task_name", default=default.task_name, help="tasks, separated by commas")
    parser.add_argument("--data_dir", help="folder of the data; {task} is replaced by the task's name")
    parser.add_argument("--n_test", type=int, help="number of test examples, for a quick look")
    parser.add_argument("--max_epochs", type=int, help="upper limit for the epochs, for a quick look")
    parser.add_argument("--k_shot", type=int, default=default.k_shot)
    parser.add_argument("--cat_or_add", default=default.cat_or_add, choices=("add", "cat"))
    parser.add_argument("--n_prompt_tokens", type=int, default=default.n_prompt_tokens)
    parser.add_argument("--budget", type=int, help="evaluations of BBT and BBTv2 (default: the task's preset)")
    parser.add_argument("--engine", default=default.engine, help="engine of BBT and BBTv2")
    parser.add_argument("--precision", default=default.precision, help="of BBT and BBTv2; the others run in fp32")
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--jobs", type=int, default=1, help="parallel steps; they slow each other down")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs of BBT and BBTv2")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the records, tables and plots")


def run(args: argparse.Namespace) -> str:
    """Run the comparisons that the flags ask for, and return the tables.

    Raises:
        PartlyFailedError: if a step failed; it holds the tables.
        BbtFastError: if an option, the data or the model cannot be used.
    """
    chosen = args.methods or (SWEPT if args.sweep else ALL)
    methods = tuple(METHODS) if chosen == ALL else tuple(chosen.split(","))
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"there is no method {unknown[0]!r}. Give {ALL}, or some of {', '.join(METHODS)}.")
    seeds = Options.of(seeds=args.seeds).seeds or ()
    if args.jobs < 1:
        raise UsageError(f"jobs is {args.jobs}, but must be at least 1.")
    if args.jobs > 1:  # for the libraries in the processes of the steps
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    hide_progress_bars()
    option, values = sweeps.parse(args.sweep) if args.sweep else (None, (None,))
    tasks = args.task_name.split(",")
    prepared = [[_prepared(args, task, seeds[0], option, value) for value in values] for task in tasks]
    text: list[str] = []
    failed, over_tasks = False, []
    for comparisons in prepared:
        records = [_compared(args, comparison, methods, seeds) for comparison in comparisons]
        failed = failed or any(map(failures, records))
        text += map(table, records)
        if option is not None:
            text.append(sweeps.write(option, values, records, Path(args.output)))
        over_tasks.append(records[0])
    if option is None and len(tasks) > 1:
        text.append(sweeps.table("task_name", tasks, over_tasks))
    if failed:
        raise PartlyFailedError("some steps failed; the same command tries them again.", "\n\n".join(text))
    return "\n\n".join(text)


def _prepared(args: argparse.Namespace, task: str, seed: int, option: str | None, value: Any) -> Comparison:
    """Return a comparison; check the options, the data and the model that all methods need.

    Raises:
        BbtFastError: if an option, the data or the model cannot be used.
    """
    default = Options()  # a preset can set the options that are not given
    values = {name: getattr(args, name) for name in COMPARED + WHERE}
    given = {name: its for name, its in values.items() if its not in (None, getattr(default, name))}
    given |= {"task_name": task}
    swept = {} if option is None else {option: value}
    options = Options.of(**{
        **given,
        "data_dir": None if args.data_dir is None else args.data_dir.replace("{task}", Path(task).stem),
        "max_test_examples": args.n_test,
        "plots": False,
        **swept,
    })  # fmt: skip
    names = {"model_name": Path(options.model_name or "demo").name, "task_name": Path(task).stem}
    about = {name: getattr(options, name) for name in COMPARED} | swept | names
    about |= {"n_test": args.n_test, "max_epochs": args.max_epochs}
    ends = [f"n{args.n_test}"] if args.n_test else []
    ends += [f"{option}-{sweeps.label(value)}"] if option else []
    its_task = load_task(task)
    setup = Setup(resolve(options, its_task.preset), its_task)
    splits = setup.splits(seed)
    setup.encoder.encode(splits.train, quiet=True)
    model: Any = setup.model
    sources = {
        "model's embeddings": digest(model.get_input_embeddings().weight.float().numpy().tobytes()),
        "test texts": digest(*(json.dumps([*row.texts, row.label]).encode() for row in splits.test)),
    }
    return Comparison(options, about, sources, "-".join(["compare", *names.values(), *ends]), option or "task_name")


def _compared(
    args: argparse.Namespace, comparison: Comparison, methods: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """Measure the steps that the record lacks, write it after every step, and return it.

    Raises:
        UsageError: if the record in the file is of another comparison, or another process is extending it.
    """
    path = Path(args.output) / f"{comparison.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            record = opened(path, comparison, methods)
            publish(record, path, table)
            runs = Path(args.runs).absolute() / comparison.name
            for measured in compare(record, comparison.options, methods, seeds, runs, args.max_epochs, args.jobs):
                publish(measured | {"made": time.strftime("%Y-%m-%d")}, path, table)
            if comparison.swept == "task_name":  # a sweep has a plot over its values
                plot(record, path.with_suffix(".png"))
    except filelock.Timeout:
        raise UsageError(f"another process is extending {path}. Wait for it, or give another --output.") from None
    return record


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
