"""One thread for the model, and fair turns: clients are served round and round, one request of each at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .errors import RefusedError
from .limits import Limits

T = TypeVar("T")


@dataclass
class Job(Generic[T]):
    """A request that waits for its turn."""

    work: Callable[[], T]
    gone: Callable[[], Awaitable[bool]]
    """Says whether whoever asked has left."""
    answer: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Turns:
    """Runs jobs on one thread, since engines bind streams and gradient modes to theirs."""

    def __init__(self, limits: Limits) -> None:
        """Take the limits; ``run`` must be running for anything to happen."""
        self._limits = limits
        self._queues: OrderedDict[str, deque[Job[Any]]] = OrderedDict()
        self._open: dict[str, int] = {}
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting(self) -> int:
        """How many requests wait or run."""
        return sum(self._open.values())

    async def take(self, owner: str, work: Callable[[], T], gone: Callable[[], Awaitable[bool]]) -> T:
        """Wait for a turn and return what the work does.

        Raises:
            RefusedError: if the owner has too many requests open, or its turn does not come in time.
        """
        if self._open.get(owner, 0) >= self._limits.max_waiting:
            raise RefusedError(
                429, "busy", f"{self._limits.max_waiting} requests of this client are open already.", retry_after=1
            )
        job = Job(work, gone)
        self._open[owner] = self._open.get(owner, 0) + 1
        self._queues.setdefault(owner, deque()).append(job)
        self._work.set()
        try:
            async with asyncio.timeout(self._limits.turn_timeout):
                answer: T = await job.answer
        except TimeoutError:
            raise RefusedError(503, "busy", "the model is busy: no turn came in time.", retry_after=5) from None
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]
        return answer

    async def run(self) -> None:
        """Do the jobs until cancelled; what runs is finished first."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                job = self._next()
                if job is None:
                    self._work.clear()
                    await self._work.wait()
                elif not job.answer.done() and not await job.gone():
                    await self._do(loop, job)
        finally:
            await asyncio.to_thread(self._thread.shutdown)

    async def _do(self, loop: asyncio.AbstractEventLoop, job: Job[Any]) -> None:
        running = loop.run_in_executor(self._thread, job.work)
        with suppress(Exception):  # it is the answer's
            await asyncio.shield(running)
        if job.answer.done():  # nobody waits any more
            return
        error = running.exception()
        if error is None:
            job.answer.set_result(running.result())
        else:
            job.answer.set_exception(error)

    def _next(self) -> Job[Any] | None:
        """Return the first job of whoever's turn it is, and put that one last."""
        if not self._queues:
            return None
        owner, queue = self._queues.popitem(last=False)
        job = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return job
