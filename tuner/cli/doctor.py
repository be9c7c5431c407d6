"""``bbt-fast doctor``: what is installed, what the hardware supports, and what `auto` selects."""

from __future__ import annotations

import argparse

DESCRIPTION = "Show what is installed, what the hardware supports, and what `auto` selects."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""


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
