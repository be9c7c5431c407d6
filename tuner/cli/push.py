"""``bbt-fast push``: upload a tuned prompt to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import spellings

DESCRIPTION = "Upload a tuned prompt, its configuration and a model card to the Hugging Face hub."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("repository", metavar="USER/NAME", help="the hub id; created if it does not exist")
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument(
        *spellings("base_model"), metavar="USER/MODEL", help="the base model's hub id, if the run read it from a folder"
    )
    parser.add_argument("--private", action="store_true", help="create a new repository as private")


def run(args: argparse.Namespace) -> str:
    """Push, and return where the prompt is."""
    from ..use.push import push

    where = push(Path(args.run), args.repository, base_model=args.base_model, private=args.private)
    return f"the prompt is at {where}; bbt_fast.load({args.repository!r}) loads it"
