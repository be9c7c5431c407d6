"""Measure how faithfully each engine and precision ranks the candidates, and what that does to whole runs.

    python benchmarks/fidelity.py                                             the demo
    python benchmarks/fidelity.py --model_name MODEL --task_name sst2 --data_dir DIR
    python benchmarks/fidelity.py ... --budget 2000                           and whole runs for five seeds

Populations are those of BBT and BBTv2 searches in fp32: first generations ("random") and later ones ("cma"). Each is
answered by PyTorch in fp32 and by every engine; the figures are about the candidates' losses. ``ort-int8`` is not an
engine of bbt-fast: it is here to show why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from harness.fidelity import figures, populations, summary
from harness.quantized import QuantizedOrtEngine
from harness.record import environment

import bbt_fast
from bbt_fast.engine import Engine, Savings, load_engine
from bbt_fast.export.errors import BbtFastError
from bbt_fast.export.model import StagedModel
from bbt_fast.tuner.options import Options
from bbt_fast.tuner.presets import resolve
from bbt_fast.tuner.setup import CUTS, Setup
from bbt_fast.tuner.task import load_task

SEEDS = (8, 13, 42, 50, 60)
WANTED = {"bbt": {0, 10, 30, 80}, "bbtv2": {0, 7, 26, 33, 52, 59}}
"""The generations whose populations are compared; BBTv2's are those of several layers and rounds."""
ENGINES = {
    "cpu": ("torch-bf16", "ort-fp32", "openvino-fp32", "openvino-bf16", "ort-int8"),
    "cuda": ("torch-bf16", "torch-fp16", "ort-fp32", "ort-fp16", "trt-fp16"),
}
RESULTS = Path(__file__).parent / "results"


class Case:
    """A seed's few-shot examples, the populations of a search on them, and the reference's answers."""

    def __init__(self, setup: Setup, search: Engine, reference: Engine, algorithm: str, seed: int) -> None:
        """Search, and let the reference answer."""
        self.data = setup.encode(setup.splits(seed)).train
        self.populations = populations(search, self.data, algorithm, seed, WANTED[algorithm])
        session = reference.open(self.data.examples)
        self.expected = [population.logits(session) for population in self.populations]

    def compare(self, engine: Engine) -> list[dict[str, Any]]:
        """Return an engine's figures on each population."""
        session = engine.open(self.data.examples)
        return [
            figures(population, expected, population.logits(session), self.data.labels)
            for population, expected in zip(self.populations, self.expected, strict=True)
        ]


def measure(setup: Setup, algorithm: str, names: Sequence[str], seeds: Sequence[int], device: str) -> dict[str, Any]:
    """Return each engine's figures on the populations of some seeds."""

    def load(engine: str, precision: str) -> Engine:
        if engine == "ort" and precision == "int8":
            return int8_engine(setup, algorithm)
        tokens = setup.options.n_prompt_tokens
        return load_engine(
            engine, setup.model, n_prompt_tokens=tokens, cuts=CUTS[algorithm], precision=precision, device=device
        )

    search, reference = load("auto", "fp32"), load("torch", "fp32")
    cases = [Case(setup, search, reference, algorithm, seed) for seed in seeds]
    found: dict[str, Any] = {}
    for name in names:
        try:
            engine = load(*name.split("-"))
        except BbtFastError as error:
            found[name] = {"refused": str(error)}
            continue
        rows = [row for case in cases for row in case.compare(engine)]
        found[name] = {"gate": engine.parity, "summary": dict(summary(rows)), "populations": rows}
        say(f"{algorithm} {name}: {found[name]['summary']}")
    return found


def int8_engine(setup: Setup, algorithm: str) -> Engine:
    """Return ONNX Runtime with dynamically quantized weights."""
    staged = StagedModel(setup.model, "add", setup.options.n_prompt_tokens, CUTS[algorithm])
    return QuantizedOrtEngine(staged, "fp32", torch.device("cpu"), Savings())


