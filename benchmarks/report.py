"""Write a Markdown table and two plots of a speed record: the speed-ups, and the parts of a generation's time.

python benchmarks/report.py benchmarks/results/speed-*.json                       <record>.md, <record>-speedup.png, ...
python benchmarks/report.py benchmarks/results/speed-*.json --into README.md      and short tables into a page

The other benchmarks write their tables and plots themselves. --into inserts the tables of all records into a page;
comparisons that differ in one option, such as the task, have one table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bbt_fast.benchmarks import cluster, fidelity, optimiser, plans, scaling, search
from bbt_fast.benchmarks.harness import breakdown, network, sweeps, variants
from bbt_fast.benchmarks.harness.output import cells, drawing, fault, markdown, measured_on
from bbt_fast.benchmarks.harness.shapes import SHAPES

BASELINE = "original"
BUDGET = 8000
"""Evaluations of a full run, whose time includes the start: loading the model and building its graphs."""
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
PARTS = {"evaluate": "evaluate", "project": "A z", "optimizer": "ask, tell", "loss": "loss", "commit": "commit"}
COLUMNS = {
    "contender": "{name}",
    "evals_per_s": "{evals_per_s:.3g}",
    "generation_ms (min to max)": "{generation_ms:.0f} ({low:.0f} to {high:.0f})",
    "speed-up": "{speed_up}",
    "matmul share": "{matmul_share:.0%}",
    "optimizer share": "{optimizer_share:.1%}",
    "peak MiB": "{peak}",
    "load s (export)": "{load_seconds:.1f} ({export_seconds:.1f})",
    "8000 evaluations and start, min": "{minutes:.1f}",
}


def table(record: dict[str, Any]) -> str:
    """Return a record as Markdown: the workload, the machine, and a row per contender."""
    base = record["contenders"].get(BASELINE, {}).get("evals_per_s")
    rows = [
        _row(name, figures, base) if "evals_per_s" in figures else [name, fault(figures)]
        for name, figures in record["contenders"].items()
    ]
    return "\n".join([describe(record), "", *markdown(COLUMNS, "lr", rows)])


def describe(record: dict[str, Any]) -> str:
    """Describe the workload and the machine of a record in one paragraph."""
    work = record["workload"]
    ok = [figures for figures in record["contenders"].values() if "model" in figures]
    model = ok[0]["model"] if ok else {}
    lengths = work["lengths"]
    layers = f", a round over layers {work['layers']}" if work["layers"] else ""
    sample = f", one-by-one contenders timed on {work['sample']} candidates" if work["sample"] else ""
    timed = {len(row["round_seconds"]["samples"]) for row in record["contenders"].values() if row["status"] == "ok"}
    repeats = f", {' to '.join(str(n) for n in sorted({min(timed), max(timed)}))} repeats" if timed else ""
    weights = ", random weights" if work["model"] in SHAPES else ""
    return (
        f"**{work['algorithm']}**, `{work['model']}` ({model.get('layers')} layers, hidden {model.get('hidden')}"
        f"{weights}), population {work['population']} on {work['n_examples']} texts of {work['task']}'s lengths: "
        f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all, prompt of {work['n_prompt_tokens']} included"
        f"{layers}{sample}{repeats}. {measured_on(record['environment'])}"
    )


def _row(name: str, figures: dict[str, Any], base: float | None) -> list[str]:
    scale = figures["generation_ms"] / figures["round_seconds"]["median"]
    more = {
        "name": f"{name} ({figures['status']})" if figures["status"] != "ok" else name,
        "low": figures["round_seconds"]["min"] * scale,
        "high": figures["round_seconds"]["max"] * scale,
        "speed_up": f"{figures['evals_per_s'] / base:.2f}x" if base else "",
        "peak": "" if figures["peak_mib"] is None else f"{figures['peak_mib']:.0f}",
        "minutes": figures["full_run_s"] / 60,
    }
    return cells(COLUMNS, figures | more)


def plots(record: dict[str, Any], stem: Path) -> list[Path]:
    """Draw a record's plots ``<stem>-speedup.png`` and ``<stem>-breakdown.png``, if it has timings."""
    figures = {name: row for name, row in record["contenders"].items() if row["status"] == "ok"}
    if not figures:
        return []
    speed_path, parts_path = paths = [stem.with_name(f"{stem.name}-{what}.png") for what in ("speedup", "breakdown")]
    height, title = 0.4 * len(figures), _title(record)
    base = figures.get(BASELINE, next(iter(figures.values())))["round_seconds"]["median"]
    median, low, high = (
        base / np.array([row["round_seconds"][key] for row in figures.values()]) for key in ("median", "max", "min")
    )
    colours = ["tab:blue" if name.startswith("bbt-fast") else "tab:gray" for name in figures]
    with drawing(speed_path, 9, height + 1.4) as (axes,):
        errors = [(median - low).tolist(), (high - median).tolist()]  # Matplotlib 3.9 takes no arrays of one number
        bars = axes.barh(list(figures), median, xerr=errors, color=colours, ecolor="black", capsize=2)
        axes.bar_label(bars, [f" {speed:.2f}x" for speed in median], padding=6)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_xlabel(f"evaluations per second, times {BASELINE}; bars end at the median, whiskers at the extremes")
        axes.set_title(title, fontsize=10)
    with drawing(parts_path, 9, height + 1.6) as (axes,):
        left = np.zeros(len(figures))
        for part, label in PARTS.items():
            widths = [row["parts_ms"].get(part, 0.0) for row in figures.values()]
            axes.barh(list(figures), widths, left=left, label=label)
            left += widths
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds per generation")
        axes.legend(ncols=len(PARTS), loc="lower right", fontsize=8)
        axes.set_title(title, fontsize=10)
    return paths


