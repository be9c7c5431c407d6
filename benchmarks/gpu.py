"""Everything about a CUDA machine in one command and one record, in under eight minutes.

    python benchmarks/gpu.py                  RoBERTa-large's shape, all contenders, BBT and BBTv2
    python benchmarks/gpu.py --dry_run        the same on a CPU with a toy model: shows that the script works

For each algorithm: every contender passes its parity gate, is checked against PyTorch fp32, is timed in turn with the
others, and its generation is taken apart. All contenders are loaded at once, so that load times are too long here; what
is not ready in time is left out and said.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bbt_fast.benchmarks import report
from bbt_fast.benchmarks.harness.contenders import usual
from bbt_fast.benchmarks.harness.record import RESULTS, device_name, save, say
from bbt_fast.benchmarks.harness.workload import Algorithm, Workload
from bbt_fast.benchmarks.speed import compare_speed

MINUTES = 7.5
SHARES: dict[Algorithm, float] = {"bbt": 0.45, "bbtv2": 0.95}
"""When each algorithm's comparison has to be over, in parts of the whole time."""
ABLATED = ("reuse", "buckets", "answer_only")
"""Savings that are switched off one at a time; the head's is too small to see."""
MIDDLE = (3, 11, 12, 20)
"""Layers of RoBERTa-large that stand for a round of BBTv2: a generation's cost is linear in the layer's number, and
their mean is the mean of all 24."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both comparisons and write the record; return 1 if a contender was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="roberta-large", help="a shape, folder or hub id")
    parser.add_argument("--layers", type=int, nargs="+", help="BBTv2: the layers of a round; 0 for all")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--contenders", nargs="+", help="names; without it all that make sense on the device")
    parser.add_argument("--cache", help="keep built graphs and plans in this folder")
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    if not given.dry_run and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} sees no CUDA device; --dry_run shows the script on a CPU")
    device, model = ("cpu", "toy") if given.dry_run else ("cuda", given.model)
    names = given.contenders or usual(
        device, ["reuse", "buckets", "answer_only"], "torch-fp32" if given.dry_run else "ort-fp16"
    )
    began = time.monotonic()
    records = {}
    for algorithm, share in SHARES.items():
        layers = MIDDLE if model == "roberta-large" else ()
        workload = Workload(
            model,
            algorithm,
            population=4 if given.dry_run else 20,
            n_examples=4 if given.dry_run else 0,
            layers=tuple(given.layers or layers) if algorithm == "bbtv2" else (),
            sample=2,
            device=device,
        )
        say(f"{algorithm} on {device_name(device)}")
        left = share * given.minutes * 60 - (time.monotonic() - began)
        records[algorithm] = compare_speed(workload, names, given.repeats, given.cache, seconds=left)
    path = given.output or RESULTS / f"gpu-{device_name(device).replace(' ', '_')}.json"
    record = {
        "benchmark": "gpu",
        "dry_run": given.dry_run,
        "minutes": (time.monotonic() - began) / 60,
        "speed": records,
    }
    save(record, path)
    for made in report.write(path):
        say(str(made))
    print("\n\n".join(report.table(part) for part in records.values()))
    return int(
        any(c["status"] in ("wrong", "failed") for part in records.values() for c in part["contenders"].values())
    )


if __name__ == "__main__":
    sys.exit(main())
