"""Whole runs on several workers end as on one, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from bbt_fast.export.errors import DeviceError, UsageError
from bbt_fast.tuner import tune as tuner
from bbt_fast.tuner.artifacts.prompt import read_prompt
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.control import RunInterruptedError
from bbt_fast.tuner.run.seeds import child_name

ROUNDING = 1e-6
"""What a loss may differ by where a share was answered in another shape."""
KILLS = 7
Tiny = Callable[..., dict[str, Any]]


def journal(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's journal."""
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def check_same(folder: Path, other: Path) -> None:
    """The same candidates, losses and prompt; or another search from where rounding has decided a rank."""
    if check_same_generations(journal(folder), journal(other)):
        assert len(journal(folder)) == len(journal(other))
        assert np.array_equal(read_prompt(folder)[0], read_prompt(other)[0])


def check_same_generations(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """Compare journals line by line; say whether they are the same to the end of the shorter.

    A matrix product's last bit depends on how many rows it has, so workers may rank two candidates the other way round
    whose losses are equal but for that. From there on the searches differ, as the docs say.
    """
    assert mine[0] == theirs[0]
    tied = False
    for line, its in zip(mine[1:], theirs[1:], strict=False):
        if line.get("candidates") != its.get("candidates"):
            assert tied, f"other candidates from {line} on, though no two losses were alike before"
            return False
        for name in ("fitness", "score"):
            np.testing.assert_allclose(line.get(name, 0), its.get(name, 0), atol=ROUNDING, rtol=0)
        gaps = np.diff(np.sort(line.get("fitness", [0.0, 1.0])))
        tied = tied or bool(gaps.min() < 2 * ROUNDING)
    return True


@contextmanager
def killing(seed: int, times: int, how: Callable[[random.Random], signal.Signals], begun: Path) -> Iterator[list[int]]:
    """Kill random workers at random instants once a file is there; what was killed is in the list.

    The pauses are long enough for most workers to start again: one that fails to thrice is left out.
    """
    draw, over, killed = random.Random(seed), threading.Event(), list[int]()

    def work() -> None:
        while len(killed) < times and not over.wait(draw.uniform(1.0, 6.0)):
            if not begun.exists():
                continue
            found = [pid for pid in descendants(os.getpid()) if pid not in killed and is_worker(pid)]
            if found:
                victim = draw.choice(found)
                os.kill(victim, how(draw))
                killed.append(victim)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_workers_are_refused_where_they_make_no_sense() -> None:
    with pytest.raises(UsageError, match="ray_address needs --workers: give both or neither"):
        Options.of(ray_address="auto")
    with pytest.raises(UsageError, match="omit --workers with --engine remote"):
        Options.of(engine="remote", url="http://localhost:1", workers=2)
    with pytest.raises(UsageError, match="each of the --workers gets a GPU of its own: use --device cuda"):
        Options.of(device="cuda:1", workers=2)
    with pytest.raises(UsageError, match="workers is 0, but must be at least 1"):
        Options.of(workers=0)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("algorithm", ["bbt", pytest.param("bbtv2", marks=pytest.mark.cluster)])
def test_a_run_on_two_workers_is_that_on_one(algorithm: str, tiny: Tiny, tmp_path: Path) -> None:
    options = tiny(algorithm=algorithm)
    alone = tuner.tune(**options, output_dir=str(tmp_path / "one"))
    several = tuner.tune(**options, output_dir=str(tmp_path / "two"), workers=2)
    check_same(tmp_path / "two", tmp_path / "one")
    assert (several.zero_shot, several.tuned) == (alone.zero_shot, alone.tuned)
    assert several.device == "2 workers with 1 CPU thread each"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_workers_killed_again_and_again_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    options = tiny(budget=8 * 20_000, max_time=None, eval_every=800)
    with killing(1, KILLS, lambda _: signal.SIGKILL, tmp_path / "two" / "journal.jsonl") as killed:
        done = threading.Event()

        def stop() -> None:
            while len(killed) < KILLS and not done.is_set():
                time.sleep(0.1)
            (tmp_path / "two" / "stop").touch()

        watcher = threading.Thread(target=stop)
        watcher.start()
        with pytest.raises(RunInterruptedError):
            tuner.tune(**options, output_dir=str(tmp_path / "two"), workers=2)
        done.set()
        watcher.join()
    assert len(killed) == KILLS
    lines = journal(tmp_path / "two")
    generations = [line for line in lines if line["kind"] == "generation"]
    tuner.tune(**tiny(eval_every=800, budget=8 * len(generations)), output_dir=str(tmp_path / "one"))
    check_same_generations(lines, journal(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_seeds_side_by_side_are_those_one_after_another(tiny: Tiny, tmp_path: Path) -> None:
    options = tiny(seeds=(8, 13, 42))
    one = tuner.tune_seeds(**options, output_dir=str(tmp_path / "one"))
    two = tuner.tune_seeds(**options, output_dir=str(tmp_path / "two"), workers=2)
    assert [result.tuned for result in two.results] == [result.tuned for result in one.results]
    assert two.spreads == one.spreads
    for seed in (8, 13, 42):
        check_same(tmp_path / "two" / child_name(seed), tmp_path / "one" / child_name(seed))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_seeds_whose_workers_are_killed_and_that_are_stopped_go_on(tiny: Tiny, tmp_path: Path) -> None:
    options, folder = tiny(seeds=(8, 13), budget=8 * 1500, eval_every=4000), tmp_path / "two"
    with killing(2, 2, lambda _: signal.SIGKILL, folder / child_name(8) / "journal.jsonl") as killed:

        def stop() -> None:
            while len(killed) < 2:
                time.sleep(0.05)
            time.sleep(2)
            (folder / "stop").touch()

        watcher = threading.Thread(target=stop)
        watcher.start()
        with pytest.raises(RunInterruptedError, match=f"bbt-fast tune --resume {folder}"):
            tuner.tune_seeds(**options, output_dir=str(folder), workers=2)
        watcher.join()
    assert len(killed) == 2
    assert not (folder / "result.json").exists()
    tuner.tune_seeds(resume=str(folder), workers=2)
    tuner.tune_seeds(**options, output_dir=str(tmp_path / "one"))
    for seed in (8, 13):
        check_same(folder / child_name(seed), tmp_path / "one" / child_name(seed))


@pytest.mark.slow
@pytest.mark.cluster
def test_work_that_ends_every_worker_is_an_error_in_the_end(cluster: None, roberta: PreTrainedModel) -> None:
    from bbt_fast.engine.pool import Job
    from bbt_fast.engine.workers import load_workers

    del cluster
    engine = load_workers("torch", roberta, workers=1, n_prompt_tokens=5, precision="fp32", device="cpu")
    try:
        with pytest.raises(DeviceError, match="3 workers failed one after another on the same work"):
            engine.pool.run([Job("_fetch", (Deadly(),))])
    finally:
        engine.close()


class Deadly:
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """A function that starts a cluster's head in processes of its own, and returns its address."""
    pytest.importorskip("ray")
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    patch = pytest.MonkeyPatch()
    for name, value in {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }.items():  # fmt: skip
        patch.setenv(name, value)
    folders = []

    def start() -> str:
        folder = Path("/tmp") / f"bf{secrets.token_hex(3)}"  # the path of a socket may be no longer than 107 characters
        folders.append(folder)
        port = 20000 + secrets.randbelow(10000)
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--num-cpus=2"]
        quiet = ["--include-dashboard=false", "--object-store-memory=80000000", f"--temp-dir={folder}"]
        subprocess.run([*ray, *quiet, "--node-ip-address=127.0.0.1"], check=True, capture_output=True)
        return f"127.0.0.1:{port}"

    start.stop = lambda: kill_all(folders[-1])  # type: ignore[attr-defined]
    yield start
    for folder in folders:
        kill_all(folder)
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    patch.undo()


def kill_all(folder: Path) -> None:
    """End the head and Ray's other processes of a cluster, known by its folder, as a power cut would."""
    for name in ("gcs_server", "raylet", ""):
        found = subprocess.run(["pgrep", "-f", f"{name}.*{folder}"], capture_output=True, text=True, check=False).stdout
        for pid in map(int, found.split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_whose_cluster_dies_ends_with_an_error_that_says_so_and_goes_on_later(
    head: Any, tiny: Tiny, tmp_path: Path
) -> None:
    options, folder = tiny(budget=8 * 400, eval_every=800), tmp_path / "two"

    def command(address: str) -> list[str]:
        flags = [f"--{name}={value}" for name, value in options.items() if name != "plots"]
        program = "import sys; from bbt_fast.tuner.cli.main import main; sys.exit(main(sys.argv[1:]))"
        asked = ["--no-plots", "--workers=2", f"--ray_address={address}", f"--output_dir={folder}"]
        return [sys.executable, "-c", program, *flags, *asked]

    run = subprocess.Popen(command(head()), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not (folder / "journal.jsonl").exists() or len(journal(folder)) < 10:
        assert time.monotonic() < limit
        assert run.poll() is None, run.stderr.read()  # type: ignore[union-attr]
        time.sleep(0.05)
    head.stop()
    out, said = run.communicate(timeout=60)
    assert run.returncode == 2, (out, said)
    assert "bbt-fast: the head of the Ray cluster, " in said
    assert "run the same command again to resume" in said
    kept = len(journal(folder))
    assert kept >= 10
    again = subprocess.run(command(head()), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    tuner.tune(**options, output_dir=str(tmp_path / "one"))
    check_same(folder, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_of_its_own_cluster_leaves_no_process_behind(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    program = "import sys, json; from bbt_fast.tuner.tune import tune; tune(**json.loads(sys.argv[1]))"
    options = tiny(workers=2, budget=8 * 5000, output_dir=str(tmp_path / "run"))
    run = subprocess.Popen([sys.executable, "-c", program, json.dumps(options)], start_new_session=True)
    limit = time.monotonic() + 120
    while not (tmp_path / "run" / "journal.jsonl").exists() or len(journal(tmp_path / "run")) < 5:
        assert time.monotonic() < limit
        time.sleep(0.1)
    mine = [pid for pid in descendants(run.pid) if is_worker(pid) or is_server(pid)]  # Ray's agents take a minute more
    assert len(mine) == 4
    run.send_signal(signal.SIGTERM)
    run.wait(timeout=60)
    limit = time.monotonic() + 120
    while left := [pid for pid in mine if alive(pid)]:
        assert time.monotonic() < limit, left
        time.sleep(0.2)


def descendants(pid: int) -> list[int]:
    """The processes that descend from one."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [each for child in map(int, found) for each in (child, *descendants(child))]


def is_worker(pid: int) -> bool:
    """Whether a process is a worker of Ray."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Host")
    except OSError:
        return False


def is_server(pid: int) -> bool:
    """Whether a process is one of Ray's servers."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].endswith((b"/raylet", b"/gcs_server"))
    except OSError:
        return False


def alive(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
