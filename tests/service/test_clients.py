"""Several clients at once, turns, and a server or a client that is killed in the middle of a run."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.requests import ClientDisconnect

from bbt_fast import tune
from bbt_fast.service.errors import RefusedError
from bbt_fast.service.limits import Limits
from bbt_fast.service.turns import Turns
from bbt_fast.tuner.artifacts.prompt import read_prompt

SMALL: dict[str, Any] = {
    "popsize": 4, "n_prompt_tokens": 5, "k_shot": 2, "intrinsic_dim": 20, "max_test_examples": 8, "plots": False,
}  # fmt: skip


def test_turns_go_round_between_clients() -> None:
    async def scene() -> list[str]:
        turns, done = Turns(Limits(max_waiting=9)), []
        running = asyncio.create_task(turns.run())

        async def never() -> bool:
            return False

        jobs = [
            asyncio.create_task(turns.take(owner, lambda owner=owner, n=n: done.append(f"{owner}{n}"), never))
            for owner, count in (("a", 4), ("b", 2), ("c", 1))
            for n in range(count)
        ]
        await asyncio.gather(*jobs)
        running.cancel()
        return done

    assert asyncio.run(scene()) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_who_has_left_is_passed_over_and_errors_reach_who_asked() -> None:
    async def scene() -> tuple[list[int], int]:
        turns, done = Turns(Limits()), []
        running = asyncio.create_task(turns.run())

        async def gone() -> bool:
            return True

        async def here() -> bool:
            return False

        def fail() -> None:
            raise KeyError("wrong")

        left = asyncio.create_task(turns.take("a", lambda: done.append(1), gone))
        with pytest.raises(KeyError, match="wrong"):
            await turns.take("b", fail, here)
        await turns.take("b", lambda: done.append(2), here)
        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(left, 10)
        running.cancel()
        return done, turns.waiting

    assert asyncio.run(scene()) == ([2], 0)


def test_the_time_limit_of_a_turn_is_for_the_wait_and_not_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[asyncio.Timeout] = []

    def limit(seconds: float) -> asyncio.Timeout:
        """A time limit that ends when the test says so."""
        limits.append(asyncio.Timeout(None))
        return limits[-1]

    async def scene() -> tuple[str, list[str]]:
        turns, done, began, go_on = Turns(Limits()), [], threading.Event(), threading.Event()
        running, now = asyncio.create_task(turns.run()), asyncio.get_running_loop().time()

        async def never() -> bool:
            return False

        def slow() -> str:
            began.set()
            go_on.wait(30)
            return "done"

        def slow_elsewhere() -> None:
            raise TimeoutError("another server is slow")

        working = asyncio.create_task(turns.take("a", slow, never))
        assert await asyncio.to_thread(began.wait, 30)
        with pytest.raises(RuntimeError, match="finished Timeout"):
            limits[0].reschedule(now)
        waiting = asyncio.create_task(turns.take("b", lambda: done.append("b"), never))
        while len(limits) < 2:
            await asyncio.sleep(0)
        limits[1].reschedule(now)
        with pytest.raises(RefusedError, match="no turn came in time"):
            await waiting
        go_on.set()
        with pytest.raises(TimeoutError, match="another server is slow"):
            await asyncio.wait_for(turns.take("c", slow_elsewhere, never), 10)
        running.cancel()
        return await working, done

    monkeypatch.setattr("bbt_fast.service.turns.asyncio.timeout", limit)
    assert asyncio.run(scene()) == ("done", [])


def start(port: int) -> subprocess.Popen[bytes]:
    """Start a server process on the demo, and wait until it is ready."""
    command = [sys.executable, "-m", "bbt_fast.tuner.cli", "serve", "--model_name", "demo", "--engine", "torch"]
    server = subprocess.Popen([*command, "--precision", "fp32", "--port", str(port)], stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", trust_env=False).status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(0.2)
    server.kill()
    server.wait()
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_a_server_killed_in_the_middle_costs_a_retry_and_a_killed_client_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = {"algorithm": "bbtv2", "budget": 960, "seed": 5, **SMALL}
    local = tune(engine="torch", precision="fp32", output_dir="local", **options)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(port)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bbt_fast.tuner.cli", "--engine", "remote", "--url", url, "--budget", "100000"]
    other = subprocess.Popen([*command, "--output_dir", "other"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    found: list[Any] = []
    tuning = partial(tune, engine="remote", url=url, output_dir="remote", **options)
    run = threading.Thread(target=lambda: found.append(tuning()), daemon=True)
    run.start()
    journal = Path("remote/journal.jsonl")
    try:
        while not journal.exists() or journal.read_text().count("\n") < 8:
            assert run.is_alive()
            time.sleep(0.02)
        other.kill()
        other.wait()
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        assert run.is_alive(), "the run ended before the server did"
        server = start(port)
        run.join(240)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, -signal.SIGTERM)  # uvicorn stops in order, then passes the signal on
    assert found[0].tuned == local.tuned
    assert read_prompt(Path("remote"))[0].equal(read_prompt(Path("local"))[0])
