"""``bbt-fast bench``: the comparison of ``benchmarks/speed.py`` as a sub-command."""

from __future__ import annotations

import argparse

from bbt_fast.benchmarks import report, speed
from bbt_fast.export.errors import BbtFastError

DESCRIPTION = (
    "Compare how fast bbt-fast and the PyTorch baselines evaluate a population, answers checked first. "
    "Without flags: BBT on a small model's shape, with random weights and SST-2's text lengths."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    speed.add_flags(parser)


def run(args: argparse.Namespace) -> str:
    """Run the comparison and return its table.

    Raises:
        BbtFastError: if a contender gave wrong answers or broke; the message holds the table.
    """
    record = speed.run(args, args.output)
    if speed.failed(record):
        raise BbtFastError(f"a contender was wrong or failed.\n{report.table(record)}")
    return report.table(record)
