"""One method with one seed, in a process of its own: so that peaks of memory are its own, and so is what breaks.

Importing PyTorch and `transformers` takes longer than many a step. Where the system can, the processes are forked from
one that has imported them and has done nothing else.
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
    """Run and return what a record keeps.

    Args:
        method: a key of ``METHODS``.
        options: of one seed; ``output_dir`` is where BBT and BBTv2 keep their run.
        setting: the hyper-parameters.
        test: whether the test set is looked at.
        max_epochs: see ``Case``.

    Raises:
        BbtFastError: see ``bbt_fast.tune``; and for a package that is not installed.
    """
    algorithm = method if method in ("bbt", "bbtv2") else options.algorithm
    resolved = resolve(options.changed(algorithm=algorithm), load_task(options.task_name).preset)
    case = Case(resolved, setting, max_epochs)
    outcome = METHODS[method].run(case, test)
    examples = {part: len(case.rows(part)) for part in ("train", "dev", "test")}
    values = asdict(outcome)
    return values | {"setting": case.setting, "examples": examples, "metric": case.task.metric}


def figures_apart(method: str, options: Options, setting: Setting, **how: Any) -> dict[str, Any]:
    """Do what ``figures`` does in a fresh process, and let its errors through."""
    if options.output_dir:
        Path(options.output_dir).parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, _processes(), hide_progress_bars) as pool:
        return pool.submit(figures, method, options, setting, **how).result()


@cache
def _processes() -> Any:
    """Return how processes are made."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    # CUDA cannot be used after a fork if it was before: with this PyTorch looks for a GPU without it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
