"""Limits and signals that end a search before its budget."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ...export.errors import BbtFastError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunInterruptedError(BbtFastError, RuntimeError):
    """A signal or a stop file ended a run before it was finished; its folder can be resumed."""


@dataclass
class Control:
    """All limits and requests that can end a search early."""

    max_time: float | None = None
    """Seconds of search, summed over the parts of an interrupted run."""
    target_metric: float | None = None
    """Development metric at which the search ends."""
    patience: int | None = None
    """Evaluations without a better prompt on the development set after which the search ends."""
    stop_files: list[Path] = field(default_factory=list)
    """The search ends once one of these files exists."""
    patient: bool = field(default=False, init=False)
    """True: a signal ends the search after its current generation. False: it ends the process."""
    request: str | None = field(default=None, init=False)
    """The name of the signal that requested a stop."""

    def reached(self, metric: float) -> bool:
        """Return whether a development metric meets the target."""
        return self.target_metric is not None and metric >= self.target_metric

    def hopeless(self, evaluations: int) -> bool:
        """Return whether this many evaluations without a better prompt exhaust the patience."""
        return self.patience is not None and evaluations >= self.patience

    def out_of_time(self, seconds: float) -> bool:
        """Return whether the search has used up its time."""
        return self.max_time is not None and seconds >= self.max_time

    @property
    def interrupted_by(self) -> str | None:
        """The signal or file that requests a stop after this generation, if any."""
        stop = next((f"the file {path}" for path in self.stop_files if path.exists()), None)
        return stop or self.request


@contextmanager
def signals(control: Control) -> Iterator[None]:
    """Let SIGINT and SIGTERM end a search after its current generation; a second signal ends the process at once.

    Even then no finished generation is lost: each is on the disk before the next one starts. Outside the main thread,
    where Python delivers no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if not control.patient:
            raise KeyboardInterrupt
        control.request = signal.Signals(number).name
        # Python's handlers wait until the engine returns; the system's default handlers do not.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
