"""``bbt-fast evaluate``: score a tuned prompt on labelled texts."""

from __future__ import annotations

import argparse
import json

from .arguments import add_options, checked
from .predict import add_run_options, loaded

DESCRIPTION = "Score a tuned prompt on the test file of a folder; without one, on what its run was tested on."
DATA = ("data_dir", "column_mapping", "max_test_examples")
MEANINGS = {
    "data_dir": "Folder with a test file (jsonl, csv, tsv or parquet); by default the data that the run was tested on."
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_run_options(parser)
    add_options(parser, DATA, MEANINGS)


def run(args: argparse.Namespace) -> str:
    """Return the metric, the loss, and the number of texts."""
    data = checked(args, DATA)
    found = loaded(args).evaluate(**data)
    if args.json:
        return json.dumps(found.as_dict())
    cut = f", {found.truncated} of them cut to fit" if found.truncated else ""
    return f"{found.metric} {found.value:.4f}, loss {found.loss:.4f} on {found.examples} examples{cut}"
