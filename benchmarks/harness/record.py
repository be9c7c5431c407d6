"""Records: the machine and the programs that they describe, and how they are written."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime as ort
import torch

from bbt_fast.engine.cpu import instruction_sets
from bbt_fast.tuner.artifacts import result
from bbt_fast.tuner.artifacts.files import write_whole

MEASURED = ("engine", "export", "tuner", "service", "benchmarks/*.py", "benchmarks/harness")
"""The files that a record measures; an uncommitted change there marks the commit with a +."""
DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
FORMAT = 1
ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = (ROOT if (ROOT / "setup.cfg").exists() else Path()) / "benchmarks" / "results"
"""The default folder of records: the checkout's, or if an installed copy runs, that name in the current folder."""


def record_of(benchmark: str, device: str, threads: int = 0, **results: Any) -> dict[str, Any]:
    """Return a benchmark's results as a record, with date and environment."""
    made = time.strftime("%Y-%m-%d")
    return {"benchmark": benchmark, "made": made, "environment": environment(device, threads), **results}


def environment(device: str, threads: int = 0) -> dict[str, Any]:
    """Return device, driver, versions, thread count and git commit; 0 threads stands for PyTorch's number."""
    return {
        "format": FORMAT,
        "device": device_name(device),
        "driver": None if device == "cpu" else _run(*DRIVER),
        "cuda": torch.version.cuda,
        "cpu": cpu_name(),
        "instruction_sets": list(instruction_sets()),
        "threads": threads or torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def device_name(device: str) -> str:
    """Return the product name of a device."""
    return cpu_name() if device == "cpu" else torch.cuda.get_device_name(device)


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def versions() -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = result.versions() | {"onnxruntime": ort.__version__}  # the installed one of two that overwrite each other
    del found["python"]
    return found


def commit() -> str:
    """Return the checkout's commit, with a + if measured files differ from it."""
    found = _run("git", "rev-parse", "--short=12", "HEAD")
    changed = _run("git", "status", "--porcelain", "--untracked-files=no", "--", *MEASURED)
    return f"{found}+" if found and changed else found or "unknown"


def provenance(device: str) -> dict[str, Any]:
    """Return a device's name, the versions and the commit, which a record keeps for each run."""
    return {"device": device_name(device), "versions": versions(), "commit": commit()}


def spread(samples: list[float]) -> dict[str, Any]:
    """Return the median, the extremes and the samples themselves."""
    return {"median": median(samples), "min": min(samples), "max": max(samples), "samples": samples}


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def save(record: dict[str, Any], path: Path) -> None:
    """Write a record.

    Raises:
        ArtifactError: if the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1).encode() + b"\n")


def usual_device() -> str:
    """Return the default of --device: cuda if PyTorch can use it, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)
