"""``bbt-fast predict``: classify texts with a tuned prompt."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...export.errors import DataError, UsageError
from .arguments import add_options, checked
from .quiet import hide_progress_bars

DESCRIPTION = "Classify texts: those given here, those of a file, or those of the standard input."
OPTIONS = ("model_name", "allow_pickle", "engine", "precision", "device", "batch_size")
"""The options of a run that may differ when its prompt is used."""
MEANINGS = {
    "model_name": "Hub id or folder of the base model, if it has moved since the run.",
    "batch_size": "Texts per batch.",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text; for a task about pairs, two for each pair")
    parser.add_argument(
        "--file",
        metavar="FILE",
        help="one text per line, those of a pair with a tab between; - for standard input",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object per text, with the score of every class"
    )
    add_run_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the prompts to use and of their engine."""
    add_run(parser)
    add_options(parser, OPTIONS, MEANINGS)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the prompts, as a list."""
    parser.add_argument(
        "--run",
        required=True,
        action="append",
        metavar="DIR",
        help="a run's folder, that of a command with --seeds, or the hub id of a shared prompt; given several times, "
        "the prompts' log-probabilities are averaged",
    )


def loaded(args: argparse.Namespace) -> Any:
    """Load the classifier that the flags ask for.

    Raises:
        BbtFastError: see ``classifier.load``.
    """
    options = checked(args, OPTIONS)
    from ..use.classifier import load  # here, so that --help and mistakes in flags do not wait for PyTorch

    hide_progress_bars()
    return load(args.run, **options)


def run(args: argparse.Namespace) -> str:
    """Return a line per text: its class, the class's probability, and the text itself."""
    if args.texts and args.file:
        raise UsageError("both texts and --file are given: omit one of them.")
    classifier = loaded(args)
    size = len(classifier.config.task.texts)
    texts = _grouped(args.texts, size) if args.texts else _read(args.file or "-", size)
    answers = classifier(texts)
    if args.json:
        return "\n".join(
            json.dumps({"text" if size == 1 else "texts": t, **answer}, ensure_ascii=False)
            for t, answer in zip(texts, answers, strict=True)
        )
    shown = (text if isinstance(text, str) else "\t".join(text) for text in texts)
    return "\n".join(f"{a['label']}\t{a['score']:.4f}\t{text}" for a, text in zip(answers, shown, strict=True))


def _grouped(words: Sequence[str], size: int) -> list[Any]:
    """Return the texts, or pairs of two texts each."""
    if len(words) % size:
        raise UsageError(f"the task classifies pairs, but was given {len(words)} texts: give two for each pair.")
    return list(words) if size == 1 else list(zip(words[::2], words[1::2], strict=True))


def _read(name: str, size: int) -> list[Any]:
    """Return the lines of a file or of the standard input, split into pairs if the task needs them."""
    try:
        content = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}.") from None
    if not content:
        raise DataError(f"there are no texts in {'the standard input' if name == '-' else name}.")
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    if size == 1:
        return lines
    pairs = [tuple(line.split("\t")) for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != size:
            raise DataError(f"{name}, line {number}: a pair is two texts with one tab between them, not {len(pair)}.")
    return pairs
