"""``bbt-fast export``: build and check the graphs of a model ahead of a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ...export.errors import UsageError
from ..input.options import Options
from .arguments import add_options, given
from .quiet import hide_progress_bars

DESCRIPTION = "Build and check the graphs that `bbt-fast tune` would run."

if TYPE_CHECKING:
    from ..run.setup import Setup

OPTIONS = (
    "model_name", "allow_pickle", "task_name", "cat_or_add", "n_prompt_tokens", "algorithm", "engine",
    "inference_framework", "precision", "device", "popsize", "k_shot", "seed", "data_dir",
)  # fmt: skip
"""The options that shape a graph or, with --gpu, a plan; for graphs the task only chooses the demo's model."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add_options(parser, OPTIONS)
    parser.add_argument(
        "--gpu",
        help="with --engine trt: build plans for this GPU, which need not be here: sm86, 8.6, or a card such as 'RTX "
        "3090'. They hold for the task's training examples and --seed; copy the cache folder to the card",
    )


def run(args: argparse.Namespace) -> str:
    """Build what `tune` with the same options would build, compare it with PyTorch, and return the figures."""
    from ...export.cache import cache_folder
    from ..run.setup import Setup
    from ..tasks.presets import resolve
    from ..tasks.task import load_task

    hide_progress_bars()
    options = Options.of(**given(args, OPTIONS))
    task = load_task(options.task_name)
    setup = Setup(resolve(options, task.preset), task)
    if args.gpu is not None:
        return _build_ahead(setup, args.gpu)
    engine = setup.load_engine({})
    figures = [f"  {name}: {value:.3g}" for name, value in engine.parity.items()]
    lines = [
        _title(setup, engine),
        f"  {engine.name} in {engine.precision} on {engine.device}, built in {engine.export_seconds:.1f} s",
        "parity with PyTorch fp32:" if figures else "no graphs: this engine runs the PyTorch model itself",
        *figures,
        f"graphs are kept in {cache_folder()}",
    ]
    return "\n".join(lines)


def _title(setup: Setup, engine: Any) -> str:
    n = engine.n_prompt_tokens
    return f"{setup.options.model_name}: {engine.mode} mode, {n} prompt tokens, cuts at {engine.cuts}"


def _build_ahead(setup: Setup, name: str) -> str:
    """Build the plans that a run with the same options needs on a GPU, and return where they are.

    Raises:
        UsageError: if the engine is not trt, or there is no such GPU.
    """
    from ...engine.ahead import load_ahead
    from ...export.bindings import gpu_named
    from ...export.cache import cache_folder
    from ...export.tensorrt import tensorrt_version
    from ..run.setup import CUTS

    options = setup.options
    if options.engine_name != "trt":
        raise UsageError(f"--gpu is for --engine trt, not for {options.engine_name}: other graphs run on every GPU.")
    gpu = gpu_named(name)
    engine = load_ahead(
        setup.model,
        gpu,
        mode=options.cat_or_add,
        n_prompt_tokens=options.n_prompt_tokens,
        cuts=CUTS[options.algorithm],
        precision=options.precision,
    )
    examples, size = setup.encode(setup.splits(options.seed)).train.examples, options.generation_size
    engine.prepare(examples, size)
    lines = [
        _title(setup, engine),
        f"  {len(engine.artifacts)} plans in {engine.precision} for {gpu.name}, by TensorRT {tensorrt_version()}",
        f"  for one candidate, and for {size} on the {len(examples)} examples of seed {options.seed}",
        "not run: the card compares each with PyTorch fp32 before it is used",
        f"plans are kept in {cache_folder()}: copy it to the card's, or set BBT_FAST_CACHE there",
    ]
    return "\n".join(lines)
