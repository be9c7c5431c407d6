"""The pool of a cluster's processes: who is waited for, replaced, excluded and refused. The cluster is a fake."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from bbt_fast.engine.faults import WorkerLostError
from bbt_fast.engine.pool import JOIN_SECONDS, PAUSE, TRIES, Job, Pool
from bbt_fast.engine.worker import Facts
from bbt_fast.export.errors import BbtFastError, DeviceError, UsageError

SHARE = SimpleNamespace(gpus=0, cpus=2)
DIED, NEVER = WorkerLostError("the process died"), "never"
"""What a call does beside giving an answer."""


class Clock:
    """A time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(eq=False)
class Future:
    """The outcome of a call; two of the same outcome are two."""

    outcome: Any


@dataclass(eq=False)
class Process:
    """A process with the outcomes of its start and of its calls."""

    start: Any
    calls: deque[Any]
    asked: list[str] = field(default_factory=list)

    @property
    def make(self) -> Any:
        return SimpleNamespace(remote=lambda *recipe: Future(self.start))

    @property
    def call(self) -> Any:
        return SimpleNamespace(remote=lambda method, *args: self.asked.append(method) or Future(self.calls.popleft()))


class FakeCluster:
    """A cluster whose processes have known fates: pairs of the start's outcome and those of its calls."""

    def __init__(self, clock: Clock, room: int, *fates: tuple[Any, Sequence[Any]]) -> None:
        self.clock, self._room, self.dead = clock, room, False
        self.fates = deque(fates)
        self.spawned: list[Process] = []
        self.killed: list[Process] = []

    def room(self, share: Any) -> int:
        return self._room

    def spawn(self, share: Any, lanes: int) -> Process:
        start, calls = self.fates.popleft()
        self.spawned.append(Process(start, deque(calls)))
        return self.spawned[-1]

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        done = [future for future in futures if future.outcome is not NEVER]
        if not done:
            self.clock.sleep(seconds or 0.01)  # asking takes time too
        return done

    def result(self, future: Any) -> Any:
        if isinstance(future.outcome, Exception):
            raise future.outcome
        return future.outcome

    def kill(self, process: Process) -> None:
        self.killed.append(process)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The pool's time."""
    found = Clock()
    monkeypatch.setattr("bbt_fast.engine.pool.time", found)
    return found


def differs(first: str, other: str) -> str | None:
    """Facts here are texts; those of equal workers are the same."""
    return None if first == other else f"device is {other}, and {first}"


def pool_on(cluster: Any, size: int, **options: Any) -> Pool:
    """A pool on a fake cluster."""
    return Pool(cluster, SHARE, size, lambda first: (), differs, **options)  # type: ignore[arg-type]


def test_jobs_are_shared_and_each_has_its_answer(clock: Clock) -> None:
    cluster = FakeCluster(clock, 2, ("cpu", [10, 11]), ("cpu", [20, 21]))
    pool = pool_on(cluster, 2)
    jobs = [Job("a", ()), Job("b", ()), Job("c", (), place=pool.members[1]), Job("d", ())]
    pool.run(jobs)
    assert sorted(job.answer for job in jobs) == [10, 11, 20, 21]
    assert jobs[2].member is pool.members[1]
    assert pool.restarts == 0


def test_a_job_waits_for_its_place_unless_that_is_lost(clock: Clock) -> None:
    pool = pool_on(FakeCluster(clock, 2, ("cpu", [10, 11]), ("cpu", [20, DIED]), (NEVER, [])), 2)
    jobs = [Job("a", (), place=pool.members[1]) for _ in range(3)]
    pool.run(jobs)
    assert [job.answer for job in jobs] == [20, 11, 10]


@pytest.mark.parametrize("error", [DIED, UsageError("there is no engine 'fast'.")])
def test_the_first_workers_errors_are_the_pool_s(error: BbtFastError, clock: Clock) -> None:
    """A process that dies is started again; any other error is final."""
    tries = TRIES if error is DIED else 1
    cluster = FakeCluster(clock, 1, *[(error, [])] * tries)
    with pytest.raises(type(error), match=str(error)):
        pool_on(cluster, 1)
    assert len(cluster.spawned) == tries


def test_a_first_worker_that_dies_while_it_loads_is_started_again(clock: Clock) -> None:
    cluster = FakeCluster(clock, 1, *[(DIED, [])] * (TRIES - 1), ("cpu", [7]))
    pool, job = pool_on(cluster, 1), Job("a", ())
    pool.run([job])
    assert job.answer == 7
    assert cluster.killed == cluster.spawned[:-1]
    assert clock.now >= (TRIES - 1) * PAUSE


