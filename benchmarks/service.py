"""Measure the network's share of a generation, and a server under load; both on loopback.

    python benchmarks/service.py                                              the demo
    python benchmarks/service.py --model_name MODEL --requests 10000

**The network's share.** The same engine evaluates at home (in this process) and behind a server, in turns. The script
compares the answers before it measures times. For remote generations it also reports the time outside the model: the
time until the logits arrive, minus the time of the server's session. It measures BBT, and a round of BBTv2 over the
layers with its commits.

**The load.** Several clients send requests to a server in another process: one prompt each, on a few short texts of the
demo. Sometimes they commit, register other texts, or send an invalid request. The script samples the server's memory
ten times; a line fitted to the last half shows whether the memory still grows.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bbt_fast.benchmarks.harness.memory import growth
from bbt_fast.benchmarks.harness.network import share_table
from bbt_fast.benchmarks.harness.output import publish
from bbt_fast.benchmarks.harness.record import RESULTS, record_of, spread
from bbt_fast.benchmarks.harness.server import Server, server_apart
from bbt_fast.benchmarks.harness.workload import ALGORITHMS, Workload
from bbt_fast.engine import Examples, Session, load_engine
from bbt_fast.engine.remote import RemoteSession, load_remote
from bbt_fast.export.errors import BbtFastError
from bbt_fast.service.limits import Limits
from bbt_fast.service.server import Models, build, in_background
from bbt_fast.tuner.run.setup import CUTS

TOLERANCE = 1e-6
OWNER = "127.0.0.1"
SMALL = 5
"""Prompt tokens of the load."""
COMMIT_EVERY, OPEN_EVERY, NONSENSE_EVERY = 10, 100, 50
TENTHS = 10


class Watched:
    """The evaluate() of a server's session, timed."""

    def __init__(self, session: Session) -> None:
        """Replace the session's method."""
        self._evaluate, self.seconds = session.evaluate, 0.0
        session.evaluate = self  # type: ignore[method-assign]

    def __call__(self, prompts: Tensor, layer: int = 0) -> Tensor:
        """Answer, and add the time."""
        began = time.perf_counter()
        answer = self._evaluate(prompts, layer)
        self.seconds += time.perf_counter() - began
        return answer


def network_share(models: Models, work: Workload, rounds: int) -> dict[str, Any]:
    """Time generations at home and over HTTP, in turns.

    Args:
        models: the served model.
        work: the texts and the prompts.
        rounds: the number of turns of each; for BBTv2 a turn is a round over the layers.

    Raises:
        BbtFastError: if the answers differ.
    """
    service = build(models, None, Limits())
    assert service.scorer is not None
    model, cuts, n = service.scorer.model, CUTS[work.algorithm], work.n_prompt_tokens
    layers, examples = work.tuned_layers(model), work.examples(model)
    with in_background(service) as url:
        remote = load_remote(url, n_prompt_tokens=n, cuts=cuts).open(examples)
        graph, key = remote.engine.graph, ("examples", remote.engine.graph, remote.name)
        watched = Watched(service.scorer.shelf.get(OWNER, key).session)
        home = load_engine(
            models.engine, model, n_prompt_tokens=n, cuts=cuts, precision=models.precision, device=models.device
        ).open(examples)
        shape = (work.population, n, remote.engine.hidden_size)
        prompts = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(work.seed))
        for layer in layers:  # also the warm-up
            _same(home.evaluate(prompts, layer), remote.evaluate(prompts, layer), graph)
        times: dict[str, list[float]] = {"home": [], "remote": [], "model": []}
        for turn in tqdm(range(rounds), f"{work.algorithm}, rounds"):
            for name, session in (("home", home), ("remote", remote)):
                before, began = watched.seconds, time.perf_counter()
                for layer in layers:
                    session.evaluate(prompts, layer)
                    if cuts == "layers":
                        session.commit(prompts[turn % len(prompts)], layer)
                times[name].append((time.perf_counter() - began) / len(layers))
                if name == "remote":
                    times["model"].append((watched.seconds - before) / len(layers))
        _same(home.evaluate(prompts, layers[-1]), remote.evaluate(prompts, layers[-1]), graph)
    outside = [remote - model for remote, model in zip(times["remote"], times["model"], strict=True)]
    return {
        "texts": work.examples_count,
        "tokens": int(work.lengths.sum()),
        "hidden": shape[2],
        "layers": len(layers),
        **{f"{name}_ms": spread([1000 * one for one in seconds]) for name, seconds in times.items()},
        "outside_ms": spread([1000 * one for one in outside]),
        "share_outside": sum(outside) / sum(times["remote"]),
        "remote_over_home": sum(times["remote"]) / sum(times["home"]),
        "up_bytes_per_query": remote.answers.up / remote.candidates,
        "down_bytes_per_query": remote.answers.down / remote.candidates,
    }


