"""``bbt-fast doctor``: what is installed, what the hardware can do, and what a run would take."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the sub-command; the parsed arguments hold the function that answers them as ``text``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor", description="Say what is installed, what the hardware can do, and what `auto` takes."
    )
    parser.set_defaults(text=run)
    return parser


def run(args: argparse.Namespace) -> str:
    """Return the diagnosis."""
    from .diagnosis import diagnosis

    del args
    sections = diagnosis()
    width = max(len(name) for facts in sections.values() for name in facts)
    lines = []
    for title, facts in sections.items():
        lines += [title, *(f"  {name.ljust(width)}  {value}" for name, value in facts.items())]
    return "\n".join(lines)
