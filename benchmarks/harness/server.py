"""`bbt-fast serve` in a separate process, and the memory and CPU time of that process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx

from bbt_fast.export.errors import DeviceError

from .memory import memory_of

START_SECONDS, STOP_SECONDS = 120, 60
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def resident_mib(self) -> float:
        """Return its memory now."""
        return memory_of(self.pid, "VmRSS")

    def peak_mib(self) -> float:
        """Return its peak memory so far."""
        return memory_of(self.pid, "VmHWM")

    def cpu_seconds(self) -> float:
        """Return its processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server_apart(*flags: str) -> Iterator[Server]:
    """Start `bbt-fast serve` with flags, and stop it with a signal.

    Raises:
        DeviceError: if it does not start.
    """
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bbt_fast.tuner.cli", "serve", "--port", str(port), *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        url = f"http://{LOOPBACK}:{port}"
        _wait(process, url, command)
        yield Server(url, process.pid)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], url: str, command: list[str]) -> None:
    ends = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < ends:
        try:
            if httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise DeviceError(f"the server did not start. Run it by hand to see why: {' '.join(command)}")
