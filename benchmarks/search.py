"""Measure the effect of a search's options on the test metric, over tasks and seeds at one budget, next to BBT.

    python benchmarks/search.py                                          the demo, all variants
    python benchmarks/search.py --model_name MODEL --data_dir DATA --tasks sst2 ag_news trec subj --budget 2000
    python benchmarks/search.py ... --variants bbt bbt+mean bbt+mean+ce-smooth bbtv2
    python benchmarks/search.py ... --variants bbt+openvino-fp32 bbt+openvino-bf16       compare two precisions

A variant is an algorithm and names of PARTS or ENGINE-PRECISION pairs, joined by +. "transfer" turns the projections
towards the prompts that the plain algorithm found on all other tasks; the plain algorithm must then be one of the
variants. Each run has a folder below --runs. So an interrupted measurement resumes within a run, and new variants,
tasks or seeds reuse the finished runs. Several processes may execute the same command: they share the runs, and each
prints the table. --report runs nothing and prints the table of the finished runs; --beside takes what has no run here
from earlier records. DATA holds a folder for each task, by its name. The table compares each variant with the first one
and gives the number of pairs of task and seed. p belongs to a two-sided paired sign-flip test. The record also holds
the zero-shot and the development metric of each run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from tqdm import tqdm

import bbt_fast
from bbt_fast.benchmarks.harness.output import markdown, mean_and_deviation, publish
from bbt_fast.benchmarks.harness.record import RESULTS, provenance, usual_device
from bbt_fast.benchmarks.harness.runs import finished_run
from bbt_fast.benchmarks.harness.workload import ALGORITHMS
from bbt_fast.engine.loading import ENGINES
from bbt_fast.export.errors import UsageError
from bbt_fast.export.precision import PRECISIONS
from bbt_fast.tuner.artifacts.result import RESULT, Result
from bbt_fast.tuner.cli.quiet import hide_progress_bars
from bbt_fast.tuner.input.coerce import one_of
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.seeds import child_name, ensemble_of
from bbt_fast.tuner.search.projection import NONE
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task

PARTS: dict[str, dict[str, Any]] = {
    "mean": {"keep": "mean"},
    "ce-smooth": {"loss_type": "ce-smooth"},
    "ce-entropy": {"loss_type": "ce-entropy"},
    "sep-cma": {"optimizer": "sep-cma"},
    "snes": {"optimizer": "snes"},
    "cma-local": {"optimizer": "cma-local"},
    "full-snes": {"optimizer": "snes", "random_proj": NONE},
    "embeddings": {"embeddings": 4},
    "patience": {"patience": 500},
    "templates": {"templates": 4},
    "all-words": {"label_words": "all"},
    "auto-words": {"label_words": "auto"},
    "calibrate": {"calibrate": True},
}
TRANSFER = "transfer"
"""The part that turns projections towards the prompts of the algorithm's plain runs on all other tasks."""
PLACES: dict[str, dict[str, Any]] = {
    f"{engine}-{name}": {"engine": engine, "precision": name} for engine in ENGINES for name in PRECISIONS
}
"""The parts that override --engine and --precision."""
VARIANTS = [*ALGORITHMS, *(f"{algorithm}+{part}" for algorithm in ALGORITHMS for part in PARTS)]
SEEDS = (8, 13, 42, 50, 60)
EXACT = 16
"""The most pairs for which all sign flips are counted; for more pairs a sample is."""
FLIPS = 100_000
PAUSE = 2.0
"""Seconds between two checks of the runs of other processes."""


def changes_of(variant: str) -> dict[str, Any]:
    """Return the options of a variant.

    Raises:
        UsageError: if it has an unknown part.
    """
    algorithm, *parts = variant.split("+")
    for word, known in ((algorithm, ALGORITHMS), *((part, (*PARTS, TRANSFER, *PLACES)) for part in parts)):
        if word not in known:
            raise UsageError(f"variant {variant!r} has {word!r} where {one_of(known)} must be.")
    changes: dict[str, Any] = {"algorithm": algorithm}
    for part in parts:
        changes |= (PARTS | PLACES).get(part, {})
    return changes


def transfers(variant: str) -> bool:
    """Say whether a variant starts from the prompts of other tasks."""
    return TRANSFER in variant.split("+")


def folder_of(options: Options) -> Path:
    """Return a run's folder."""
    return Path(str(options.output_dir))


