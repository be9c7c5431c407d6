"""The command line: ``bbt-fast [COMMAND] ...``; without a command it tunes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from importlib import import_module
from importlib.metadata import entry_points, version
from typing import Any

import coloredlogs

from ...export.errors import BbtFastError, PartlyFailedError
from ..run.control import RunInterruptedError
from .arguments import Parser

PARTLY_FAILED = 1
FAILED = 2
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 141
"""The exit status in shells of a program that wrote to a closed pipe."""
COMMANDS = {
    "tune": "tune and test a prompt (the default)",
    "predict": "classify texts with a tuned prompt",
    "evaluate": "score a tuned prompt on labelled texts",
    "bake": "write a tuned prompt and its model as one ONNX classifier",
    "push": "upload a tuned prompt to the Hugging Face hub",
    "serve": "serve a model and a classifier to other machines",
    "export": "build and check a model's graphs before a run",
    "report": "compare runs in a table and on a page",
    "tokens": "name the tokens that tuned prompts lie near",
    "tasks": "list the tasks, or show how one is encoded",
    "doctor": "show what is installed, what the hardware supports, and what `auto` selects",
    "bench": "compare the engines' speed with the PyTorch baselines",
    "compare": "compare black-box tuning with the alternatives",
}
"""What the sub-commands do. Each is a module of that name with a ``DESCRIPTION``, ``add_flags(parser)``, and
``run(args)``, which returns the text to print, or raises a BbtFastError that the user can correct."""
GROUP = "bbt_fast.commands"
"""The entry points of commands that are defined above this floor."""
DESCRIPTION = """\
Tune a soft prompt for a frozen language model without gradients (BBT, BBTv2), as fast as the hardware allows.
Without a command this is `bbt-fast tune`; without any flag that tunes the embedded demo.
`bbt-fast COMMAND --help` lists a command's flags."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status.

    It is 0, 1 if a part of a command failed, 2 for an error that the user can correct, 130 for an interrupted run.
    """
    arguments = _with_command(list(sys.argv[1:] if argv is None else argv))
    logger = logging.getLogger("bbt_fast")
    try:
        args = make_parser(arguments[0]).parse_args(arguments)
        coloredlogs.install(level="DEBUG" if args.verbose else "INFO", logger=logger, fmt="%(message)s")
        print(args.text(args), flush=True)
    except RunInterruptedError as error:
        print(f"bbt-fast: {error}", file=sys.stderr)
        return INTERRUPTED
    except PartlyFailedError as error:
        print(error.done, flush=True)
        print(f"bbt-fast: {error}", file=sys.stderr)
        return PARTLY_FAILED
    except BbtFastError as error:
        print(f"bbt-fast: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails when it flushes at exit
        return UNREAD
    except KeyboardInterrupt:
        when = " before the search began; nothing is lost" if arguments[0] == "tune" else ""
        print(f"bbt-fast: interrupted{when}.", file=sys.stderr)
        return INTERRUPTED
    return 0


def make_parser(chosen: str) -> argparse.ArgumentParser:
    """Make the parser; only the chosen command gets its flags, since some commands take seconds to import."""
    parser = Parser(prog="bbt-fast", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"bbt-fast {version('bbt-fast')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, help_text in COMMANDS.items():
        if name != chosen:
            subparsers.add_parser(name, help=help_text)
            continue
        module = _module(name)
        command = subparsers.add_parser(name, help=help_text, allow_abbrev=False, description=module.DESCRIPTION)
        command.set_defaults(text=module.run)
        module.add_flags(command)
        command.add_argument("--verbose", action="store_true", help="log more")
    return parser


def _module(name: str) -> Any:
    """Return the module of a command."""
    for point in entry_points(group=GROUP, name=name):
        return point.load()
    return import_module(f".{name}", __package__)


def _with_command(arguments: list[str]) -> list[str]:
    """Put the default command first, unless the first word is a command or a flag of all of them."""
    if arguments and (not arguments[0].startswith("-") or arguments[0] in ("-h", "--help", "--version")):
        return arguments
    return ["tune", *arguments]
