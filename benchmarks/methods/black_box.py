"""BBT and BBTv2 (Sun et al. 2022, 2022b): this package's ``tune``, on any engine, with the task's preset."""

from __future__ import annotations

from functools import partial

import bbt_fast
from bbt_fast.benchmarks.harness.runs import finished_run
from bbt_fast.benchmarks.methods.method import Case, Outcome, Traffic, own_peak

WHERE = ("engine", "precision", "device")
"""Options that make steps faster or slower, so runs and records may continue with others; each step names its own."""


def run(case: Case, test: bool, algorithm: str) -> Outcome:
    """Tune, resume an interrupted run, or read a finished one; ``tune`` tests once at the end."""
    del test
    options = case.options.changed(algorithm=algorithm, **dict(case.setting))
    result = finished_run(options, WHERE) or bbt_fast.tune(options)
    queries, memory = result.queries, result.memory
    notes = {"engine": result.engine, "precision": result.precision, "zero_shot": result.zero_shot.test}
    notes |= {"queries_on_dev": queries.dev, "prompt_up_bytes": queries.prompt_up_bytes, "budget": result.budget}
    server = own_peak(case.device) if result.engine == "torch" else None
    traffic = Traffic(queries.train, queries.z_up_bytes, queries.logits_down_bytes)
    return Outcome(
        result.tuned.dev, None, result.tuned.test, result.seconds.tune, memory.user, server or memory.server, traffic,
        notes,
    )  # fmt: skip


bbt, bbtv2 = partial(run, algorithm="bbt"), partial(run, algorithm="bbtv2")
