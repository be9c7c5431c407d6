"""What ends a search early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from bbt_fast.tuner.run.control import SIGNALS, Control, signals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_while_a_run_is_on(number):
    control = Control()
    control.patient = True
    with signals(control):
        os.kill(os.getpid(), number)
        assert control.interrupted_by == signal.Signals(number).name


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_run_a_signal_ends_the_process(number):
    with signals(Control()), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_the_old_handlers_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with signals(Control()):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_nothing_is_handled():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with signals(Control()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


SECOND = """
import os, signal
from bbt_fast.tuner.run.control import Control, signals
control = Control()
control.patient = True
with signals(control):
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never", flush=True)
"""


def test_a_second_signal_ends_the_process_at_once():
    process = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, check=False)
    assert process.stdout == "still here\n"
    assert process.returncode == -signal.SIGTERM


def test_a_stop_file_asks_for_the_end(tmp_path):
    control = Control(stop_files=[tmp_path / "a", tmp_path / "stop"])
    assert control.interrupted_by is None
    (tmp_path / "stop").touch()
    assert control.interrupted_by == f"the file {tmp_path / 'stop'}"


def test_limits_hold_only_where_they_are_set():
    assert not Control().reached(1.0)
    assert not Control().out_of_time(1e9)
    control = Control(max_time=10, target_metric=0.9)
    assert [control.reached(metric) for metric in (0.89, 0.9)] == [False, True]
    assert [control.out_of_time(seconds) for seconds in (9.9, 10.0)] == [False, True]
