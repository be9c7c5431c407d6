"""One progress line for all runs, whoever runs them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bbt_fast.tuner.artifacts.folder import RunFolder
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.control import Control
from bbt_fast.tuner.run.progress import Standing
from bbt_fast.tuner.side_by_side import Board, Reporter


class Line:
    """A progress line that notes what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.shown: list[tuple[int, float]] = []

    def start(self, label: str, budget: int) -> None:
        self.started.append((label, budget))

    def update(self, standing: Standing) -> None:
        self.shown.append((standing.evaluations, standing.loss))

    def finish(self) -> None:
        """End the line."""


class Member:
    """A worker that answers at once how its searches stand."""

    ready = True

    def __init__(self, standing: dict[int, tuple[int, float]]) -> None:
        self.standing = standing
        self.handle = SimpleNamespace(call=SimpleNamespace(remote=lambda method: method))


class Workers:
    """A pool of such workers."""

    def __init__(self, *standings: dict[int, tuple[int, float]]) -> None:
        self.members = [Member(standing) for standing in standings]

    def answers(self, asked: dict[Member, str]) -> dict[Member, Any]:
        assert set(asked.values()) <= {"standing"}
        return {member: member.standing for member in asked}


def board_of(pool: Workers, folder: Path, line: Line, control: Control | None = None) -> Board:
    options = Options(seeds=(8, 13, 42), budget=100)
    return Board(pool, control or Control(), RunFolder(folder), line, options)


def test_the_line_adds_up_the_runs_of_all_workers_and_the_one_of_this_process(tmp_path: Path) -> None:
    line = Line()
    board = board_of(Workers({8: (40, 1.0)}, {13: (60, 3.0)}), tmp_path, line)
    assert line.started == [("bbt, 3 seeds", 300)]
    board()
    assert line.shown[-1] == (100, 2.0)
    here = Reporter(board, 42)
    here.start("bbt seed 42", 100)
    here.update(Standing(20, False, 5.0, 0.0, 0.0))
    here.finish()
    assert line.shown[-1] == (120, 3.0)
    assert len(line.started) == 1


def test_a_wish_for_the_end_reaches_all_runs_by_the_stop_file(tmp_path: Path) -> None:
    stop = tmp_path / "asked"
    board = board_of(Workers(), tmp_path, Line(), Control(stop_files=[stop]))
    board()
    assert board.stopped is None
    assert not RunFolder(tmp_path).stop.exists()
    stop.touch()
    board()
    assert board.stopped is not None
    assert RunFolder(tmp_path).stop.exists()
