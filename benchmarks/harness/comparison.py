"""The table of a comparison, and its plot of accuracy against time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .output import drawing, markdown, mean_and_deviation, measured_by

HEADINGS = (
    "method", "{metric}, %", "dev, %", "seconds", "all steps, s", "user MiB", "server MiB", "queries",
    "bytes up per query", "bytes down per query", "setting", "measured on",
)  # fmt: skip
"""The last column appears if a record has several devices."""
FIXED = ("batch_size", "epochs", "patience", "weight_decay")
"""Hyper-parameters that only the record shows."""
NONE = "-"


def table(record: Mapping[str, Any]) -> str:
    """Return a record as Markdown, with mean and standard deviation over the seeds."""
    rows = {name: row for name, row in record["methods"].items() if row["seeds"]}
    if not rows:
        return "\n\n".join(["nothing was measured.", *failures(record)])
    runs = [run for row in rows.values() for run in row["seeds"].values()]
    about, first = record["about"], runs[0]
    counts = first["examples"]
    mixed = len({run["device"] for run in runs}) > 1
    columns = len(HEADINGS) if mixed else len(HEADINGS) - 1
    headings = [heading.format(metric=first["metric"]) for heading in HEADINGS[:columns]]
    cells = [_cells(*row)[:columns] for row in record["methods"].items()]
    seeds = sorted({int(seed) for row in rows.values() for seed in row["seeds"]})
    apart = " Compare seconds and memory only between methods that were measured on the same device." if mixed else ""
    lines = [
        f"**compare**: `{about['model_name']}` on {about['task_name']}, {counts['train']} training and {counts['dev']} "
        f"development examples, tested on {counts['test']}; seeds {', '.join(map(str, seeds))}; mean (standard "
        f"deviation). Seconds are the tuning time with the chosen setting; all steps include loading, test and choice "
        f"of the setting, over all seeds; memory is the largest peak of a seed.{apart} {measured_by(runs)}",
        "",
        *markdown(headings, f"l{'r' * (len(HEADINGS) - 3)}l", cells),
    ]
    return "\n\n".join(["\n".join(lines), *failures(record)])


def failures(record: Mapping[str, Any]) -> list[str]:
    """Return a line for each method with failed steps: the steps and the reasons."""
    return [
        f"{name} failed: " + "; ".join(f"{step}: {why}" for step, why in row["failed"].items())
        for name, row in record["methods"].items()
        if row["failed"]
    ]


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """Return a method's row."""
    runs = list(row["seeds"].values())
    if not runs:
        return [name, *(len(HEADINGS) - 3) * [NONE], "failed" if row["failed"] else NONE, NONE]
    traffic = runs[0]["traffic"]
    setting = [f"{key} {value:g}" for key, value in runs[0]["setting"].items() if key not in FIXED]
    engines = [f"{run['notes']['engine']} {run['notes']['precision']}" for run in runs if "engine" in run["notes"]]
    before = [100 * run["notes"]["zero_shot"] for run in runs if "zero_shot" in run["notes"]]
    untuned = [f"untuned {statistics.fmean(before):.1f} %"] if before else []
    return [
        name,
        mean_and_deviation([100 * run["test"] for run in runs]),
        mean_and_deviation([100 * run["dev"] for run in runs]),
        mean_and_deviation([run["seconds"] for run in runs]),
        f"{sum(step['step_seconds'] for step in [*row['grid'].values(), *runs]):.0f}",
        *(_largest([run[side] for run in runs]) for side in ("user_mib", "server_mib")),
        f"{traffic['queries']}" if traffic["queries"] else NONE,
        *(NONE if traffic[way] is None else f"{traffic[way]}" for way in ("up_bytes", "down_bytes")),
        ", ".join([*setting, *dict.fromkeys(engines), *untuned]) or NONE,
        ", ".join(dict.fromkeys(run["device"] for run in runs)),
    ]


def _largest(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.1f}" if known else NONE


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the test metric against the time that tuning took, a point per method, with the standard deviations.

    Stars are BBT and BBTv2; circles need the weights, squares only a server's answers. Points are hollow if their first
    seed was measured on another device than that of the first method.
    """
    from matplotlib import colormaps

    rows = {name: list(row["seeds"].values()) for name, row in record["methods"].items() if row["seeds"]}
    about = record["about"]
    devices = list(dict.fromkeys(runs[0]["device"] for runs in rows.values()))
    with drawing(path, 9, 5) as (axes,):
        colours = colormaps["tab20"]
        for number, (name, runs) in enumerate(rows.items()):
            metric = [100 * run["test"] for run in runs]
            error = statistics.stdev(metric) if len(metric) > 1 else 0.0
            seconds = max(statistics.fmean(run["seconds"] for run in runs), 1e-3)
            marker = "*" if name.startswith("bbt") else "o" if runs[0]["server_mib"] is None else "s"
            axes.errorbar(
                seconds,
                statistics.fmean(metric),
                error,
                fmt=marker,
                markersize=12 if marker == "*" else 7,
                capsize=3,
                color=colours(number % colours.N),
                fillstyle="full" if runs[0]["device"] == devices[0] else "none",
                label=name,
            )
        axes.set(
            xscale="log",
            xlabel="tuning, seconds" + (f" (hollow: on {', '.join(devices[1:])})" if len(devices) > 1 else ""),
            ylabel=f"{next(iter(rows.values()))[0]['metric'] if rows else 'metric'} on test, %",
            title=f"{about['model_name']} on {about['task_name']}",
        )
        axes.grid(alpha=0.3)
        if rows:
            axes.figure.legend(loc="outside right center", fontsize=8)
