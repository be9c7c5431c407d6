"""Measure the accuracy of each algorithm, engine and precision on a task over several seeds, next to zero-shot.

    python benchmarks/accuracy.py                                             the demo
    python benchmarks/accuracy.py --model_name MODEL --task_name sst2 --data_dir DIR --budget 2000
    python benchmarks/accuracy.py ... --engines openvino-fp32 openvino-bf16   compare two precisions

The script writes the record after every run and skips the runs that the record holds. So an interrupted measurement
resumes, also on another machine, and new seeds, algorithms or engines extend the record. --runs keeps the runs'
folders; then an interrupted run resumes too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import bbt_fast
from bbt_fast.benchmarks.harness.output import markdown, mean_and_deviation, measured_by, publish
from bbt_fast.benchmarks.harness.record import RESULTS, provenance, say
from bbt_fast.benchmarks.harness.runs import run_folder, runs_of
from bbt_fast.tuner.artifacts.result import RESULT, Result, read_result
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.seeds import FIGURES

ALGORITHMS = ("bbt", "bbtv2")
SEEDS = (8, 13, 42, 50, 60)
COLUMNS = ("zero-shot test", "dev", "test")
ROW = ("algorithm", "engine", "budget")
"""What a row of the table is of."""
HEADINGS = (
    "algorithm", "engine", "evaluations", "zero-shot, test", "tuned, dev", "tuned, test", "tuned, test, by seed",
)  # fmt: skip


def measure(record: dict[str, Any], runs: Sequence[tuple[dict[str, Any], Options]]) -> Iterator[dict[str, Any]]:
    """Tune with all options whose run a record lacks, and yield the record after each.

    Args:
        record: the one to add to.
        runs: what each row of the table is of, and the options of one of its seeds.
    """
    for kind, options in runs:
        row = next((row for row in record["rows"] if all(row[key] == kind[key] for key in ROW)), None)
        if row is None:
            row = kind | {"seeds": {}}
            record["rows"].append(row)
        if str(options.seed) in row["seeds"]:
            continue
        result = tuned(options)
        row |= {"metric": result.metric, "examples": result.examples}
        row["seeds"][str(options.seed)] = figures(result, options.device)
        row["seeds"] = dict(sorted(row["seeds"].items(), key=lambda item: int(item[0])))
        say(f"{' '.join(str(kind[key]) for key in ROW)}, seed {options.seed}: {100 * result.tuned.test:.1f} %")
        yield record


def tuned(options: Options) -> Result:
    """Tune and test, unless the folder holds the finished run."""
    folder = Path(options.output_dir or ".")
    return read_result(folder) if (folder / RESULT).exists() else bbt_fast.tune(options)


def figures(result: Result, device: str) -> dict[str, Any]:
    """Return what the record keeps of a run."""
    columns = {name: FIGURES[name](result) for name in COLUMNS}
    return columns | {"tune_seconds": result.seconds.tune} | provenance(device)


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown, in percent."""
    rows = [row for row in record["rows"] if row["seeds"]]
    counts = rows[0]["examples"]
    made = [run for row in rows for run in row["seeds"].values()]
    lines = [
        f"**accuracy**: `{record['model']}` on {record['task']}, {counts['train']} training and {counts['dev']} "
        f"development examples, tested on {counts['test']}; {rows[0]['metric']} in percent, mean over the seeds "
        f"(standard deviation). {measured_by(made)}",
        "",
        *markdown(HEADINGS, "llrrrrl", map(_cells, rows)),
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    seeds = row["seeds"]
    spreads = [mean_and_deviation([100 * run[key] for run in seeds.values()]) for key in COLUMNS]
    by_seed = ", ".join(f"{seed}: {100 * run['test']:.1f}" for seed, run in seeds.items())
    return [*(row[key] for key in ROW), *spreads, by_seed]


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
    names = ("model_name", "task_name", "data_dir", "budget", "max_test_examples", "device")
    options = Options.of(**{name: getattr(given, name) for name in names if getattr(given, name) is not None})
    model, task = Path(given.model_name or "demo").name, Path(given.task_name).stem
    path = given.output or RESULTS / f"accuracy-{model}-{task}.json"
    record = {"benchmark": "accuracy", "made": "", "model": model, "task": task, "rows": []}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    with nullcontext(given.runs) if given.runs else tempfile.TemporaryDirectory() as folder:
        runs = []
        for engine in given.engines:
            for algorithm in given.algorithms:
                kind = {"algorithm": algorithm, "engine": engine, "budget": given.budget or "preset"}
                changes = dict(zip(("engine", "precision"), engine.split("-"), strict=True)) | {"algorithm": algorithm}
                for seed in given.seeds:
                    place = run_folder(runs_of(Path(folder), model, task), algorithm, engine, str(kind["budget"]), seed)
                    runs.append((kind, options.changed(**changes, seed=seed, output_dir=str(place))))
        for measured in measure(record, runs):
            publish(measured | {"made": time.strftime("%Y-%m-%d")}, path, table)
    print(table(record))


if __name__ == "__main__":
    main()
