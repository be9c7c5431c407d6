"""Run all speed comparisons on a CUDA machine in one command, in under eight minutes, and write one record.

    python benchmarks/gpu.py                  RoBERTa-large's shape, all contenders, BBT and BBTv2
    python benchmarks/gpu.py --dry_run        the same on a CPU with a toy model, to test the script
    python benchmarks/gpu.py --lab            each engine with and without its CUDA-only savings, in under six minutes

For each algorithm the script loads all contenders, compares their answers with PyTorch fp32, times them in turns, and
profiles a generation. All contenders load at the same time, so load times are longer than usual and the GPU must hold
all of them. A GPU with less than 48 GiB gets fewer contenders; --contenders selects others. A contender that is
not ready in time is skipped, and the table reports it. TensorRT's plans may need more time; this command builds them
beforehand:

    python benchmarks/gpu.py --contenders bbt-fast-trt-fp16 --cache DIR --minutes 60

The lab compares torch-best with the variants of each engine: packed texts or buckets, with and without fusion and CUDA
graphs, in fp16, fp8 and with fp16 accumulation. It reports the parity and the time breakdown of each. Variants that can
share a model run in one process. The table marks variants that this version or this machine lacks as unavailable.

The script writes the record after each algorithm, so a later failure loses nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bbt_fast.benchmarks import report
from bbt_fast.benchmarks.harness.contenders import known, usual
from bbt_fast.benchmarks.harness.pool import grouped, own_process
from bbt_fast.benchmarks.harness.record import RESULTS, ROOT, device_name, save, say
from bbt_fast.benchmarks.harness.variants import group_of, variants
from bbt_fast.benchmarks.harness.worker import WorkerError
from bbt_fast.benchmarks.harness.workload import Algorithm, Workload
from bbt_fast.benchmarks.speed import compare_speed, failed
from bbt_fast.engine.ort import OrtEngine

MINUTES, LAB_MINUTES = 7.5, 5.7
SHARES: dict[Algorithm, float] = {"bbt": 0.45, "bbtv2": 0.95}
"""The share of the whole time at which each algorithm's comparison must end."""
SAVINGS = ("reuse", "packing", "fusion", "graph")
"""The savings that extra contenders run without; docs/benchmarks.md has the effect of the others on a CPU."""
ROOM = 48 * 2**30
"""Bytes of a GPU that holds all contenders at RoBERTa-large's size; a smaller one gets FEW."""
FEW = [
    "original",
    "torch-best-fp16",
    "ort-recipe",
    *(f"bbt-fast-{engine}-fp16" for engine in ("torch", "ort", "trt")),
]
MIDDLE = (10, 11, 12, 13)
"""The layers of RoBERTa-large that stand for a round of BBTv2: a generation's cost is linear in the layer's number, and
the mean of these four is the mean of all 24."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both comparisons and write the record; return 1 if a contender was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="roberta-large", help="a shape, folder or hub id")
    add("--layers", type=int, nargs="+", help="layers of a BBTv2 round (default: all; RoBERTa-large: 4)")
    add("--lab", action="store_true", help="compare the variants of bbt-fast's engines")
    add("--minutes", type=float, help=f"time limit (default: {MINUTES}; with --lab {LAB_MINUTES})")
    add("--repeats", type=int, default=7)
    add("--contenders", nargs="+", type=known, help="names (default: all that suit the device)")
    add("--cache", help="keep built graphs and plans in this folder")
    add("--refused", action="store_true", help="also time contenders with wrong answers; the table marks them")
    add("--dry_run", action="store_true")
    add("--output", type=Path)
    given = parser.parse_args(arguments)
    given.minutes = given.minutes or (LAB_MINUTES if given.lab else MINUTES)
    if not given.dry_run and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} sees no CUDA device; --dry_run shows the script on a CPU")
    device, model = ("cpu", "toy") if given.dry_run else ("cuda", given.model)
    ablated = "torch-fp32" if given.dry_run else "torch-fp16" if OrtEngine.cuda_fault() else "ort-fp16"
    names = given.contenders or (variants(device) if given.lab else usual(device, SAVINGS, ablated))
    chosen = given.contenders or given.lab
    if not chosen and device == "cuda" and torch.cuda.get_device_properties(device).total_memory < ROOM:
        say(f"the GPU may not hold all contenders at once; give --contenders for more than {', '.join(FEW)}")
        names = FEW
    here = ROOT / "build" if given.dry_run else RESULTS
    path = given.output or here / f"{'lab' if given.lab else 'gpu'}-{device_name(device).replace(' ', '_')}.json"
    with TemporaryDirectory(prefix="bbt-fast-gpu-") as scratch:
        record = _measure(given, model, device, names, given.cache or scratch, path)
    for written in report.write(path):
        say(str(written))
    print(path.with_suffix(".md").read_text(encoding="utf-8"), end="")
    return int(bool(record["faults"]) or any(failed(part) for part in record["speed"].values()))


def _measure(
    given: argparse.Namespace, model: str, device: str, names: Sequence[str], cache: str, path: Path
) -> dict[str, Any]:
    """Run both comparisons, write the record after each, and return it."""
    began = time.monotonic()
    kind = "lab" if given.lab else "gpu"
    record: dict[str, Any] = {"benchmark": kind, "dry_run": given.dry_run, "speed": {}, "faults": {}}
    layers = given.layers or (MIDDLE if model == "roberta-large" else ())
    for algorithm, share in SHARES.items():
        workload = Workload(
            model,
            algorithm,
            population=6 if given.dry_run else 20,
            n_examples=4 if given.dry_run else 0,
            layers=tuple(layers) if algorithm == "bbtv2" else (),
            sample=2,
            device=device,
            refused=given.refused,
        )
        say(f"{algorithm} on {device_name(device)}")
        left = share * given.minutes * 60 - (time.monotonic() - began)
        start = grouped(group_of) if given.lab else own_process
        try:
            record["speed"][algorithm] = compare_speed(
                workload, names, given.repeats, cache, seconds=left, take_apart=True, start=start
            )
        except WorkerError as error:
            say(f"{algorithm}: the reference cannot be run: {error}")
            record["faults"][algorithm] = str(error)
        record["minutes"] = (time.monotonic() - began) / 60
        save(record, path)
    return record


if __name__ == "__main__":
    sys.exit(main())
