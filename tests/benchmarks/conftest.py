"""Fixtures of the benchmarks' tests.

local    runs a contender in this process, in the place of ``harness.pool.own_process``: seconds instead of minutes.
toy      a workload of a few prompts and texts.
"""

from __future__ import annotations

from typing import Any

import pytest

from bbt_fast.benchmarks.harness.worker import Served, WorkerError, obey
from bbt_fast.benchmarks.harness.workload import Workload


class Local:
    """Obeys commands in this process."""

    def __init__(self, name: str, workload: Workload, cache: str | None = None) -> None:
        del cache
        self.served = Served(name, workload)

    def __call__(self, command: str, seconds: float | None = None) -> Any:
        self.send(command)
        return self.receive(seconds)

    def send(self, command: str) -> None:
        self.sent = command

    def receive(self, seconds: float | None = None) -> Any:
        if seconds is not None and seconds < 0:
            raise WorkerError("skipped", "the time was up before it was ready")
        ok, answer = obey(self.served, self.sent)
        if not ok:
            raise WorkerError(*answer)
        return answer

    def close(self) -> None:
        """There is no process to end."""


@pytest.fixture
def local() -> type[Local]:
    """The class that runs a contender in this process."""
    return Local


@pytest.fixture
def toy() -> Workload:
    """A workload of a few prompts and texts."""
    return Workload("toy", "bbt", population=4, n_examples=4, n_prompt_tokens=5, intrinsic_dim=10)
