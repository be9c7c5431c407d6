"""The live line."""

from __future__ import annotations

import io
import math
import re
import sys

import pytest

from bbt_fast.tuner.run.progress import ProgressLine, Standing


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def search(line: ProgressLine) -> None:
    """Report ten generations of a search to a progress line."""
    line.start("bbt seed 42", 80)
    for i in range(1, 11):
        line.update(Standing(8 * i, False, 1.0 / i, 0.5, math.nan if i < 3 else 0.75))
    line.finish()


def drawn(monkeypatch: pytest.MonkeyPatch, every: int = 8) -> list[str]:
    """The states of the progress line of that search on a terminal."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name in ("COLUMNS", "LINES"):  # where tqdm asks for a width; readline sets them
        monkeypatch.setenv(name, "200")
    search(ProgressLine(every))
    return [part for part in re.split(r"[\r\n]", stream.getvalue()) if "|" in part]


def test_the_line_tells_evaluations_speed_loss_metrics_and_the_time_left(monkeypatch):
    lines = drawn(monkeypatch)
    pattern = r"bbt seed 42 100%\|.*\| 80/80 \[.*eval/s, loss=0\.1000, train=50\.0%, dev=75\.0%, 00:00 left\]"
    assert re.match(pattern, lines[-1])


def test_a_metric_that_is_not_known_is_not_shown(monkeypatch):
    first = next(line for line in drawn(monkeypatch) if "loss" in line)
    assert "train=50.0%" in first
    assert "dev" not in first


def test_the_line_is_refreshed_every_so_many_evaluations(monkeypatch):
    often, seldom = (len({line.split("|")[-1][:6] for line in drawn(monkeypatch, every)}) for every in (8, 40))
    assert (often, seldom) == (11, 3)


def test_replayed_generations_count_but_do_not_pass_for_speed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    line = ProgressLine(8)
    line.start("bbt seed 42", 80)
    for i in range(1, 10):
        line.update(Standing(8 * i, True, 1.0, math.nan, 0.75))
    line.update(Standing(80, False, 1.0, 0.5, 0.75))
    shown = line._bar.format_dict
    line.finish()
    assert (shown["n"], shown["total"]) == (80, 80)
    assert shown["n"] - shown["initial"] == 8  # what the rate is made from


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    search(ProgressLine(8))
    assert stream.getvalue() == ""
