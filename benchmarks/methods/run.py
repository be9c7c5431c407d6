"""One method with one seed, in its own process, which isolates its peak memory and its failures.

Importing PyTorch and `transformers` takes longer than many steps. If the system can, it forks the processes from one
that has only imported them.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from bbt_fast.benchmarks.methods.method import Case, Setting
from bbt_fast.benchmarks.methods.table import METHODS
from bbt_fast.tuner.cli.quiet import hide_progress_bars
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task


def figures(
    method: str, options: Options, setting: Setting, *, test: bool, max_epochs: int | None = None
) -> dict[str, Any]:
    """Run a method and return its entry of the record.

    Args:
        method: a key of ``METHODS``.
        options: of one seed; ``output_dir`` is the folder of a run of BBT or BBTv2.
        setting: the hyper-parameters.
        test: whether to read the test set.
        max_epochs: see ``Case``.

    Raises:
        BbtFastError: see ``bbt_fast.tune``; also if a package is not installed.
    """
    algorithm = method if method in ("bbt", "bbtv2") else options.algorithm
    resolved = resolve(options.changed(algorithm=algorithm), load_task(options.task_name).preset)
    case = Case(resolved, setting, max_epochs)
    outcome = METHODS[method].run(case, test)
    examples = {part: len(case.rows(part)) for part in ("train", "dev", "test")}
    values = asdict(outcome)
    return values | {"setting": case.setting, "examples": examples, "metric": case.task.metric}


def figures_apart(method: str, options: Options, setting: Setting, **how: Any) -> dict[str, Any]:
    """Call ``figures`` in a fresh process; its errors pass through."""
    if options.output_dir:
        Path(options.output_dir).parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, _processes(), hide_progress_bars) as pool:
        return pool.submit(figures, method, options, setting, **how).result()


@cache
def _processes() -> Any:
    """Return the context that starts processes."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    # A process cannot use CUDA if it was initialised before the fork. With this, PyTorch detects a GPU without CUDA.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
