"""result.json: the result of a run, as a dataclass."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...export.errors import ArtifactError
from .economics import Memory, Queries
from .files import read_json

RESULT = "result.json"
MEASURED = ("seconds", "evals_per_s", "optimizer_overhead", "memory")
"""Fields that differ between two runs of one command; all others are equal to the bit."""
PACKAGES = (
    "bbt-fast", "torch", "transformers", "tokenizers", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt_rtx_cu13_libs", "cma", "numpy",
)  # fmt: skip
"""Packages whose versions a result lists, if they are installed."""


@dataclass(frozen=True)
class ZeroShot:
    """The metric before tuning, at p = p0."""

    dev: float
    test: float


@dataclass(frozen=True)
class Tuned:
    """The metric of the kept prompt."""

    train: float
    dev: float
    test: float


@dataclass(frozen=True)
class Seconds:
    """The durations of a run's phases."""

    export: float
    """Building and checking graphs; 0 if they were cached."""
    tune: float
    """The search with its development scores, summed over the parts of an interrupted run."""
    test: float


@dataclass(frozen=True)
class Result:
    """A finished run."""

    model: str
    task: str
    engine: str
    algorithm: str
    mode: str
    precision: str
    device: str
    seed: int
    budget: int
    evaluations: int
    metric: str
    zero_shot: ZeroShot
    tuned: Tuned
    seconds: Seconds
    evals_per_s: float
    optimizer_overhead: float | None
    """Share of the generations' time in which the engine waited for CMA-ES, projection and journal; None if every
    generation was replayed."""
    stopped_by: str
    """The limit that ended the search: budget, max_time, target_metric, patience or optimizer."""
    examples: dict[str, int]
    """The numbers of examples in train, dev and test, and of truncated examples in all."""
    classes: list[str]
    confusion: list[list[int]]
    """Counts of test examples: a row per true class, a column per predicted class."""
    queries: Queries
    memory: Memory
    parity: dict[str, float]
    versions: dict[str, str]
    output_dir: Path = field(default_factory=Path)

    def as_dict(self) -> dict[str, Any]:
        """Return the contents of result.json."""
        values = asdict(self)
        del values["output_dir"]
        return values


def read_result(folder: Path) -> Result:
    """Return the result of a finished run.

    Raises:
        ArtifactError: if its file is missing or damaged.
    """
    path = folder / RESULT
    try:
        values = read_json(path)
        parts = {
            "zero_shot": ZeroShot, "tuned": Tuned, "seconds": Seconds, "queries": Queries, "memory": Memory,
        }  # fmt: skip
        return Result(**{k: parts[k](**v) if k in parts else v for k, v in values.items()}, output_dir=folder)
    except TypeError as error:
        raise ArtifactError(f"{path} is damaged ({error}).") from error


def versions() -> dict[str, str]:
    """Return the versions of Python and of ``PACKAGES``."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