def whole_runs(options: Options, names: Sequence[str], seeds: Sequence[int], device: str) -> dict[str, Any]:
    """Tune and test with each engine and seed; return test accuracies, their mean and standard deviation."""
    found = {}
    for name in names:
        engine, precision = name.split("-")
        scores = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                changes = {"engine": engine, "precision": precision, "device": device, "seed": seed}
                result = bbt_fast.tune(options.changed(**changes, output_dir=f"{folder}/run"))
            scores.append(result.tuned.test)
            say(f"{options.algorithm} {name} seed {seed}: test {result.tuned.test:.4f}")
        found[name] = {
            "test": dict(zip(map(str, seeds), scores, strict=True)),
            "zero_shot": result.zero_shot.test,
            "mean": mean(scores),
            "stdev": stdev(scores) if len(scores) > 1 else 0.0,
        }
    return found


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    lines = [
        "| algorithm | engine | populations | Spearman (least) | Kendall | mean loss error | / spread | largest logit "
        "difference | best kept | gate: Spearman, loss error / spread |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for algorithm, engines in record["fidelity"].items():
        for name, found in engines.items():
            if "refused" in found:
                lines.append(f"| {algorithm} | {name} | refused: {found['refused'].splitlines()[0]} |" + " |" * 7)
                continue
            gate = found["gate"]
            passed = f"{gate['spearman']:.3f}, {gate['mean_loss_error'] / gate['loss_spread']:.3f}" if gate else ""
            for kind, row in found["summary"].items():
                lines.append(
                    f"| {algorithm} | {name} | {row['populations']} {kind} | {row['spearman']:.3f} "
                    f"({row['spearman_min']:.3f}) | {row['kendall_tau']:.3f} | {row['mean_loss_error']:.1e} | "
                    f"{row['mean_loss_error'] / row['loss_spread']:.3f} | {row['max_logit_difference']:.1e} | "
                    f"{row['best_kept']:.0%} | {passed} |"
                )
    for algorithm, engines in record["runs"].items():
        lines += ["", f"Whole runs, {algorithm}, budget {record['budget']}:", ""]
        lines += [
            "| engine | zero-shot | test accuracy, mean (standard deviation) | by seed |",
            "| --- | ---: | ---: | --- |",
        ]
        for name, found in engines.items():
            seeds = ", ".join(f"{seed}: {score:.3f}" for seed, score in found["test"].items())
            lines.append(
                f"| {name} | {found['zero_shot']:.3f} | {found['mean']:.3f} ({found['stdev']:.3f}) | {seeds} |"
            )
    return "\n".join(lines)


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name")
    parser.add_argument("--task_name", default="demo")
    parser.add_argument("--data_dir")
    parser.add_argument("--algorithms", nargs="+", default=["bbt", "bbtv2"], choices=list(WANTED))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--engines", nargs="+", help="engine-precision pairs; without it all of the device")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budget", type=int, default=0, help="also tune and test with so many evaluations")
    parser.add_argument("--runs", nargs="+", default=["openvino-fp32", "openvino-bf16"], help="what to tune with")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    names = {name: getattr(given, name) for name in ("model_name", "task_name", "data_dir")}
    task = load_task(given.task_name)
    record: dict[str, Any] = {"benchmark": "fidelity", "made": time.strftime("%Y-%m-%d"), "budget": given.budget}
    record |= {"environment": environment(given.device, 0), "model": given.model_name or "demo", "task": task.name}
    record |= {"seeds": list(given.seeds), "fidelity": {}, "runs": {}}
    engines = given.engines or ENGINES[torch.device(given.device).type]
    for algorithm in given.algorithms:
        wanted = Options.of(**{key: value for key, value in names.items() if value}, algorithm=algorithm)
        options = resolve(wanted, task.preset)
        record["fidelity"][algorithm] = measure(Setup(options, task), algorithm, engines, given.seeds, given.device)
        if given.budget:
            runs = options.changed(budget=given.budget)
            record["runs"][algorithm] = whole_runs(runs, given.runs, given.seeds, given.device)
    path = given.output or RESULTS / f"fidelity-{Path(record['model']).name}-{task.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record["model"] = Path(record["model"]).name
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(record) + "\n", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
