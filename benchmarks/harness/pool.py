"""Processes for contenders: one for each, or one for several that share a model.

A separate process isolates a contender's memory and threads. A large model takes longer to create than to run, so
contenders that can share a model also share a process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from functools import cache as once
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from .shapes import make_model
from .worker import Served, WorkerError, obey, prepared
from .workload import Workload

CLOSE = "close"


class Pool:
    """Starts contenders; those of a group share a process, which runs one command at a time."""

    def __init__(self, group_of: Callable[[str], str]) -> None:
        """Take the function from a contender's name to its group."""
        self._group_of = group_of
        self._shared: dict[str, Shared] = {}

    def __call__(self, name: str, workload: Workload, cache: str | None = None) -> Guest:
        """Start a contender."""
        group = self._group_of(name)
        if group not in self._shared:
            self._shared[group] = Shared(workload, cache)
        return Guest(name, self._shared[group])


def own_process(name: str, workload: Workload, cache: str | None = None) -> Guest:
    """Start a contender in its own process."""
    return Guest(name, Shared(workload, cache))


class Shared:
    """The parent's end of a process."""

    def __init__(self, workload: Workload, cache: str | None) -> None:
        """Start the process; it creates the model when the first contender loads."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_many, args=(theirs, workload, cache), daemon=True)
        self.process.start()
        theirs.close()
        self.guests: set[str] = set()
        self.answers: dict[str, Any] = {}
        """The answers that arrived during the wait for another contender's, by contender."""

    def receive(self, name: str, seconds: float | None) -> Any:
        """Wait for the answer to a contender's last command.

        Raises:
            WorkerError: if the command failed, or the time ran out.
        """
        while name not in self.answers:
            try:
                if seconds is not None and not self.connection.poll(max(0.0, seconds)):
                    raise WorkerError("skipped", "the time was up before it was ready")
                whose, answer = self.connection.recv()
            except (EOFError, OSError) as error:
                self.process.join(timeout=10)
                raise WorkerError("failed", f"its process died with exit code {self.process.exitcode}") from error
            if whose in self.guests:  # the others have left
                self.answers[whose] = answer
        ok, answer = self.answers.pop(name)
        if not ok:
            raise WorkerError(*answer)
        return answer

    def leave(self, name: str) -> None:
        """Remove a contender; the last one ends the process."""
        self.guests.discard(name)
        self.answers.pop(name, None)
        if self.guests:
            with suppress(OSError):
                self.connection.send((name, CLOSE))
            return
        self.connection.close()
        self.process.join(timeout=1)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


class Guest:
    """The parent's end of a contender: sends commands to its process and waits for answers."""

    def __init__(self, name: str, shared: Shared) -> None:
        """Take the process."""
        self.name, self._shared = name, shared
        shared.guests.add(name)

    def __call__(self, command: str, seconds: float | None = None) -> Any:
        """Run a method of Served and return its answer.

        Raises:
            WorkerError: if the command failed, or took longer than these seconds.
        """
        self.send(command)
        return self.receive(seconds)

    def send(self, command: str) -> None:
        """Start a command; receive() returns its answer."""
        with suppress(OSError):  # receive() reports it
            self._shared.connection.send((self.name, command))

    def receive(self, seconds: float | None = None) -> Any:
        """Return the answer to the last command.

        Raises:
            WorkerError: if the command failed, or the time ran out.
        """
        return self._shared.receive(self.name, seconds)

    def close(self) -> None:
        """Remove the contender from its process."""
        if self.name in self._shared.guests:
            self._shared.leave(self.name)


def serve_many(connection: Connection, workload: Workload, cache: str | None) -> None:
    """Run commands of several contenders until the parent closes the connection."""
    with prepared(workload, cache):
        model = once(partial(make_model, workload.model))
        served: dict[str, Served] = {}
        while True:
            try:
                name, command = connection.recv()
            except (EOFError, OSError):
                return
            if command == CLOSE:
                served.pop(name, None)
                continue
            if name not in served:
                served[name] = Served(name, workload, model)
            connection.send((name, obey(served[name], command)))