def _same(one: Tensor, other: Tensor, graph: str) -> None:
    if not torch.allclose(one, other, atol=TOLERANCE, rtol=0):
        raise BbtFastError(f"{graph}: the remote engine and the one at home give different answers.")


def load(server: Server, requests: int, clients: int) -> dict[str, Any]:
    """Send many requests to a server of the demo; return the rate, the latencies, and the server's memory."""
    seconds: list[float] = []
    memory: list[float] = []
    lock, progress = threading.Lock(), tqdm(total=requests, desc="requests")

    def client(number: int) -> None:
        engine, nonsense = load_remote(server.url, n_prompt_tokens=SMALL, cuts="layers"), httpx.Client(trust_env=False)
        session = engine.open(_texts(number))
        prompts = torch.zeros(1, SMALL, engine.hidden_size)
        for count in range(requests // clients):
            if count % OPEN_EVERY == 0:
                session = engine.open(_texts(clients * count + number))
            if count % COMMIT_EVERY == 0:
                session.commit(prompts[0] + count / requests, number % engine.n_layers)
            if count % NONSENSE_EVERY == 0:
                nonsense.post(f"{server.url}{engine.path('infer')}", content=b"{}")
            note(_timed(session, prompts))
        nonsense.close()

    def note(took: float) -> None:
        with lock:
            seconds.append(took)
            progress.update()
            if len(seconds) % (requests // TENTHS) == 0:
                memory.append(server.resident_mib())

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    took = time.perf_counter() - began
    progress.close()
    return {
        "requests": len(seconds),
        "clients": clients,
        "requests_per_s": len(seconds) / took,
        **{f"p{part}_ms": 1000 * float(np.percentile(seconds, part)) for part in (50, 99)},
        "server_mib": memory,
        "growth_kib_per_1000_requests": 1024 * growth(memory) * 1000 / (requests / TENTHS),
    }


def _timed(session: RemoteSession, prompts: Tensor) -> float:
    began = time.perf_counter()
    session.evaluate(prompts, 0)
    return time.perf_counter() - began


def _texts(seed: int) -> Examples:
    """Return two random texts of ten tokens after the placeholders."""
    ids = torch.randint(5, 900, (2, 10 + SMALL), generator=torch.Generator().manual_seed(seed))
    return Examples(ids, torch.ones_like(ids), torch.full((2,), 8 + SMALL), torch.tensor([10, 20]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="demo", help="model of the generation: a folder, a hub id, or demo")
    parser.add_argument("--task", default="sst2", help="whose text lengths")
    parser.add_argument("--examples", type=int, default=0, help="texts; 0 for 16 of each class")
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--n_prompt_tokens", type=int, default=50)
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--output", type=Path, help="file of the record (default: in benchmarks/results)")
    given = parser.parse_args(arguments)
    name = Path(given.model_name).name
    models = Models(given.model_name, None, given.engine, given.precision, given.device)
    generation = {}
    for algorithm in ALGORITHMS:
        work = Workload(
            name, algorithm, given.task, given.population, given.examples, given.n_prompt_tokens, device=given.device
        )
        generation[algorithm] = network_share(models, work, given.rounds)
    with server_apart("--model_name", "demo", "--engine", given.engine, "--precision", given.precision) as server:
        under_load = load(server, given.requests, given.clients)
    about = {key: getattr(given, key) for key in ("task", "engine", "precision", "population", "rounds")}
    record = record_of("service", given.device, model=name, **about, generation=generation, load=under_load)
    path = given.output or RESULTS / f"service-{name}.json"
    print(publish(record, path, share_table))


if __name__ == "__main__":
    main()