def result_of(options: Options) -> Result | None:
    """Return the result of a finished run; the device may be another one.

    Raises:
        UsageError: if the folder holds another run.
    """
    return finished_run(resolve(options, load_task(options.task_name).preset), ("device",))


def finished(options: Options) -> bool:
    """Say whether a run's folder holds its result."""
    return (folder_of(options) / RESULT).exists()


def made(options: Options) -> bool:
    """Make sure that a run is finished: tune, or resume it. Return False if another process works on it."""
    folder = folder_of(options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            if not finished(options):
                bbt_fast.tune(options)
    except filelock.Timeout:
        return False
    return True


def make(runs: Sequence[Options]) -> None:
    """Finish all runs; wait for those of other processes."""
    with tqdm(total=len(runs), unit="run", disable=None) as bar:
        left = list(runs)
        while left:
            busy = []
            for run in left:
                bar.set_description(str(folder_of(run)))
                if made(run):
                    bar.update()
                else:
                    busy.append(run)
            if len(busy) == len(left):
                time.sleep(PAUSE)
            left = busy


def cells_of(runs: Mapping[tuple[str, str], Sequence[Options]]) -> list[dict[str, Any]]:
    """Return a record's cells of the finished runs, by variant and task."""
    cells = []
    for (variant, task), asked in runs.items():
        results = [result for run in asked if (result := result_of(run))]
        if results:
            about: dict[str, Any] = {
                "variant": variant,
                "task": task,
                "metric": results[0].metric,
                "ensemble": ensemble_of(results),
            }
            about["test_examples"] = results[0].examples["test"]
            cells.append(about | {"seeds": {str(result.seed): figures(result) for result in results}})
    return cells


def cells_beside(
    records: Sequence[Path], about: Mapping[str, Any], wanted: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the cells of earlier records, with their device and commit, for these variants and tasks.

    A cell that names its engine and precision also stands for the variant without them.

    Raises:
        UsageError: if a record is of another benchmark, model or budget.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        other = [f"{name} {record.get(name)!r}" for name, value in about.items() if record.get(name) != value]
        if other:
            raise UsageError(f"{path} has {', '.join(other)}: give --beside records of {dict(about)}.")
        source = {name: record[name] for name in ("device", "commit")}
        for cell in record["cells"]:
            plain = "+".join(part for part in cell["variant"].split("+") if part not in PLACES)
            for variant in {cell["variant"], plain}:
                if (key := (variant, cell["task"])) in wanted:
                    found.setdefault(key, source | cell | {"variant": variant})
    return list(found.values())


def figures(result: Result) -> dict[str, Any]:
    """Return a run's entry of the record."""
    tuned = {name: getattr(result.tuned, name) for name in ("dev", "train", "test")}
    cost = {"evaluations": result.evaluations, "seconds": result.seconds.tune}
    return tuned | {"zero_shot": result.zero_shot.test} | cost


def paired_p(differences: Sequence[float]) -> float:
    """Return the probability of a mean difference at least as large if the sign of each pair were random."""
    values = np.asarray(differences)
    if len(values) <= EXACT:
        signs = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1) * 2 - 1
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (FLIPS, len(values)))
        signs[0] = 1  # the observed signs are one of the flips
    found: float = (np.abs(signs @ values) >= abs(values.sum()) - 1e-12).mean()
    return float(found)


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown, in percent."""
    cells = {(cell["variant"], cell["task"]): cell for cell in record["cells"]}
    first, variants = record["variants"][0], [one for one in record["variants"] if any(one == its for its, _ in cells)]
    of_tasks = {task: cell["test_examples"] for (_, task), cell in cells.items()}
    tasks, sizes = list(of_tasks), ", ".join(f"{task} {size}" for task, size in of_tasks.items())
    rows = []
    for variant in variants:
        own = [cells.get((variant, task)) for task in tasks]
        means = [statistics.fmean(_tests(cell)) for cell in own if cell]
        whole = f"{100 * statistics.fmean(means):.1f}" if len(means) == len(tasks) else ""
        rows.append([variant, *map(_shown, own), whole, *_compared(cells, first, variant)])
    lines = [
        f"**search**: `{record['model']}`, {record['budget']} evaluations; test examples: {sizes}. In percent: before "
        "-> after tuning, mean over the seeds (standard deviation), and after / the seeds' ensemble. "
        f"{_together(record, 'device')}; commit {_together(record, 'commit')}.",
        "",
        *markdown(("variant", *tasks, "all", f"more than {first}", "pairs", "p"), "lr", rows),
    ]
    return "\n".join(lines)


def _together(record: dict[str, Any], name: str) -> str:
    """Return the different values that a record and its cells have of a field."""
    return ", ".join(dict.fromkeys([record[name], *(cell[name] for cell in record["cells"] if name in cell)]))


def _tests(cell: dict[str, Any]) -> list[float]:
    return [run["test"] for run in cell["seeds"].values()]


def _shown(cell: dict[str, Any] | None) -> str:
    """Return a cell's mean before and after tuning, standard deviation and ensemble."""
    if cell is None:
        return ""
    values = _tests(cell)
    before = statistics.fmean(run["zero_shot"] for run in cell["seeds"].values())
    together = f" / {100 * cell['ensemble']:.1f}" if cell["ensemble"] is not None and len(values) > 1 else ""
    return f"{100 * before:.1f} -> {mean_and_deviation([100 * value for value in values])}{together}"


