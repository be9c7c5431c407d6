"""Tune and test with several seeds: what each algorithm, engine and precision makes of a task, beside zero-shot.

    python benchmarks/accuracy.py                                             the demo
    python benchmarks/accuracy.py --model_name MODEL --task_name sst2 --data_dir DIR --budget 2000
    python benchmarks/accuracy.py ... --engines openvino-fp32 openvino-bf16   and what a precision changes

An interrupted measurement goes on where it was if it is given the same --runs folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import bbt_fast
from bbt_fast.benchmarks.harness.record import RESULTS, environment, save, say
from bbt_fast.tuner.options import Options
from bbt_fast.tuner.result import RESULT, read_result
from bbt_fast.tuner.seeds import SeedsResult, child_name

ALGORITHMS = ("bbt", "bbtv2")
SEEDS = (8, 13, 42, 50, 60)
COLUMNS = ("zero-shot test", "dev", "test")


def measure(options: Options, algorithms: Sequence[str], engines: Sequence[str], runs: Path) -> list[dict[str, Any]]:
    """Tune with every algorithm and engine; return a row for each.

    Args:
        options: the task, model, seeds and budget.
        algorithms: "bbt", "bbtv2".
        engines: engine-precision pairs, such as "ort-fp32".
        runs: where the runs' folders go; those that are finished there are taken over.
    """
    rows = []
    for name in engines:
        engine, precision = name.split("-")
        for algorithm in algorithms:
            changes = {"engine": engine, "precision": precision, "algorithm": algorithm}
            found = tuned(options.changed(**changes, output_dir=str(runs / f"{algorithm}-{name}")))
            first = found.results[0]
            rows.append(
                {"algorithm": algorithm, "engine": name, "budget": first.budget, "metric": first.metric}
                | {"examples": first.examples, "seconds": sum(result.seconds.tune for result in found.results)}
                | {"seeds": {str(result.seed): result.tuned.test for result in found.results}}
                | {"mean": {key: found.spreads[key].mean for key in COLUMNS}}
                | {"std": {key: found.spreads[key].std for key in COLUMNS}}
            )
            say(f"{algorithm} {name}: {rows[-1]['mean']}")
    return rows


def tuned(options: Options) -> SeedsResult:
    """Tune and test, unless the folder holds the finished runs."""
    folder, seeds = Path(options.output_dir or "."), options.seeds or ()
    if not (folder / RESULT).exists():
        return bbt_fast.tune_seeds(options)
    return SeedsResult(tuple(read_result(folder / child_name(seed)) for seed in seeds), None, folder)


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown, in percent."""
    first = record["rows"][0]
    about, counts = record["environment"], first["examples"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"`{record['model']}` on {record['task']}, {counts['train']} training and {counts['dev']} development "
        f"examples, tested on {counts['test']}; {first['metric']} in percent, mean over seeds "
        f"{', '.join(first['seeds'])} (standard deviation). {about['device']}, {versions}; commit {about['commit']}.",
        "",
        "| algorithm | engine | evaluations | zero-shot, test | tuned, dev | tuned, test | by seed |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in record["rows"]:
        figures = [f"{100 * row['mean'][key]:.1f} ({100 * row['std'][key]:.1f})" for key in COLUMNS]
        seeds = ", ".join(f"{100 * score:.1f}" for score in row["seeds"].values())
        cells = (row["algorithm"], row["engine"], str(row["budget"]), *figures, seeds)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name")
    parser.add_argument("--task_name", default="demo")
    parser.add_argument("--data_dir")
    parser.add_argument("--budget", type=int, help="evaluations; without it the task's preset")
    parser.add_argument("--max_test_examples", type=int)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--engines", nargs="+", default=["ort-fp32"], help="engine-precision pairs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, help="keep the runs' folders here")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    names = ("model_name", "task_name", "data_dir", "budget", "max_test_examples", "seeds", "device")
    options = Options.of(**{name: getattr(given, name) for name in names if getattr(given, name) is not None})
    model = Path(given.model_name or "demo").name
    with nullcontext(given.runs) if given.runs else tempfile.TemporaryDirectory() as folder:
        rows = measure(options, given.algorithms, given.engines, Path(folder))
    record: dict[str, Any] = {
        "benchmark": "accuracy",
        "made": time.strftime("%Y-%m-%d"),
        "environment": environment(given.device, 0),
    }
    record |= {"model": model, "task": Path(given.task_name).stem, "rows": rows}
    path = given.output or RESULTS / f"accuracy-{model}-{record['task']}.json"
    save(record, path)
    path.with_suffix(".md").write_text(table(record) + "\n", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
