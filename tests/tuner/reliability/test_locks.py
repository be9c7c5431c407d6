"""Two processes never write one run's folder or build one cache entry; a lock dies with its process."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bbt_fast.export import cache
from bbt_fast.export.errors import ArtifactError

HOLD = """
import sys, time
import filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[Callable[[], None]]:
    """Have another process hold a lock; yield what kills that process."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None

    def kill() -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    try:
        assert process.stdout.readline() == "held\n"
        yield kill
    finally:
        kill()
        process.stdout.close()


def test_a_run_s_folder_is_one_process_s_at_a_time_and_free_when_that_is_killed(
    tmp_path: Path, make_options: Callable[..., Any], start: Callable[..., Any]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with held_elsewhere(folder / ".lock") as kill:
        with pytest.raises(ArtifactError, match=r"another process is running in .*run\. Wait for it, or choose"):
            start(folder, make_options())
        assert [path.name for path in folder.iterdir()] == [".lock"]
        kill()
        assert start(folder, make_options()).evaluations == 96


def test_a_cache_entry_is_waited_for_and_free_when_its_builder_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path))
    key = {"model": "m"}
    found: list[Path] = []

    def build(scratch: Path) -> None:
        (scratch / "graph").write_bytes(b"graph")

    folder = cache.entry(key, build)
    folder.rename(tmp_path / f"{folder.name}.left")
    with held_elsewhere(folder.with_suffix(".lock")) as kill, caplog.at_level(logging.INFO):
        thread = threading.Thread(target=lambda: found.append(cache.entry(key, build)))
        thread.start()
        ends = time.monotonic() + 30
        while "waiting for another process that is building the graphs in" not in caplog.text:
            assert thread.is_alive()
            assert time.monotonic() < ends
            time.sleep(0.01)
        thread.join(timeout=0.1)  # one that does not wait would be done
        assert not found
        kill()
        thread.join(timeout=30)
    assert found == [folder]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left in ([folder.name], [folder.name, f"{folder.name}.lock"]), "the killed builder's half entry stays"
