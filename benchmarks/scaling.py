"""Measure how the time of a generation grows with population, texts, lengths, prompt tokens, layers and d.

    python benchmarks/scaling.py                                      minilm's shape, BBT
    python benchmarks/scaling.py --contender bbt-fast-ort-fp32 --only population layers

The script varies one dimension at a time and keeps the others at their usual values. It writes a JSON record, a table,
and a plot with a panel per dimension; points on the dotted line grow in proportion to the dimension.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bbt_fast.benchmarks.harness.output import drawing, markdown, measured_on, publish
from bbt_fast.benchmarks.harness.record import RESULTS, record_of, say, spread, usual_device
from bbt_fast.benchmarks.harness.worker import Served
from bbt_fast.benchmarks.harness.workload import Workload

VARIED: dict[str, tuple[int, ...]] = {
    "population": (5, 10, 20, 40),
    "n_examples": (8, 16, 32, 64),
    "text_length": (16, 32, 64, 128, 256),
    "n_prompt_tokens": (13, 25, 50, 100),
    "layers": (3, 6, 12),
    "intrinsic_dim": (250, 500, 1000, 2000),
}
"""The dimensions and their values; text_length gives all texts one length, which the others draw from the task."""


def measure(workload: Workload, contender: str, repeats: int) -> dict[str, Any]:
    """Time rounds after a warm-up; return the milliseconds of a generation and of its parts."""
    served = Served(contender, workload)
    served.load()
    served.round()
    rounds = [served.round() for _ in range(repeats)]
    parts = {part: spread([1e3 * seconds.get(part, 0.0) for seconds in rounds])["median"] for part in rounds[0]}
    return {"generation_ms": spread([1e3 * seconds["total"] for seconds in rounds]), "parts_ms": parts}


def varied(workload: Workload, dimension: str, value: int) -> Workload:
    """Return the workload with one dimension changed."""
    if dimension == "layers":
        return replace(workload, model=f"{workload.model}:{value}")
    change: dict[str, Any] = {dimension: value}
    return replace(workload, **change)


def exponents(points: Sequence[dict[str, Any]]) -> list[float]:
    """Return the slope between neighbouring points on a log-log plot: 1 is proportional, 0 is free."""
    return [
        math.log(b["generation_ms"]["median"] / a["generation_ms"]["median"]) / math.log(b["value"] / a["value"])
        for a, b in pairwise(points)
    ]


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    work = record["workload"]
    rows = []
    for dimension, points in record["dimensions"].items():
        cells = [f"{one['value']}: {one['generation_ms']['median']:.0f} ({_own_ms(one):.0f})" for one in points]
        rows.append([dimension, ", ".join(cells), ", ".join(f"{slope:.2f}" for slope in exponents(points))])
    lines = [
        f"**scaling** of {record['contender']}: {work['algorithm']}, `{work['model']}`, population "
        f"{work['population']} on {work['n_examples']} texts of {work['task']}'s lengths, {work['n_prompt_tokens']} "
        f"prompt tokens, d = {work['intrinsic_dim']}, one of them varied at a time; a dimension's exponents are the "
        f"slopes between its neighbouring values, 1 for growth in proportion. "
        f"{measured_on(record['environment'], ())}",
        "",
        *markdown(("dimension", "value: generation_ms (of it ask, tell, A z)", "exponents"), "l", rows),
    ]
    return "\n".join(lines)


def _own_ms(point: dict[str, Any]) -> float:
    """Return the milliseconds of ask, tell and A z."""
    return float(point["parts_ms"]["optimizer"] + point["parts_ms"]["project"])


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw a panel per dimension, both axes logarithmic, with a dotted line for proportional growth."""
    dimensions, work = record["dimensions"], record["workload"]
    columns = min(3, len(dimensions))
    rows = -(-len(dimensions) // columns)
    title = f"{record['contender']}, {work['algorithm']}, {work['model']}, {record['environment']['device']}"
    with drawing(path, 4 * columns, 3 * rows, rows, columns) as panels:
        panels[0].figure.suptitle(title)
        for panel in panels[len(dimensions) :]:
            panel.remove()
        for panel, (dimension, points) in zip(panels, dimensions.items(), strict=False):
            values = [point["value"] for point in points]
            times = [point["generation_ms"]["median"] for point in points]
            in_proportion = [times[-1] * value / values[-1] for value in values]
            panel.plot(values, times, "o-", label="generation")
            panel.plot(values, list(map(_own_ms, points)), "s-", color="tab:gray", label="ask, tell, A z")
            panel.plot(values, in_proportion, ":", color="black", label="in proportion")
            panel.set(xscale="log", yscale="log", xlabel=dimension, ylabel="milliseconds", xticks=values)
            panel.set_xticklabels(values)
            panel.minorticks_off()
        panels[0].legend(fontsize=7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="a shape")
    parser.add_argument("--contender", default="bbt-fast-ort-fp32")
    parser.add_argument("--only", nargs="+", choices=list(VARIED), default=list(VARIED), help="dimensions to vary")
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--values", type=int, nargs="+", help="values of the only dimension in --only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default=usual_device())
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    base = Workload(given.model, "bbt", population=given.population, n_examples=given.examples, device=given.device)
    dimensions: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bbt-fast-scaling-") as cache:
        os.environ.setdefault("BBT_FAST_CACHE", cache)
        for dimension in given.only:
            dimensions[dimension] = []
            for value in given.values or VARIED[dimension]:
                point = measure(varied(base, dimension, value), given.contender, given.repeats)
                dimensions[dimension].append({"value": value, **point})
                say(f"{dimension} {value}: {point['generation_ms']['median']:.0f} ms")
    record = record_of("scaling", given.device, contender=given.contender, workload=asdict(base), dimensions=dimensions)
    path = given.output or RESULTS / f"scaling-{given.model}-{given.device}.json"
    print(publish(record, path, table))
    plot(record, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
