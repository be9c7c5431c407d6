"""``bbt-fast report``: runs side by side, in the terminal and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = "Compare runs in a table: mean and standard deviation over the seeds of the same options."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a run's folder, or a folder of runs")
    parser.add_argument("--out", metavar="FILE", help="also write a page (HTML) with the table, curves and figures")
    parser.add_argument("--plots", action="store_true", help="draw the plots of each run into its folder again")


def run(args: argparse.Namespace) -> str:
    """Return the table, and write what was asked for."""
    from ..artifacts.files import write_whole
    from ..report.curves import find_runs
    from ..report.groups import group_runs, rows
    from ..report.page import report_page
    from ..report.summary import aligned

    runs = find_runs([Path(folder) for folder in args.folders])
    groups = group_runs(runs)
    lines = [*aligned(rows(groups)), "", "metrics in percent; mean ± standard deviation over seeds"]
    if args.out:
        write_whole(Path(args.out), report_page(groups).encode())
        lines.append(f"page: {args.out}")
    if args.plots:
        from ..report.plots import plot_run

        lines += [f"plot: {path}" for view in runs for path in plot_run(view.path)]
    return "\n".join(lines)