def _title(record: dict[str, Any]) -> str:
    work = record["workload"]
    return (
        f"{work['algorithm']}, {Path(work['model']).name}, {work['population']} candidates x {work['n_examples']} "
        f"{work['task']} texts, {record['environment']['device']}"
    )


def write(path: Path) -> list[Path]:
    """Write the table and the plots of a record beside it; a record of gpu.py has one part per algorithm."""
    record = json.loads(path.read_text(encoding="utf-8"))
    stem = path.with_suffix("")
    parts = record.get("speed", {"": record})
    text = path.with_suffix(".md")
    if record["benchmark"] == "lab":
        text.write_text(lab(record) + "\n", encoding="utf-8")
        return [text]
    tables = [some for part in parts.values() for some in (table(part), breakdown.table(part["contenders"])) if some]
    text.write_text("\n\n".join([*tables, *_note(record)]) + "\n", encoding="utf-8")
    drawn = [plots(part, stem.with_name(f"{stem.name}-{name}" if name else stem.name)) for name, part in parts.items()]
    return [text, *(plot for some in drawn for plot in some)]


def lab(record: dict[str, Any]) -> str:
    """Return the tables of a lab's record, and a last line that names the fastest variants."""
    parts = [f"{describe(part)}\n\n{variants.table(part['contenders'])}" for part in record["speed"].values()]
    return "\n\n".join([*parts, *_note(record), variants.winners(record["speed"])])


def _note(record: dict[str, Any]) -> list[str]:
    """Return the paragraph of a note that a person added to a record, if there is one."""
    return [f"Note on the record: {record['note']}"] if "note" in record else []


def brief(record: dict[str, Any]) -> str:
    """Return the short table for a page: the workload, and the speed of the contenders with right answers."""
    rows = {name: row for name, row in record["contenders"].items() if row["status"] == "ok"}
    if not rows:
        return table(record)
    against = BASELINE if BASELINE in rows else min(rows, key=lambda name: float(rows[name]["evals_per_s"]))
    base = rows[against]["evals_per_s"]
    shown = []
    for name, row in rows.items():
        rate, minutes = row["evals_per_s"], row["full_run_s"] / 60
        shown.append([name, f"{rate:.3g}", f"{rate / base:.2f}", f"{minutes:.{0 if minutes >= 10 else 1}f} min"])
    headings = ("contender", "evaluations per second", f"times {against}", f"{BUDGET} evaluations and start")
    return "\n".join([describe(record), "", *markdown(headings, "lr", shown)])


PAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed": brief,
    "gpu": lambda record: "\n\n".join([*map(brief, record["speed"].values()), *_note(record)]),
    "lab": lab,
    "scaling": scaling.table,
    "fidelity": fidelity.table,
    "service": network.share_table,
    "efficiency": network.efficiency_table,
    "optimiser": optimiser.table,
    "plans": plans.table,
    "search": search.table,
    "cluster": cluster.table,
}
"""By kind of record, the function that returns its tables for a page."""


def tables(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the tables of records for a page."""
    compared = [record for record in records if record["benchmark"] == "compare"]
    single = [PAGES[record["benchmark"]](record) for record in records if record not in compared]
    return [*single, *sweeps.joint(compared)]


def insert(page: str, tables: Sequence[str]) -> str:
    """Replace the text between a page's two marks by the tables.

    Raises:
        ValueError: if the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no marks {BEGIN} ... {END}. Add them where the tables belong.")
    return "".join([before, begin, "\n\n", "\n\n".join(tables), "\n\n", end, after])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table and the plots beside each record, and short tables into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, help=f"a page with the marks {BEGIN} and {END}")
    given = parser.parse_args(arguments)
    records = {path: json.loads(path.read_text(encoding="utf-8")) for path in given.records}
    for path, record in records.items():
        for written in write(path) if record["benchmark"] in ("speed", "gpu", "lab") else ():
            print(written)
    if given.into:
        page = insert(given.into.read_text(encoding="utf-8"), tables(list(records.values())))
        given.into.write_text(page, encoding="utf-8")
        print(given.into)


if __name__ == "__main__":
    main()
