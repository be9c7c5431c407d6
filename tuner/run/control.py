"""When a search ends before its budget, and how it is asked to."""

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
    """A run ended on request before it was finished; its folder can be resumed."""


@dataclass
class Control:
    """Everything that can end a search early."""

    max_time: float | None = None
    """Seconds of search, summed over the parts of an interrupted run."""
    target_metric: float | None = None
    """Development metric that is good enough."""
    patience: int | None = None
    """Evaluations without a better prompt on the development set after which none is expected."""
    stop_files: list[Path] = field(default_factory=list)
    """The search ends once one of these exists."""
    patient: bool = field(default=False, init=False)
    """Whether a run is on, which ends its generation first; before that a signal ends the process."""
    request: str | None = field(default=None, init=False)
    """Set by a signal: what asked for the end."""

    def reached(self, metric: float) -> bool:
        """Say whether a development metric is good enough."""
        return self.target_metric is not None and metric >= self.target_metric

    def hopeless(self, evaluations: int) -> bool:
        """Say whether so many evaluations without a better prompt are enough."""
        return self.patience is not None and evaluations >= self.patience

    def out_of_time(self, seconds: float) -> bool:
        """Say whether the search has had its time."""
        return self.max_time is not None and seconds >= self.max_time

    @property
    def interrupted_by(self) -> str | None:
        """What asked for an end after this generation, if anything did."""
        stop = next((f"the file {path}" for path in self.stop_files if path.exists()), None)
        return stop or self.request


@contextmanager
def signals(control: Control) -> Iterator[None]:
    """Let SIGINT and SIGTERM end a search after its current generation; a second one ends the process at once.

    Nothing finished is lost then either: every generation is on the disk before the next one starts. Outside the main
    thread, where Python takes no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if not control.patient:
            raise KeyboardInterrupt
        control.request = signal.Signals(number).name
        # Python's own handlers wait for the engine to return; the system's do not.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
