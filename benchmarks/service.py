"""What the network costs a generation, and how a server bears many requests; on loopback, server in this process.

    python benchmarks/service.py --model_name MODEL --requests 10000 --output benchmarks/results/NAME.json

The answers of the local and of the remote engine are compared before anything is timed; they take turns. The load test
asks for one prompt at a time on a few short texts of the demo, from several clients, and ends after so many requests.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bbt_fast.engine import Examples, load_engine
from bbt_fast.engine.remote import load_remote
from bbt_fast.export.errors import BbtFastError
from bbt_fast.service.limits import Limits
from bbt_fast.service.server import Models, build, in_background

CANDIDATES, EXAMPLES, TOKENS, PROMPT = 20, 32, 60, 50


def examples_of(count: int, length: int) -> Examples:
    """Return random examples of one length, placeholders included."""
    ids = torch.randint(5, 900, (count, length), generator=torch.Generator().manual_seed(0))
    return Examples(ids, torch.ones_like(ids), torch.full((count,), length - 2), torch.tensor([10, 20]))


def network_share(model_name: str, engine: str, rounds: int) -> dict[str, Any]:
    """Time a generation at home and over HTTP in turns.

    Raises:
        BbtFastError: if the answers differ.
    """
    service = build(Models(model_name, None, engine, "fp32", "cpu"), None, Limits())
    assert service.scorer is not None
    local = load_engine(engine, service.scorer.model, n_prompt_tokens=PROMPT, precision="fp32", device="cpu")
    examples = examples_of(EXAMPLES, TOKENS + PROMPT)
    prompts = 0.1 * torch.randn(CANDIDATES, PROMPT, local.hidden_size, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {"local": [], "remote": []}
    with in_background(service) as url:
        remote = load_remote(url, n_prompt_tokens=PROMPT).open(examples)
        sessions: dict[str, Any] = {"local": local.open(examples), "remote": remote}
        one, other = (session.evaluate(prompts) for session in sessions.values())  # also the warm-up
        if not torch.allclose(one, other, atol=1e-6):
            raise BbtFastError("the remote engine answers otherwise than the local one.")
        for _ in tqdm(range(rounds), "generations"):
            for name, session in sessions.items():
                began = time.perf_counter()
                session.evaluate(prompts)
                times[name].append(time.perf_counter() - began)
        up, down = remote.answers.up / remote.candidates, remote.answers.down / remote.candidates
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "local_ms": 1000 * middle["local"],
        "remote_ms": 1000 * middle["remote"],
        "network_share": 1 - middle["local"] / middle["remote"],
        "spread_ms": {name: [1000 * min(s), 1000 * max(s)] for name, s in times.items()},
        "up_bytes_per_query": up,
        "down_bytes_per_query": down,
    }


def load(requests: int, clients: int) -> dict[str, Any]:
    """Ask a server of the demo many times; return the rate, the latencies, and its memory at a tenth and at the end."""
    service = build(Models("demo", None, "torch", "fp32", "cpu"), None, Limits())
    seconds: list[float] = []
    memory: list[float] = []
    lock, progress = threading.Lock(), tqdm(total=requests, desc="requests")

    def client(url: str) -> None:
        session = load_remote(url, n_prompt_tokens=5).open(examples_of(2, 15))
        prompts = torch.zeros(1, 5, session.engine.hidden_size)
        for _ in range(requests // clients):
            began = time.perf_counter()
            session.evaluate(prompts)
            with lock:
                seconds.append(time.perf_counter() - began)
                progress.update()
                if len(seconds) % (requests // 10) == 0:
                    memory.append(resident_mib())

    began = time.perf_counter()
    with in_background(service) as url, ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, [url] * clients))
        took = time.perf_counter() - began
    progress.close()
    seconds.sort()
    return {
        "requests": len(seconds),
        "clients": clients,
        "requests_per_s": len(seconds) / took,
        "p50_ms": 1000 * seconds[len(seconds) // 2],
        "p99_ms": 1000 * seconds[len(seconds) * 99 // 100],
        "resident_mib_each_tenth": memory,
    }


def resident_mib() -> float:
    """Return what this process, clients and server, holds in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Run both and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="demo", help="model of the generation: a folder, a hub id, or demo")
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--rounds", type=int, default=10, help="generations of each engine")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--output", metavar="FILE", help="write the record as JSON")
    args = parser.parse_args()
    record = {
        "model": Path(args.model_name).name,
        "engine": args.engine,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "shape": {"candidates": CANDIDATES, "examples": EXAMPLES, "tokens": TOKENS + PROMPT},
        "generation": network_share(args.model_name, args.engine, args.rounds),
        "load": load(args.requests, args.clients),
    }
    text = json.dumps(record, indent=2)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
