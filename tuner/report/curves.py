"""A run as read from its folder: options, curves and, if it is finished, its result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...export.errors import UsageError
from ..artifacts.folder import CONFIG, METRICS, holds_run, read_config
from ..artifacts.metrics_log import read_lines
from ..artifacts.result import RESULT, Result, read_result
from ..input.options import Options

Points = list[tuple[int, float]]
"""(evaluations, value)"""


@dataclass(frozen=True)
class RunView:
    """One seed's run, finished or not."""

    path: Path
    options: Options
    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    result: Result | None
    """None while the run is unfinished."""

    def points(self, name: str, layer: int | None = None) -> Points:
        """Return the known points of a curve.

        Args:
            name: a field of metrics.jsonl.
            layer: only this layer's generations; None for all.
        """
        return [
            (line["evaluations"], float(line[name]))
            for line in self.lines
            if line.get(name) is not None and layer in (None, line["layer"])
        ]

    @cached_property
    def layers(self) -> list[int]:
        """The tuned layers."""
        return sorted({line["layer"] for line in self.lines})

    @property
    def evaluations(self) -> int:
        """The number of evaluated candidates."""
        return int(self.lines[-1]["evaluations"]) if self.lines else 0


def read_run(folder: Path) -> RunView:
    """Read a run's folder.

    Raises:
        UsageError: if there is no run.
        ArtifactError: if its configuration or result is damaged.
    """
    result = read_result(folder) if (folder / RESULT).exists() else None
    return RunView(folder, read_config(folder), read_lines(folder / METRICS), result)


def find_runs(folders: list[Path]) -> list[RunView]:
    """Read the runs in folders: each folder is a run or contains runs, such as those of several seeds.

    Raises:
        UsageError: if a folder holds no run.
        ArtifactError: if a configuration or a result is damaged.
    """
    found: dict[Path, RunView] = {}
    for folder in folders:
        inside = [folder] if _is_run(folder) else sorted(p.parent for p in folder.glob(f"**/{CONFIG}"))
        paths = [path for path in inside if _is_run(path)]
        if not paths:
            raise UsageError(f"{folder} holds no run of bbt-fast: give the --output_dir of a run, or a folder of runs.")
        for path in paths:
            found.setdefault(path.resolve(), read_run(path))
    return list(found.values())


def _is_run(folder: Path) -> bool:
    """Return whether a folder holds the run of one seed."""
    return holds_run(folder) and not read_config(folder).seeds