def test_no_worker_in_time_is_an_error_that_names_what_each_needs(clock: Clock) -> None:
    needs = f"no worker started within {JOIN_SECONDS:.0f} s. Check with `ray status` .* has 0 GPUs and 2 CPUs free"
    with pytest.raises(DeviceError, match=needs):
        pool_on(FakeCluster(clock, 0, (NEVER, [])), 1)
    assert JOIN_SECONDS < clock.now < JOIN_SECONDS + 10


@pytest.mark.parametrize("alike", [True, False])
def test_a_worker_that_differs_from_the_first_is_refused(alike: bool, clock: Clock) -> None:
    cluster = FakeCluster(clock, 2, ("cpu", []), ("cuda", []))
    with pytest.raises(DeviceError, match=r"worker 1 differs from the first: device is cuda, and cpu\. Use equal nod"):
        pool_on(cluster, 2, alike=alike)


@pytest.mark.parametrize(("start", "why"), [("cuda", "worker 1 differs from the first"), (DIED, "the process died")])
def test_a_late_worker_that_cannot_work_is_tried_thrice_and_excluded(
    start: Any, why: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = FakeCluster(clock, 1, ("cpu", range(40)), *[(start, [])] * TRIES)
    with caplog.at_level(logging.WARNING):
        pool = pool_on(cluster, 2)
        for _ in range(40):
            pool.run([Job("a", ())], between=lambda: clock.sleep(1.0))
    said = [one.getMessage() for one in caplog.records]
    assert "room for 1 of 2 workers now; the others join when there is more" in said[0]
    assert [text.partition(" (")[0] for text in said[1:]] == [
        *["worker 1 could not start yet"] * (TRIES - 1), "worker 1 could not start and is excluded",
    ]  # fmt: skip
    assert all(why in text for text in said[1:])
    assert cluster.killed == cluster.spawned[1:]
    assert [member.ready for member in pool.members] == [True, False]


def test_where_all_are_lost_and_none_can_be_restarted_the_work_ends(clock: Clock) -> None:
    cluster = FakeCluster(clock, 1, ("cpu", [DIED]), *[(DIED, [])] * TRIES)
    with pytest.raises(DeviceError, match="all workers are lost, and none can be restarted"):
        pool_on(cluster, 1).run([Job("a", ())])
    assert len(cluster.killed) == 1 + TRIES


@pytest.mark.parametrize(
    ("outcome", "why"), [(DIED, "the process died"), (NEVER, "no answer for 5 s"), (DeviceError("no memory"), "no mem")]
)
def test_a_lost_call_is_repeated_by_another_and_thrice_is_an_error(
    outcome: Any, why: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for lost in range(1, TRIES):
        pool = pool_on(FakeCluster(clock, 1, *[("cpu", [outcome])] * lost, ("cpu", [7])), 1)
        job = Job("a", (), seconds=5.0)
        pool.run([job])
        assert (job.answer, job.lost, pool.restarts) == (7, lost, lost)
    assert f"worker 0 is lost ({why}" in caplog.text
    pool = pool_on(FakeCluster(clock, 1, *[("cpu", [outcome])] * TRIES, ("cpu", [])), 1)
    with pytest.raises(DeviceError, match=f"3 workers failed one after another on the same work; the last: {why}"):
        pool.run([Job("a", (), seconds=5.0)])


def test_an_error_of_the_work_itself_or_of_a_lost_cluster_is_raised_at_once(clock: Clock) -> None:
    for error, dead in ((UsageError("wrong"), False), (DeviceError("the head is lost"), True)):
        cluster = FakeCluster(clock, 1, ("cpu", [error]))
        pool = pool_on(cluster, 1)
        cluster.dead = dead
        with pytest.raises(type(error), match=str(error)):
            pool.run([Job("a", ())])
        assert pool.restarts == 0


def test_calls_outside_of_jobs_are_answered_when_they_are_done(clock: Clock) -> None:
    pool = pool_on(FakeCluster(clock, 3, *[("cpu", [])] * 3), 3)
    asked = dict(zip(pool.members, map(Future, (5, NEVER, DIED)), strict=True))
    assert pool.answers(asked) == {pool.members[0]: 5, pool.members[2]: {}}


FACTS = Facts("torch", "fp32", "cpu", 3, 32, "f", "d", 1.0, 32, {"max": 0.0}, 1.0, "one", 7)


@pytest.mark.parametrize("name", ["engine", "precision", "device", "fingerprint", "embeddings_digest"])
def test_facts_that_change_answers_are_a_difference(name: str) -> None:
    other = replace(FACTS, host="two", **{name: "x"})
    assert FACTS.difference(other) == f"{name} is x on two, and {getattr(FACTS, name)} on one"


@pytest.mark.parametrize("changes", [{}, {"host": "two", "pid": 8}, {"export_seconds": 2.0, "parity": {"max": 0.5}}])
def test_facts_of_a_process_are_no_difference(changes: dict[str, Any]) -> None:
    assert FACTS.difference(replace(FACTS, **changes)) is None
