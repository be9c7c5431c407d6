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
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bbt_fast import tune
from bbt_fast.benchmarks.harness.memory import growth, memory_of
from bbt_fast.benchmarks.harness.output import cells, packages
from bbt_fast.benchmarks.harness.record import versions

COLUMNS = {
    "run": "{run:5}", "seconds": "{seconds:8.1f}", "resident_mib": "{resident_mib:13.1f}",
    "open_files": "{open_files:11}", "threads": "{threads:8}",
}  # fmt: skip


def sample(run: int, began: float) -> dict[str, Any]:
    """Return what this process holds after a run, and the seconds since the first run began."""
    gc.collect()
    open_files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
    return {
        "run": run, "seconds": time.perf_counter() - began, "resident_mib": memory_of("self", "VmRSS"),
        "open_files": open_files, "threads": threads,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the soak, print every tenth sample and the summary, and write all samples if a file is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--budget", type=int, default=40, help="evaluations of each run")
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--output", type=Path, help="write the samples here, a JSON object per line")
    options = parser.parse_args(arguments)
    about = f"{packages(versions())}, {torch.get_num_threads()} threads, {platform.platform()}"
    print(f"{options.runs} runs of {options.budget} evaluations on {options.engine}; {about}")
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
            print(*cells(COLUMNS, samples[-1]), flush=True)
    first, last = samples[len(samples) // 2], samples[-1]
    grown = 1024 * growth([one["resident_mib"] for one in samples])
    print(f"last half: {grown:+.1f} KiB a run, open files {first['open_files']} to {last['open_files']}")
    if options.output:
        options.output.write_text("".join(json.dumps(one) + "\n" for one in samples))


if __name__ == "__main__":
    main()
