"""A thread for the model, with round-robin scheduling: one request per client in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect

from .errors import RefusedError
from .limits import Limits

T = TypeVar("T")


@dataclass
class Job(Generic[T]):
    """A request that waits for its turn."""

    work: Callable[[], T]
    gone: Callable[[], Awaitable[bool]]
    """Returns whether the client has disconnected."""
    turn: asyncio.Future[asyncio.Future[T]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Holds the running work, once it has begun."""


class Turns:
    """Runs jobs on one thread, since engines bind streams and gradient modes to it."""

    def __init__(self, limits: Limits) -> None:
        """Take the limits; jobs run only while ``run`` does."""
        self._limits = limits
        self._queues: OrderedDict[str, deque[Job[Any]]] = OrderedDict()
        self._open: dict[str, int] = {}
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting(self) -> int:
        """The number of waiting and running requests."""
        return sum(self._open.values())

    async def take(self, owner: str, work: Callable[[], T], gone: Callable[[], Awaitable[bool]]) -> T:
        """Wait for a turn and return the result of the work.

        Raises:
            RefusedError: if the owner has too many open requests, or waits too long for the turn.
            ClientDisconnect: if the client has left before the turn.
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
            running = await self._turn(job)
            return await asyncio.shield(running)  # a cancelled request must not cancel it: `run` waits for it
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]

    async def run(self) -> None:
        """Run jobs until cancelled, then finish the current one."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                job = self._next()
                if job is None:
                    self._work.clear()
                    await self._work.wait()
                else:
                    await self._do(loop, job)
        finally:
            await asyncio.to_thread(self._thread.shutdown)

    async def _turn(self, job: Job[T]) -> asyncio.Future[T]:
        try:
            async with asyncio.timeout(self._limits.turn_timeout):
                return await job.turn
        except TimeoutError:
            raise RefusedError(503, "busy", "the model is busy: no turn came in time.", retry_after=5) from None

    async def _do(self, loop: asyncio.AbstractEventLoop, job: Job[Any]) -> None:
        gone = await job.gone()
        if job.turn.done():  # it has waited too long
            return
        if gone:
            job.turn.set_exception(ClientDisconnect())
            return
        running = loop.run_in_executor(self._thread, job.work)
        job.turn.set_result(running)
        with suppress(Exception):  # `take` raises it
            await asyncio.shield(running)

    def _next(self) -> Job[Any] | None:
        """Return the first job of the next client, and move that client to the end."""
        if not self._queues:
            return None
        owner, queue = self._queues.popitem(last=False)
        job = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return job
