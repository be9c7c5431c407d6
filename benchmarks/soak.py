"""Run the demo many times in one process, and record its memory, open files and threads after each run.

    python benchmarks/soak.py --runs 200 --budget 40

Every run is complete: data, model, engine, search, test, files on the disk. Linux only: memory is the resident set
(VmRSS), open files are the entries of /proc/self/fd, and threads those of /proc/self/task. A line fitted to the memory
of the last half of the runs shows whether the memory still grows.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from bbt_fast import tune
from bbt_fast.benchmarks.harness.memory import memory_of


@dataclass(frozen=True)
class Sample:
    """What a process holds after a run."""

    run: int
    seconds: float
    """Since the first run began."""
    resident_mib: float
    open_files: int
    threads: int


def sample(run: int, began: float) -> Sample:
    """Measure this process."""
    gc.collect()
    counts = [len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task")]
    return Sample(run, time.perf_counter() - began, memory_of("self", "VmRSS"), *counts)


def main(argv: list[str] | None = None) -> int:
    """Run the soak, print every tenth sample and the summary, and write all samples if a file is given."""
    parser = argparse.ArgumentParser(description="Run the demo many times in one process.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--budget", type=int, default=40, help="evaluations of each run")
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--output", type=Path, help="write the samples here, a JSON object per line")
    options = parser.parse_args(argv)
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {torch.get_num_threads()} threads"
    print(f"{options.runs} runs of {options.budget} evaluations on {options.engine}; {versions}, {platform.platform()}")
    print(f"{'run':>5} {'seconds':>8} {'resident_mib':>13} {'open_files':>11} {'threads':>8}", flush=True)
    began, samples = time.perf_counter(), []
    for run in range(1, options.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            tune(
                engine=options.engine, precision="fp32", device="cpu", budget=options.budget, seed=run,
                output_dir=str(Path(folder) / "run"),
            )  # fmt: skip
        samples.append(sample(run, began))
        if run % 10 == 0 or run == 1:
            last = samples[-1]
            print(
                f"{run:5} {last.seconds:8.1f} {last.resident_mib:13.1f} {last.open_files:11} {last.threads:8}",
                flush=True,
            )
    half = samples[len(samples) // 2 :]
    slope = np.polyfit([s.run for s in half], [s.resident_mib for s in half], 1)[0]
    print(f"last half: {1024 * slope:+.1f} KiB a run, open files {half[0].open_files} to {half[-1].open_files}")
    if options.output:
        options.output.write_text("".join(json.dumps(asdict(s)) + "\n" for s in samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
