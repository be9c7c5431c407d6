"""``bbt-fast tune``: options from a file and flags, a progress line, and a summary at the end."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ...export.errors import UsageError
from ..input.coerce import suggest
from ..input.options import Options
from ..input.yaml_lines import read_yaml
from .arguments import add_options, given
from .quiet import hide_progress_bars

DESCRIPTION = "Tune a prompt for a task on a frozen model, and test it."

logger = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; flags override it")
    parser.add_argument(
        "--print_config", "--print-config", action="store_true", help="print the resolved options as YAML and exit"
    )
    add_options(parser)


def run(args: argparse.Namespace) -> str:
    """Tune and return the summary; or, with --print_config, return the resolved options."""
    # Here, so that --help and mistakes in flags do not wait for PyTorch.
    from ..artifacts.folder import latest_run
    from ..tune import given_options

    written = read_config_file(Path(args.config)) if args.config else {}
    if getattr(args, "resume", None) is None and "resume" in vars(args):
        offer = "There is none below ./runs."
        if last := latest_run():
            offer = f"Resume the last one in ./runs with: bbt-fast tune --resume {last}"
        raise UsageError(f"--resume needs the folder of an unfinished run. {offer}")
    written |= given(args, get_type_hints(Options))
    options = given_options(None, written)
    if "parallel" in written:
        logger.warning("%s", _parallel(options))
    return _config_text(options) if args.print_config else _tuned(options)


def _resolved(options: Options) -> Options:
    from ..tasks.presets import resolve
    from ..tasks.task import load_task

    return resolve(options, load_task(options.task_name).preset)


def _parallel(options: Options) -> str:
    """Return a warning for users who know --parallel from the original."""
    budget, size = _resolved(options).budget or 0, options.generation_size
    return (
        f"--parallel changes nothing: populations are always one batch. --budget {budget} is {budget} evaluations, "
        f"{budget // size} generations of {size}. With the original's --parallel a budget, --eval_every and "
        f"--print_every count generations: for the same run, multiply them by {size} (--budget {budget * size})."
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the options in a YAML file.

    Raises:
        DataError: if it is not YAML, or holds a name or a value that is not valid; the message names the line.
    """
    hints = get_type_hints(Options, include_extras=True)
    written = read_yaml(path).fields()
    for name, value in written.items():
        if name not in hints:
            raise value.error(f"is no option.{suggest(name, hints)} `bbt-fast tune --help` lists them.")
    return {name: value.of(hints[name]) for name, value in written.items()}


def _config_text(options: Options) -> str:
    known = {name: value for name, value in _resolved(options).as_dict().items() if value is not None}
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True, default_flow_style=False).rstrip()


def _tuned(options: Options) -> str:
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ..report.summary import summary
    from ..run.control import Control, signals
    from ..run.progress import ProgressLine
    from ..tune import execute

    hide_progress_bars()
    control = Control()
    with signals(control), logging_redirect_tqdm([logging.getLogger("bbt_fast")]):
        return summary(execute(options, control, ProgressLine(options.print_every)))
