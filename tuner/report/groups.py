"""Groups of runs that differ only in their seed, for comparisons."""

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
"""Options that may differ within a group."""
METRICS = ("test", "dev", "train", "zero-shot test", "zero-shot dev")
"""The compared metrics, names in ``FIGURES``."""
SPEEDS: dict[str, Callable[[Result], float]] = {
    "evals/s": lambda result: result.evals_per_s,
    "tuning, s": lambda result: result.seconds.tune,
}
"""The compared speeds."""


@dataclass(frozen=True)
class Group:
    """The runs with the same options, one per seed."""

    label: str
    """The options that distinguish it from the other groups."""
    runs: tuple[RunView, ...]

    @property
    def results(self) -> list[Result]:
        """The results of the finished runs."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def unfinished(self) -> int:
        """The number of unfinished runs, which no mean includes."""
        return len(self.runs) - len(self.results)

    @property
    def spreads(self) -> dict[str, Spread]:
        """Mean and standard deviation of the metrics over the finished runs; empty if there are none."""
        return SeedsResult(tuple(self.results), None, Path()).spreads if self.results else {}


def group_runs(runs: Sequence[RunView]) -> list[Group]:
    """Group runs by their options, in the order of the groups' first runs."""
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
    """Return the comparison as a table with a header: means and, for several seeds, standard deviations."""
    table = [["options", "runs", *METRICS, *SPEEDS]]
    for group in groups:
        results = group.results
        figures = ["-"] * (len(METRICS) + len(SPEEDS))
        if results:
            figures = [_spread(group.spreads[name], len(results) > 1) for name in METRICS]
            figures += [f"{statistics.fmean(map(speed, results)):.1f}" for speed in SPEEDS.values()]
        count = f"{len(group.runs)}" + (f" ({group.unfinished} unfinished)" if group.unfinished else "")
        table.append([group.label, count, *figures])
    return table


def _spread(spread: Spread, several: bool) -> str:
    mean = f"{100 * spread.mean:.1f}"
    return f"{mean} ± {100 * spread.std:.1f}" if several else mean


def _shared(run: RunView) -> dict[str, Any]:
    """Return the options that runs of one group share, with the engine in place of "auto"."""
    shared = {name: value for name, value in identity(run.options).items() if name not in OF_A_RUN}
    used = recorded_engine(run.path)
    return shared | ({"engine": used["name"], "precision": used["precision"], "device": used["device"]} if used else {})


def _label(options: dict[str, Any], different: Sequence[str]) -> str:
    known = [f"{name} {_short(options[name])}" for name in different if options[name] is not None]
    return ", ".join([options["algorithm"], *known])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)
