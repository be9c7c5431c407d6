"""Processes of a cluster that share out calls: whoever dies or hangs is replaced, and its work done elsewhere."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..export.errors import DeviceError
from .ray_cluster import Cluster, Share, WorkerLostError

logger = logging.getLogger(__name__)

TRIES = 3
"""How many processes may be lost over the same call, and how often one that does not start is tried again."""
JOIN_SECONDS = 900.0
"""How long a process may take to load, and the first of a cluster to appear: graphs may have to be built."""
TICK = 1.0
"""How often the head is looked at while nothing ends, in seconds."""
PAUSE = 2.0
"""Between two tries to start a process that fails to, in seconds."""


@dataclass(eq=False)
class Member:
    """A place in the pool, and the process that fills it."""

    number: int
    handle: Any
    starting: Any
    """The call that makes what the process holds; None once it has."""
    since: float
    facts: Any = None
    speed: float = 0.0
    """Units of work a second; 0 before the first."""
    failures: int = 0
    """Starts in a row that failed."""
    retry_at: float | None = None
    """When a process that failed to start is asked for again."""

    @property
    def ready(self) -> bool:
        """Whether it takes calls."""
        return self.starting is None and self.retry_at is None


@dataclass(eq=False)
class Job:
    """A call to be made on any member."""

    method: str
    args: tuple[Any, ...]
    place: Member | None = None
    """Who is to have it, unless that one is lost."""
    seconds: float | None = None
    """How long it may take before the member is taken to hang; None for as long as it likes."""
    lost: int = 0
    answer: Any = None
    member: Member | None = None
    """Who answered."""
    began: float = field(default=0.0, repr=False)


class Pool:
    """Members that calls are shared out to."""

    def __init__(
        self, cluster: Cluster, share: Share, size: int, recipe: Callable[[Any], tuple[Any, ...]],
        same: Callable[[Any, Any], str | None], *, alike: bool = True, lanes: int = 1,
    ) -> None:  # fmt: skip
        """Start the processes; those that the cluster has no room for join later.

        Args:
            cluster: where.
            share: what each gets.
            size: how many.
            recipe: given the facts of the first that is ready (None before), returns a factory and its arguments.
            same: says what keeps a process with these facts (second) from standing beside the first, or None.
            alike: whether the recipe says all; else the others wait for the first one's facts.
            lanes: how many calls a process takes at a time.

        Raises:
            BbtFastError: what the first process that fails to load raised.
            DeviceError: if the cluster has room for none.
        """
        self.cluster, self._share, self._recipe, self._same, self._lanes = cluster, share, recipe, same, lanes
        self.facts: Any = None
        self.restarts = 0
        """How many processes were replaced."""
        room = cluster.room(share)
        if room < size:
            logger.warning(
                "the Ray cluster has room for %d of %d workers now; the others join when there is more", room, size
            )
        self.members = [Member(number, None, None, 0.0) for number in range(size)]
        limit = time.monotonic() + JOIN_SECONDS
        for some in filter(None, [self.members] if alike else [self.members[:1], self.members[1:]]):
            for member in some:
                self._start(member)
            for member in some[: max(1, room) if some[0].number == 0 else max(0, room - 1)]:
                while not member.ready:
                    if time.monotonic() > limit:
                        raise DeviceError(
                            f"no worker appeared within {JOIN_SECONDS:.0f} s: see with `ray status` whether the "
                            f"cluster has {share.gpus} GPUs and {share.cpus} CPUs free for each."
                        )
                    self._welcome(member, TICK, strict=True)

    @property
    def ready(self) -> list[Member]:
        """The members that take calls now, those that have just become ready among them."""
        for member in self.members:
            self._welcome(member, 0.0)
        return [member for member in self.members if member.ready]

    def run(self, jobs: Sequence[Job], between: Callable[[], None] | None = None, tick: float = TICK) -> None:
        """Make the calls; each job has its answer afterwards.

        Args:
            jobs: the calls.
            between: called at least every ``tick`` seconds.
            tick: how long nothing may be looked at.

        Raises:
            BbtFastError: what a call raised.
            DeviceError: if a call fails on one member after another, or the cluster is gone.
        """
        waiting, running = deque(jobs), dict[Any, tuple[Member, Job]]()
        while waiting or running:
            self._hand_out(waiting, running)
            self._take_in(waiting, running, tick)
            if between is not None:
                between()

    def answers(self, asked: Mapping[Member, Any]) -> dict[Member, Any]:
        """Return the answers that have come to calls made beside the jobs; that of a lost member is {}."""
        found: dict[Member, Any] = {}
        for member, future in asked.items():
            try:
                if self.cluster.wait([future], 0.0):
                    found[member] = self.cluster.result(future)
            except WorkerLostError:
                found[member] = {}
        return found

    def close(self) -> None:
        """End the processes."""
        for member in self.members:
            if member.handle is not None and not self.cluster.dead:
                self.cluster.kill(member.handle)

    def _hand_out(self, waiting: deque[Job], running: dict[Any, tuple[Member, Job]]) -> None:
        """Give each idle member a job: its own, or one whose member is lost."""
        busy = {member for member, _ in running.values()}
        for member in self.ready:
            if member in busy:
                continue
            job = next((job for job in waiting if job.place is member), None)
            job = job or next((job for job in waiting if job.place is None or not job.place.ready), None)
            if job is None:
                continue
            waiting.remove(job)
            job.place, job.began = None, time.monotonic()
            running[member.handle.call.remote(job.method, *job.args)] = member, job

    def _take_in(self, waiting: deque[Job], running: dict[Any, tuple[Member, Job]], tick: float) -> None:
        """Wait for an answer or a new member for a moment."""
        futures = [*running, *(m.starting for m in self.members if m.starting is not None)]
        if not running and not futures:
            if all(member.failures >= TRIES for member in self.members):
                raise DeviceError("no worker is left, and none can be started again; see the warnings above.")
            time.sleep(min(tick, 0.1))
            return
        now = time.monotonic()
        ends = [job.began + job.seconds - now for _, job in running.values() if job.seconds is not None]
        for future in self.cluster.wait(futures, max(0.0, min([tick, *ends]))):
            if future in running:
                member, job = running.pop(future)
                self._answered(member, job, future, waiting)
        now = time.monotonic()
        for future, (member, job) in list(running.items()):
            if job.seconds is not None and now > job.began + job.seconds:
                del running[future]
                self._lost(member, job, f"no answer for {job.seconds:.0f} s", waiting)

    def _answered(self, member: Member, job: Job, future: Any, waiting: deque[Job]) -> None:
        try:
            job.answer, job.member = self.cluster.result(future), member
        except WorkerLostError as error:
            self._lost(member, job, str(error), waiting)
        except DeviceError as error:
            if self.cluster.dead:
                raise
            self._lost(member, job, str(error), waiting)

    def _lost(self, member: Member, job: Job, why: str, waiting: deque[Job]) -> None:
        """Have a job done again, and a member replaced."""
        job.lost += 1
        self._replace(member)
        if job.lost >= TRIES:
            raise DeviceError(
                f"{job.lost} workers failed one after another over the same work; the last: {why}. A run keeps every "
                "generation that it finished: the same command, started again, continues from there."
            )
        logger.warning("worker %d is lost (%s): its share is done elsewhere, and it starts again", member.number, why)
        waiting.append(job)

    def _replace(self, member: Member) -> None:
        self.restarts += 1
        self.cluster.kill(member.handle)
        self._start(member)

    def _start(self, member: Member) -> Member:
        member.retry_at, member.speed, member.since = None, 0.0, time.monotonic()
        member.handle = self.cluster.spawn(self._share, self._lanes)
        member.starting = member.handle.make.remote(*self._recipe(self.facts))
        return member

    def _welcome(self, member: Member, seconds: float, *, strict: bool = False) -> None:
        """Take in a member that has become ready; start one again whose time has come.

        Raises:
            BbtFastError: if strict, and it could not load; a process that died is tried again.
        """
        if member.retry_at is not None and time.monotonic() >= member.retry_at:
            self._start(member)
        if member.starting is None:
            time.sleep(min(seconds, 0.1))
            return
        if not self.cluster.wait([member.starting], seconds):
            return
        try:
            member.facts = self.cluster.result(member.starting)
            if self.facts is None:
                self.facts = member.facts
            if fault := self._same(self.facts, member.facts):
                raise DeviceError(f"worker {member.number} cannot stand beside the first: {fault}.")
        except Exception as error:
            mendable = isinstance(error, WorkerLostError) and member.failures + 1 < TRIES
            if self.cluster.dead or (strict and not mendable):
                raise
            self._failed(member, error)
            return
        member.starting, member.failures = None, 0

    def _failed(self, member: Member, error: Exception) -> None:
        """Note that a process could not load; try again later, unless that is hopeless."""
        self.cluster.kill(member.handle)
        member.starting = None
        member.failures += 1
        hopeless = member.failures >= TRIES
        member.retry_at = float("inf") if hopeless else time.monotonic() + PAUSE
        logger.warning(
            "worker %d could not start%s (%s)", member.number, "; it is left out" if hopeless else " yet", error
        )
