"""Measure what tuning costs the user and the server if the model is behind an API, as in Table 3 of Sun et al. 2022.

    python benchmarks/efficiency.py                                           the demo
    python benchmarks/efficiency.py --model_name MODEL --task_name sst2 --data_dir DIR --budget 400

The script runs each search twice, at home (in one process) and against `bbt-fast serve` in another process. Both must
find the same prompt. The table always contains the demo. A query is one candidate on all training examples. Bytes are
counted on the wire and include HTTP headers. For a client that sends z and receives losses, they come from one request
of a population. Memory is the peak of each process, libraries included, next to what the search itself holds. CPU time
is that of whole processes, start and test included; other programs disturb it less than the training time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bbt_fast.benchmarks.harness.memory import KIB, MIB
from bbt_fast.benchmarks.harness.network import efficiency_table
from bbt_fast.benchmarks.harness.output import publish
from bbt_fast.benchmarks.harness.record import RESULTS, record_of, say
from bbt_fast.benchmarks.harness.server import Server, server_apart
from bbt_fast.benchmarks.harness.workload import ALGORITHMS
from bbt_fast.engine import Examples
from bbt_fast.engine.calls import Traffic
from bbt_fast.engine.remote import load_remote
from bbt_fast.engine.wire import Array
from bbt_fast.export.errors import BbtFastError
from bbt_fast.tuner.artifacts.prompt import read_prompt
from bbt_fast.tuner.artifacts.result import Result, read_result
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import CUTS
from bbt_fast.tuner.tasks.presets import DEMO


def measure(task: dict[str, Any], algorithm: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run a task at home and against a server, and return the costs of both.

    Raises:
        BbtFastError: if the two prompts differ, or a run fails.
    """
    model = task.get("model_name") or DEMO
    computing = ["--engine", given.engine, "--precision", given.precision]
    with tempfile.TemporaryDirectory() as folder:
        asked = task | {"algorithm": algorithm, "budget": given.budget, "max_test_examples": given.max_test_examples}
        flags = [text for key, value in asked.items() if value is not None for text in (f"--{key}", str(value))]
        home = Path(folder) / "home"
        home_peak, home_cpu = _tuned(home, *flags, *computing)
        with server_apart("--model_name", model, *computing) as server:
            away = Path(folder) / "away"
            user_peak, user_cpu = _tuned(away, *flags, "--engine", "remote", "--url", server.url)
            server_peak, server_cpu = server.peak_mib(), server.cpu_seconds()
            one, other = (read_prompt(place)[0] for place in (home, away))
            if not one.equal(other):
                raise BbtFastError(f"{algorithm} on {model} finds different prompts at home and over the network.")
            local, remote = read_result(home), read_result(away)
            small = _with_z(server, algorithm, remote)
    return {
        "model": Path(model).name,
        "task": remote.task,
        "algorithm": algorithm,
        "examples": remote.examples["train"],
        "queries": remote.queries.train,
        "user_mib": {"search": remote.memory.user, "projection": remote.memory.projection, "process": user_peak},
        "server_mib": server_peak,
        "home_mib": home_peak,
        "texts_up_bytes": remote.queries.text_up_bytes,
        "per_query_bytes": {
            "prompts_up": remote.queries.prompt_up_bytes,
            "logits_down": remote.queries.logits_down_bytes,
            **small,
        },
        "tune_seconds": {"home": local.seconds.tune, "remote": remote.seconds.tune},
        "cpu_seconds": {"home": home_cpu, "user": user_cpu, "server": server_cpu},
    }


def _tuned(folder: Path, *flags: str) -> tuple[float, float]:
    """Tune in a separate process; return its peak memory in MiB and its processor time in seconds.

    Raises:
        BbtFastError: if it fails.
    """
    command = [sys.executable, "-m", "bbt_fast.tuner.cli", *flags, "--no-plots", "--output_dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BbtFastError(f"a run failed: {' '.join(command)}")
    return used.ru_maxrss * KIB / MIB, used.ru_utime + used.ru_stime


def _with_z(server: Server, algorithm: str, run: Result) -> dict[str, float]:
    """Return the bytes per query of a client that sends z and asks for losses."""
    defaults, traffic = Options(), Traffic()
    population, dim, cuts = defaults.popsize, defaults.intrinsic_dim, CUTS[algorithm]
    engine = load_remote(server.url, mode=run.mode, n_prompt_tokens=defaults.n_prompt_tokens, cuts=cuts)
    n, classes = run.examples["train"], len(run.classes)
    ids = torch.full((n, 10 + engine.n_prompt_tokens), 5)
    texts = Examples(ids, torch.ones_like(ids), torch.full((n,), 8), torch.arange(classes))
    tensors: dict[str, Array] = {key: value.numpy() for key, value in vars(texts).items() if value is not None}
    tensors["labels"] = (torch.arange(n) % classes).numpy()

    def ask(call: str, sent: dict[str, Array], **parameters: Any) -> dict[str, Any]:
        return engine.caller.post(engine.path(call), sent, parameters, traffic).parameters

    names = ask("examples", tensors) | ask("projections", {}, kind="normal", seed=0, layer=0, dim=dim, scale=0.1)
    z = torch.randn(population, dim, generator=torch.Generator().manual_seed(0)).numpy()
    before = Traffic(traffic.up, traffic.down)
    ask("infer", {"z": z}, examples=names["examples"], projection=names["projection"], loss="ce", layer=0)
    return {
        "z_up": (traffic.up - before.up) / population,
        "losses_down": (traffic.down - before.down) / population,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", help="a second model beside the demo: a hub id or a folder")
    parser.add_argument("--task_name", default="sst2", help="its task")
    parser.add_argument("--data_dir", help="folder of the task's data (default: from the hub)")
    parser.add_argument("--budget", type=int, default=400, help="queries of each run")
    parser.add_argument("--max_test_examples", type=int, default=100)
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--output", type=Path, help="file of the record (default: in benchmarks/results)")
    given = parser.parse_args(arguments)
    tasks: list[dict[str, Any]] = [{"task_name": DEMO}]
    if given.model_name:
        tasks.append({key: getattr(given, key) for key in ("task_name", "model_name", "data_dir")})
    rows = []
    for task in tasks:
        for algorithm in given.algorithms:
            say(f"{task.get('model_name') or DEMO}, {algorithm}")
            rows.append(measure(task, algorithm, given))
    record = record_of(
        "efficiency", "cpu", engine=given.engine, precision=given.precision, budget=given.budget, rows=rows
    )
    path = given.output or RESULTS / f"efficiency-{rows[-1]['model']}.json"
    print(publish(record, path, efficiency_table))


if __name__ == "__main__":
    main()
