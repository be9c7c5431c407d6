"""Whatever a file holds, only our own errors come out: a fixed few of the inputs that scripts/fuzz.py makes."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FUZZ = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"))
INPUTS = 40


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The ``run`` of scripts/fuzz.py."""
    monkeypatch.setenv("BBT_FAST_CACHE", "unset")  # the script sets it; this has it set back
    found: Callable[..., Any] = FUZZ["run"]
    return found


@pytest.mark.parametrize("target", FUZZ["TARGETS"])
def test_a_broken_file_is_read_or_refused(target: str, run: Callable[..., Any]) -> None:
    read, refused = run(target, INPUTS)
    assert read + refused >= INPUTS
    assert FUZZ["feed"](FUZZ["TARGETS"][target], FUZZ["TARGETS"][target].whole()) is (target == "result")


def test_an_error_of_another_kind_is_found(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    target = FUZZ["TARGETS"]["journal"]

    def careless(folder: Path) -> None:
        (folder / target.name).read_bytes().decode()

    monkeypatch.setitem(FUZZ["TARGETS"], "journal", type(target)(target.name, careless, target.valid, target.pieces))
    with pytest.raises(UnicodeDecodeError, match="utf-8"):
        run("journal", INPUTS)
