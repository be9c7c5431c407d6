"""A run as its folder tells it: options, curves, and, if it is finished, its result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...export.errors import UsageError
from ..artifacts.folder import CONFIG, METRICS, read_config
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
    """Of metrics.jsonl."""
    result: Result | None
    """None while the run is unfinished."""

    def points(self, name: str, layer: int | None = None) -> Points:
        """Return a curve, as far as it is known.

        Args:
            name: a field of metrics.jsonl.
            layer: only that layer's generations.
        """
        return [
            (line["evaluations"], float(line[name]))
            for line in self.lines
            if line.get(name) is not None and layer in (None, line["layer"])
        ]

    @cached_property
    def layers(self) -> list[int]:
        """The layers that were tuned."""
        return sorted({line["layer"] for line in self.lines})

    @property
    def evaluations(self) -> int:
        """How many candidates were evaluated."""
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
    """Read the runs in folders: a folder that is one, or else all that lie in it, such as those of several seeds.

    Raises:
        UsageError: if a folder holds none.
        ArtifactError: if a configuration or a result is damaged.
    """
    found: dict[Path, RunView] = {}
    for folder in folders:
        inside = [folder] if _is_run(folder) else sorted(p.parent for p in folder.glob(f"**/{CONFIG}"))
        paths = [path for path in inside if _is_run(path)]
        if not paths:
            raise UsageError(f"{folder} holds no run of bbt-fast: give the --output_dir of a run, or a folder of such.")
        for path in paths:
            found.setdefault(path.resolve(), read_run(path))
    return list(found.values())


def _is_run(folder: Path) -> bool:
    """Say whether a folder holds the run of one seed."""
    return (folder / CONFIG).is_file() and not read_config(folder).seeds
