"""Comparisons over the values of one option, like the papers' ablations: the flag, the table and the plot.

The tasks of a comparison are such values, too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbt_fast.benchmarks.harness import comparison
from bbt_fast.benchmarks.harness.comparison import NONE
from bbt_fast.benchmarks.harness.output import drawing, markdown, mean_and_deviation
from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.artifacts.files import write_whole
from bbt_fast.tuner.input.options import Options


def parse(text: str) -> tuple[str, tuple[Any, ...]]:
    """Return an option and its values, from "intrinsic_dim=50,100"; "none" is None for options that can be None.

    Raises:
        UsageError: if there is no such option, or it cannot have a value.
    """
    name, _, values = text.partition("=")
    if not values:
        raise UsageError(f"sweep is {text!r}, but must be an option and its values, such as intrinsic_dim=50,100.")
    left_open = getattr(Options(), name, "") is None
    given = [None if left_open and value == "none" else value for value in values.split(",")]
    return name, tuple(getattr(Options.of(**{name: value}), name) for value in given)


def label(value: Any) -> str:
    """Return a value as text; for a path its last part."""
    return "none" if value is None else Path(str(value)).name


def write(option: str, values: Sequence[Any], records: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write the table and the plot of a sweep, and return the table.

    Args:
        option: the swept option.
        values: its values.
        records: the comparison with each value.
        folder: the folder of the files.
    """
    n_test = records[0]["about"]["n_test"]
    name = "-".join(["sweep", *_same(option, records), *([f"n{n_test}"] if n_test else []), option])
    text = table(option, values, records)
    write_whole(folder / f"{name}.md", text.encode() + b"\n")
    plot(option, values, records, folder / f"{name}.png")
    return text


def joint(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table for each set of comparisons that differ in the swept option; one alone has its own table."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        same = {name: value for name, value in record["about"].items() if name != record["swept"]}
        sets.setdefault(json.dumps([record["swept"], same]), []).append(record)
    return [comparison.table(*its) if len(its) == 1 else _joint(its) for its in sets.values()]


def _joint(records: Sequence[Mapping[str, Any]]) -> str:
    option = records[0]["swept"]
    numbers = all(isinstance(record["about"][option], int | float) for record in records)
    ordered = sorted(records, key=lambda record: record["about"][option] if numbers else label(record["about"][option]))
    return table(option, [record["about"][option] for record in ordered], ordered)


def table(option: str, values: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Return a sweep as Markdown: the test metric's mean and standard deviation, a row per method.

    Tasks have a last column: the mean over all of them.
    """
    over_tasks = option == "task_name"
    rows = []
    for method, found in _by_method(records).items():
        means = [statistics.fmean(its) for its in found if its]
        overall = f"{statistics.fmean(means):.1f}" if len(means) == len(found) else NONE
        cells = [mean_and_deviation(its) if its else NONE for its in found]
        rows.append([method, *cells, *([overall] if over_tasks else [])])
    lines = [
        f"**compare** by {option}: {_subject(option, records)}; test metric in %, mean (standard deviation) over the "
        "seeds.",
        "",
        *markdown((option, *map(label, values), *(["mean"] if over_tasks else [])), "lr", rows),
    ]
    return "\n".join(lines)


def plot(option: str, values: Sequence[Any], records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the test metric against the option's values, a line per method with the standard deviations."""
    places = range(len(values))  # at equal distances, as in the papers
    with drawing(path, 6, 4) as (axes,):
        for method, found in _by_method(records).items():
            at = [place for place in places if found[place]]
            means = [statistics.fmean(found[place]) for place in at]
            errors = [statistics.stdev(its) if len(its := found[place]) > 1 else 0.0 for place in at]
            axes.errorbar(at, means, errors, marker="o", capsize=3, label=method)
        axes.set(xlabel=option, ylabel="test metric, %")
        axes.set_title(_subject(option, records), fontsize=10)
        axes.margins(x=0.1)
        axes.set_xticks(list(places), [label(value) for value in values])
        axes.grid(alpha=0.3)
        axes.legend()


def _same(option: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the model and of the task, unless they are swept."""
    return [records[0]["about"][name] for name in ("model_name", "task_name") if name != option]


def _subject(option: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return what the records have in common, as text."""
    budgets = {record["about"].get("budget") for record in records} - {None}
    budget = [f"at most {budgets.pop()} evaluations of BBT and BBTv2"] if len(budgets) == 1 else []
    return ", ".join([" on ".join(_same(option, records)), *budget])


def _by_method(records: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Return each method's test metrics in percent, for each value those of the seeds."""
    fullest = sorted(records, key=lambda record: -len(record["methods"]))  # its methods are in their order
    methods = dict.fromkeys(method for record in fullest for method in record["methods"])
    return {
        method: [
            [100 * run["test"] for run in record["methods"].get(method, {"seeds": {}})["seeds"].values()]
            for record in records
        ]
        for method in methods
    }
