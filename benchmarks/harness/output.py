"""The output of benchmarks: records, Markdown tables and plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from bbt_fast.tuner.artifacts.files import write_whole

from .record import save

RULES = {"l": "---", "r": "---:"}


def publish(record: dict[str, Any], path: Path, table: Callable[[dict[str, Any]], str]) -> str:
    """Write a record as JSON, and its table beside it as Markdown; return the table.

    Raises:
        ArtifactError: if the disk is full or the folder cannot be written.
    """
    text = table(record)
    save(record, path)
    write_whole(path.with_suffix(".md"), text.encode() + b"\n")
    return text


def markdown(headings: Collection[str], align: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        headings: of the columns.
        align: a letter per column, ``l`` for left or ``r`` for right; a missing letter repeats the last.
        rows: their cells; a missing cell is empty.
    """
    rules = [RULES[letter] for letter in align.ljust(len(headings), align[-1])]
    filled = ([*map(str, row), *[""] * (len(headings) - len(row))] for row in rows)
    return ["| " + " | ".join(cells) + " |" for cells in (headings, rules, *filled)]


def cells(columns: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    """Return a row of a table from the formats of its columns, which refer to the values by name."""
    return [form.format_map(values) for form in columns.values()]


def fault(figures: Mapping[str, Any]) -> str:
    """Return the cell of a contender that has no figures: its status, and the first line of the reason."""
    reason = shorten(figures["reason"].splitlines()[0], 100).replace("|", "/")
    return f"**{figures['status']}**: {reason}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return the mean and, for several values, the sample standard deviation in parentheses."""
    deviation = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def packages(versions: Mapping[str, str]) -> str:
    """Return names and versions as text."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def measured_on(environment: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """Return a record's environment as text: device, threads, packages and commit.

    Args:
        environment: from ``record.environment``.
        names: of the packages; None for all.
    """
    versions = environment["versions"]
    shown = {name: versions[name] for name in (versions if names is None else names)}
    parts = [environment["device"], f"{environment['threads']} threads", packages(shown)]
    return f"{', '.join(filter(None, parts))}; commit {environment['commit']}."


def measured_by(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the devices and commits of a record's runs, and the packages of the last run."""
    devices, commits = (", ".join(dict.fromkeys(run[key] for run in runs)) for key in ("device", "commit"))
    return f"{devices}, {packages(runs[-1]['versions'])}; commit {commits}."


@contextmanager
def drawing(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[list[Any]]:
    """Yield the panels of a new figure, row by row, and write the figure as PNG.

    Args:
        path: the file.
        width: of the figure in inches.
        height: of the figure in inches.
        rows: the number of rows of panels.
        columns: the number of columns of panels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield list(figure.subplots(rows, columns, squeeze=False).flat)
    figure.savefig(path, dpi=110)
