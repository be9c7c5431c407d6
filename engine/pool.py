"""A pool of cluster processes that share calls. A process that dies or hangs is replaced and its calls are repeated."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..export.errors import DeviceError
from .faults import WorkerLostError

if TYPE_CHECKING:
    from .ray_cluster import Cluster, Share

logger = logging.getLogger(__name__)

TRIES = 3
"""How many processes one call may lose, and how many times in a row a process may fail to start."""
JOIN_SECONDS = 900.0
"""How long the first processes may take to load: they may have to build graphs."""
TICK = 1.0
"""The longest wait without a check of the head, in seconds."""
PAUSE = 2.0
"""The pause between two starts of a process that fails to start, in seconds."""


@dataclass(eq=False)
class Member:
    """A place in the pool, with its current process."""

    number: int
    handle: Any
    starting: Any
    """The future of the process's setup; None once it is done."""
    facts: Any = None
    speed: float = 0.0
    """Units of work per second; 0 before the first answer."""
    failures: int = 0
    """Failed starts in a row."""
    retry_at: float | None = None
    """When to start the process again after a failed start."""

    @property
    def ready(self) -> bool:
        """Whether the process takes calls."""
        return self.starting is None and self.retry_at is None


@dataclass(eq=False)
class Job:
    """A call for any member."""

    method: str
    args: tuple[Any, ...]
    place: Member | None = None
    """The preferred member; another takes the call if that one is lost."""
    seconds: float | None = None
    """After this time the member counts as hung; None for no limit."""
    lost: int = 0
    answer: Any = None
    member: Member | None = None
    """The member that answered."""
    began: float = field(default=0.0, repr=False)


class Pool:
    """Members that share calls."""

    def __init__(
        self, cluster: Cluster, share: Share, size: int, recipe: Callable[[Any], tuple[Any, ...]],
        same: Callable[[Any, Any], str | None], *, alike: bool = True, lanes: int = 1,
    ) -> None:  # fmt: skip
        """Start the processes; those without room in the cluster join later.

        Args:
            cluster: the cluster.
            share: the resources of each process.
            size: the number of processes.
            recipe: takes the facts of the first ready process (None before) and returns a factory and its arguments.
            same: takes the facts of the first and of another process; returns why they cannot work together, or None.
            alike: whether the recipe is complete from the start; else the others wait for the first one's facts.
            lanes: the number of concurrent calls per process.

        Raises:
            BbtFastError: the error of the first process that fails to load.
            DeviceError: if the cluster has no room for any process.
        """
        self.cluster, self._share, self._recipe, self._same, self._lanes = cluster, share, recipe, same, lanes
        self.facts: Any = None
        self.restarts = 0
        """The number of replaced processes."""
        room = cluster.room(share)
        if room < size:
            logger.warning(
                "the Ray cluster has room for %d of %d workers now; the others join when there is more", room, size
            )
        self.members = [Member(number, None, None) for number in range(size)]
        limit = time.monotonic() + JOIN_SECONDS
        for some in filter(None, [self.members] if alike else [self.members[:1], self.members[1:]]):
            for member in some:
                self._start(member)
            for member in some[: max(1, room) if some[0].number == 0 else max(0, room - 1)]:
                while not member.ready:
                    if time.monotonic() > limit:
                        raise DeviceError(
                            f"no worker started within {JOIN_SECONDS:.0f} s. Check with `ray status` that the cluster "
                            f"has {share.gpus} GPUs and {share.cpus} CPUs free for each."
                        )
                    self._welcome(member, TICK, strict=True)

    @property
    def ready(self) -> list[Member]:
        """The members that take calls now."""
        for member in self.members:
            self._welcome(member, 0.0)
        return [member for member in self.members if member.ready]

    def run(self, jobs: Sequence[Job], between: Callable[[], None] | None = None, tick: float = TICK) -> None:
        """Make the calls; each job has its answer afterwards.

        Args:
            jobs: the calls.
            between: called at least every ``tick`` seconds.
            tick: the longest wait, in seconds.

        Raises:
            BbtFastError: the error of a call.
            DeviceError: if several members fail on the same call, or the cluster is lost.
        """
        waiting, running = deque(jobs), dict[Any, tuple[Member, Job]]()
        while waiting or running:
            self._hand_out(waiting, running)
            self._take_in(waiting, running, tick)
            if between is not None:
                between()

    def answers(self, asked: Mapping[Member, Any]) -> dict[Member, Any]:
        """Return the available answers to calls outside of jobs; the answer of a lost member is {}."""
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
        """Give each idle member a job: its own, or one without a ready member."""
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
        """Wait briefly for answers and new members."""
        futures = [*running, *(m.starting for m in self.members if m.starting is not None)]
        if not running and not futures:
            if all(member.failures >= TRIES for member in self.members):
                raise DeviceError("all workers are lost, and none can be restarted. See the warnings above.")
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
        """Repeat a job and replace its member."""
        job.lost += 1
        self._replace(member)
        if job.lost >= TRIES:
            raise DeviceError(
                f"{job.lost} workers failed one after another on the same work; the last: {why}. Every finished "
                "generation is saved: run the same command again to resume."
            )
        logger.warning("worker %d is lost (%s): another takes its share, and it restarts", member.number, why)
        waiting.append(job)

    def _replace(self, member: Member) -> None:
        self.restarts += 1
        self.cluster.kill(member.handle)
        self._start(member)

    def _start(self, member: Member) -> Member:
        member.retry_at, member.speed = None, 0.0
        member.handle = self.cluster.spawn(self._share, self._lanes)
        member.starting = member.handle.make.remote(*self._recipe(self.facts))
        return member

    def _welcome(self, member: Member, seconds: float, *, strict: bool = False) -> None:
        """Check whether a member has become ready; restart it if its pause is over.

        Raises:
            BbtFastError: if ``strict`` and it could not load; a process that died is restarted instead.
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
                raise DeviceError(f"worker {member.number} differs from the first: {fault}. Use equal nodes.")
        except Exception as error:
            retry = isinstance(error, WorkerLostError) and member.failures + 1 < TRIES
            if self.cluster.dead or (strict and not retry):
                raise
            self._failed(member, error)
            return
        member.starting, member.failures = None, 0

    def _failed(self, member: Member, error: Exception) -> None:
        """Record a failed start; retry later, up to TRIES times."""
        self.cluster.kill(member.handle)
        member.starting = None
        member.failures += 1
        hopeless = member.failures >= TRIES
        member.retry_at = float("inf") if hopeless else time.monotonic() + PAUSE
        logger.warning(
            "worker %d could not start%s (%s)", member.number, " and is excluded" if hopeless else " yet", error
        )