def _compared(cells: dict[tuple[str, str], dict[str, Any]], baseline: str, variant: str) -> list[str]:
    """Return a variant's mean gain over the baseline, the number of pairs, and p."""
    pairs = [
        run["test"] - cells[baseline, task]["seeds"][seed]["test"]
        for (name, task), cell in cells.items()
        for seed, run in cell["seeds"].items()
        if name == variant != baseline and seed in cells.get((baseline, task), {"seeds": {}})["seeds"]
    ]
    if not pairs:
        return ["", "", ""]
    return [f"{100 * statistics.fmean(pairs):+.1f}", str(len(pairs)), f"{paired_p(pairs):.3f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name")
    parser.add_argument("--tasks", nargs="+", default=["demo"], help="names, or paths of task files")
    parser.add_argument("--data_dir", type=Path, help="holds a folder for each task")
    parser.add_argument("--budget", type=int, default=2000)
    parser.add_argument("--max_test_examples", type=int)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="the table compares the others with the first")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default=usual_device())
    parser.add_argument("--runs", type=Path, default=Path("runs") / "search", help="the runs' folders")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--report", action="store_true", help="print the table of the finished runs, and run nothing")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], help="records of the same model and budget")
    given = parser.parse_args(arguments)
    names = ("model_name", "budget", "max_test_examples", "engine", "precision", "device")
    options = Options.of(plots=False, **{n: getattr(given, n) for n in names if getattr(given, n) is not None})
    model = Path(given.model_name or "demo").name
    path = given.output or RESULTS / f"search-{model}.json"
    changes = {variant: changes_of(variant) for variant in given.variants}
    late = [variant for variant in changes if transfers(variant)]
    if late and len(given.tasks) == 1:
        raise UsageError(f"variant {late[0]!r} takes prompts of other tasks: give two --tasks or more.")
    runs: dict[tuple[str, str], list[Options]] = {}
    for task in given.tasks:
        name = Path(task).stem
        data = {"data_dir": str(given.data_dir / name)} if given.data_dir else {}
        for variant, changed in changes.items():
            place = given.runs / f"{model}-{name}" / f"{variant}-{given.budget}"
            runs[variant, name] = [
                options.changed(task_name=task, seed=seed, output_dir=str(place / child_name(seed)), **data, **changed)
                for seed in given.seeds
            ]
    for variant, name in [key for key in runs if key[0] in late]:
        plain = str(changes[variant]["algorithm"])
        others = [run for (which, task), asked in runs.items() if (which == plain) and task != name for run in asked]
        earlier = tuple(str(folder_of(run)) for run in others)
        runs[variant, name] = [run.changed(projection_from=earlier) for run in runs[variant, name]]
    hide_progress_bars()
    for run in (run for asked in runs.values() for run in asked):
        result_of(run)  # refuses other runs before the first run
    if not given.report:
        for part in (False, True):
            make([run for (variant, _), asked in runs.items() if transfers(variant) is part for run in asked])
    about = {"benchmark": "search", "model": model, "budget": given.budget}
    cells = cells_of(runs)
    here = {(cell["variant"], cell["task"]) for cell in cells}
    cells += cells_beside(given.beside, about, [key for key in runs if key not in here])
    cells.sort(key=lambda cell: list(runs).index((cell["variant"], cell["task"])))
    if not cells:
        raise UsageError(f"no run below {given.runs} is finished: leave --report out.")
    record = about | {"variants": list(changes), "made": time.strftime("%Y-%m-%d")} | provenance(given.device)
    record["cells"] = cells
    print(publish(record, path, table))


if __name__ == "__main__":
    main()
