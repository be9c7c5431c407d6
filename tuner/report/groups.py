"""Runs that differ only in their seed, together: what a comparison compares."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.folder import identity, recorded_engine
from ..artifacts.result import Result
from ..run.seeds import SeedsResult, Spread
from .curves import RunView

OF_A_RUN = ("seed", "seeds", "eval_every")
"""Options that do not make it another experiment."""
METRICS = ("test", "dev", "train", "zero-shot test", "zero-shot dev")
"""The metrics compared, names in ``FIGURES``."""
SPEEDS: dict[str, Callable[[Result], float]] = {
    "evals/s": lambda result: result.evals_per_s,
    "tuning, s": lambda result: result.seconds.tune,
}
"""What is compared besides the metrics."""


@dataclass(frozen=True)
class Group:
    """The runs of the same options, of one seed each."""

    label: str
    """What sets it apart from the other groups."""
    runs: tuple[RunView, ...]

    @property
    def results(self) -> list[Result]:
        """Of the runs that are finished."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def unfinished(self) -> int:
        """How many runs are not finished; they count in no mean."""
        return len(self.runs) - len(self.results)

    @property
    def spreads(self) -> dict[str, Spread]:
        """Mean and standard deviation of the metrics over the seeds; empty if no run is finished."""
        return SeedsResult(tuple(self.results), None, Path()).spreads if self.results else {}

    @property
    def speeds(self) -> dict[str, float]:
        """Means over the seeds; empty if no run is finished."""
        if not self.results:
            return {}
        return {name: statistics.fmean(map(figure, self.results)) for name, figure in SPEEDS.items()}


def group_runs(runs: Sequence[RunView]) -> list[Group]:
    """Put runs of the same options together, in the order in which their first runs are given."""
    together: dict[str, list[RunView]] = {}
    for run in runs:
        together.setdefault(json.dumps(_shared(run), sort_keys=True), []).append(run)
    options = {key: _shared(members[0]) for key, members in together.items()}
    different = [
        name
        for name in next(iter(options.values()), {})
        if len({json.dumps(values[name]) for values in options.values()}) > 1 and name != "algorithm"
    ]
    return [
        Group(_label(options[key], different), tuple(sorted(members, key=lambda run: run.options.seed)))
        for key, members in together.items()
    ]


def rows(groups: Sequence[Group]) -> list[list[str]]:
    """Return the comparison as a table with its header: means, with standard deviations where seeds are several."""
    table = [["options", "runs", *METRICS, *SPEEDS]]
    for group in groups:
        count = str(len(group.runs)) + (f" ({group.unfinished} unfinished)" if group.unfinished else "")
        several = len(group.results) > 1
        metrics = [_spread(group.spreads[name], several) if group.results else "-" for name in METRICS]
        speeds = [f"{group.speeds[name]:.1f}" if group.results else "-" for name in SPEEDS]
        table.append([group.label, count, *metrics, *speeds])
    return table


def _spread(spread: Spread, several: bool) -> str:
    mean = f"{100 * spread.mean:.1f}"
    return f"{mean} ± {100 * spread.std:.1f}" if several else mean


def _shared(run: RunView) -> dict[str, Any]:
    """Return the options that runs of one group share, with the engine that did the work."""
    shared = {name: value for name, value in identity(run.options).items() if name not in OF_A_RUN}
    used = recorded_engine(run.path)  # what "auto" came to
    return shared | ({"engine": used["name"], "precision": used["precision"], "device": used["device"]} if used else {})


def _label(options: dict[str, Any], different: Sequence[str]) -> str:
    known = [f"{name} {_short(options[name])}" for name in different if options[name] is not None]
    return ", ".join([options["algorithm"], *known])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)
