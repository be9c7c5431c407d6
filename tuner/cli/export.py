"""``bbt-fast export``: build and check the graphs of a model ahead of a run."""

from __future__ import annotations

import argparse
from typing import Any

from ..input.options import Options
from .arguments import add_options
from .quiet import hide_progress_bars

OPTIONS = (
    "model_name", "allow_pickle", "task_name", "cat_or_add", "n_prompt_tokens", "algorithm", "engine",
    "inference_framework", "precision", "device",
)  # fmt: skip
"""The options that shape a graph; the task only chooses the demo's model."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the sub-command; the parsed arguments hold the function that answers them as ``text``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "export", allow_abbrev=False, description="Build and check the graphs that `bbt-fast tune` would run."
    )
    parser.set_defaults(text=run)
    add_options(parser, OPTIONS)
    return parser


def run(args: argparse.Namespace) -> str:
    """Build what `tune` with the same options would build, compare it with PyTorch, and say how that went.

    Raises:
        BbtFastError: if the model or the engine cannot be used, or the graphs are not faithful.
    """
    from ...export.cache import cache_folder
    from ..run.setup import Setup
    from ..tasks.presets import resolve
    from ..tasks.task import load_task

    hide_progress_bars()
    given = {name: value for name, value in vars(args).items() if name in OPTIONS}
    options = Options.of(**given)
    task = load_task(options.task_name)
    options = resolve(options, task.preset)
    engine = Setup(options, task).load_engine({})
    figures = [f"  {name}: {value:.3g}" for name, value in engine.parity.items()]
    return "\n".join(
        [
            f"{options.model_name}: {engine.mode} mode, {engine.n_prompt_tokens} prompt tokens, cuts at {engine.cuts}",
            f"  {engine.name} in {engine.precision} on {engine.device}, built in {engine.export_seconds:.1f} s",
            "parity with PyTorch fp32:" if figures else "no graphs: this engine runs the PyTorch model itself",
            *figures,
            f"graphs are kept in {cache_folder()}",
        ]
    )
