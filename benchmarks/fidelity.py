"""Measure how faithfully each engine and precision ranks the candidates.

    python benchmarks/fidelity.py                                             the demo
    python benchmarks/fidelity.py --model_name MODEL --task_name sst2 --data_dir DIR
    python benchmarks/fidelity.py ... --runs DIR                              the searches of search.py --runs DIR

The populations come from BBT and BBTv2 searches in fp32: first generations ("random") and later ones ("cma"). PyTorch
in fp32 and every engine evaluate each population; the figures compare the candidates' losses. --runs reads the
candidates from the journals of finished searches and does not repeat them. bbt-fast does not offer ``ort-int8`` and
``ort-int8blocks`` as engines; this benchmark shows why. search.py measures the effect of a precision on whole runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bbt_fast.benchmarks.harness.fidelity import figures, journal_of, populations, summary
from bbt_fast.benchmarks.harness.output import cells, markdown, measured_on, publish
from bbt_fast.benchmarks.harness.quantized import WAYS, QuantizedOrtEngine
from bbt_fast.benchmarks.harness.record import RESULTS, record_of, say, usual_device
from bbt_fast.engine import Engine, load_engine
from bbt_fast.export.errors import BbtFastError
from bbt_fast.export.model import StagedModel
from bbt_fast.export.parity import Parity
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import CUTS, Setup
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task

SEEDS = (8, 13, 42, 50, 60)
WANTED = {"bbt": {0, 10, 30, 80}, "bbtv2": {0, 7, 26, 33, 52, 59}}
"""The generations whose populations are compared; for BBTv2 from several layers and rounds."""
ENGINES = {
    "cpu": ("torch-bf16", "torch-fp8", "ort-fp32", "openvino-fp32", "openvino-bf16", "ort-int8", "ort-int8blocks"),
    "cuda": (
        "torch-bf16",
        "torch-fp16",
        "torch-fp16-fast",
        "torch-fp8",
        "ort-fp32",
        "ort-fp16",
        "ort-fp16-fast",
        "trt-fp16",
    ),
}

COLUMNS = {
    "algorithm": "{algorithm}",
    "engine": "{engine}",
    "populations": "{populations} {kind}",
    "Spearman (least)": "{spearman:.3f} ({spearman_min:.3f})",
    "Kendall": "{kendall_tau:.3f}",
    "mean loss error": "{mean_loss_error:.1e}",
    "/ spread": "{share_of_spread:.3f}",
    "largest logit difference": "{max_logit_difference:.1e}",
    "best kept": "{best_kept:.0%}",
    "seconds": "{seconds:.1f}",
    "gate: Spearman, loss error / spread": "{gate}",
}


class Case:
    """A seed's few-shot examples, the populations of a search on them, and the reference's answers."""

    def __init__(
        self, setup: Setup, search: Engine, reference: Engine, algorithm: str, seed: int, runs: Path | None
    ) -> None:
        """Search for the populations, and evaluate them with the reference."""
        self.data = setup.encode(setup.splits(seed)).train
        journal = journal_of(runs, algorithm, seed) if runs else []
        self.populations = populations(search, self.data, algorithm, seed, WANTED[algorithm], journal)
        session = reference.open(self.data.examples)
        self.expected = [population.logits(session) for population in self.populations]

    def compare(self, engine: Engine) -> list[dict[str, Any]]:
        """Return an engine's figures on each population."""
        session = engine.open(self.data.examples)
        found = []
        for population, expected in zip(self.populations, self.expected, strict=True):
            began = time.perf_counter()
            logits = population.logits(session)
            seconds = time.perf_counter() - began
            found.append(figures(population, expected, logits, self.data.labels) | {"seconds": seconds})
        return found


def measure(
    setup: Setup, algorithm: str, names: Sequence[str], seeds: Sequence[int], device: str, runs: Path | None = None
) -> dict[str, Any]:
    """Return each engine's figures on the populations of some seeds."""

    def load(engine: str, precision: str) -> Engine:
        if engine == "ort" and precision in WAYS:
            return QuantizedOrtEngine(
                StagedModel(setup.model, "add", setup.options.n_prompt_tokens, CUTS[algorithm]), precision
            )
        tokens = setup.options.n_prompt_tokens
        return load_engine(
            engine, setup.model, n_prompt_tokens=tokens, cuts=CUTS[algorithm], precision=precision, device=device
        )

    search, reference = load("auto", "fp32"), load("torch", "fp32")
    cases = [Case(setup, search, reference, algorithm, seed, runs) for seed in seeds]
    found: dict[str, Any] = {}
    for name in names:
        try:
            with patch.object(Parity, "require"):  # measure refused engines too: the gate's thresholds come from here
                engine = load(*name.split("-", 1))
        except BbtFastError as error:
            found[name] = {"refused": str(error)}
            continue
        rows = [row for case in cases for row in case.compare(engine)]
        found[name] = {"gate": engine.parity, "summary": dict(summary(rows)), "populations": rows}
        say(f"{algorithm} {name}: {found[name]['summary']}")
    return found


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    rows: list[list[str]] = []
    for algorithm, engines in record["fidelity"].items():
        for name, found in engines.items():
            if "refused" in found:
                rows.append([algorithm, name, f"refused: {found['refused'].splitlines()[0]}"])
                continue
            gate = found["gate"]
            passed = f"{gate['spearman']:.3f}, {gate['mean_loss_error'] / gate['loss_spread']:.3f}" if gate else ""
            for kind, row in found["summary"].items():
                about = {"algorithm": algorithm, "engine": name, "kind": kind, "gate": passed}
                share = {"share_of_spread": row["mean_loss_error"] / row["loss_spread"]}
                rows.append(cells(COLUMNS, row | about | share))
    lines = [
        f"**fidelity** to PyTorch in fp32: `{record['model']}` on {record['task']}, populations of searches with seeds "
        f"{', '.join(map(str, record['seeds']))}. {measured_on(record['environment'], ())} Seconds are those of the "
        "fastest population, all its texts.",
        "",
        *markdown(COLUMNS, "lllr", rows),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name")
    parser.add_argument("--task_name", default="demo")
    parser.add_argument("--data_dir")
    parser.add_argument("--algorithms", nargs="+", default=list(WANTED), choices=list(WANTED))
    parser.add_argument("--device", default=usual_device())
    parser.add_argument("--engines", nargs="+", help="engine-precision pairs (default: all of the device)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--runs", type=Path, help="take the searches from search.py's runs in this folder")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    names = {name: getattr(given, name) for name in ("model_name", "task_name", "data_dir")}
    task = load_task(given.task_name)
    model = Path(given.model_name or "demo").name
    runs = given.runs and given.runs / f"{model}-{Path(given.task_name).stem}"
    record = record_of("fidelity", given.device, model=model, task=task.name, seeds=list(given.seeds), fidelity={})
    engines = given.engines or ENGINES[torch.device(given.device).type]
    for algorithm in given.algorithms:
        wanted = Options.of(**{key: value for key, value in names.items() if value}, algorithm=algorithm)
        options = resolve(wanted, task.preset)
        setup = Setup(options, task)
        record["fidelity"][algorithm] = measure(setup, algorithm, engines, given.seeds, given.device, runs)
    path = given.output or RESULTS / f"fidelity-{model}-{task.name}.json"
    print(publish(record, path, table))


if __name__ == "__main__":
    main()
