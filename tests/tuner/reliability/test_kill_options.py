"""Runs with options that change what is drawn, kept or read are killed and go on as if they had not been.

tests/tuner/run/test_resume.py does the same for every optimizer, without killing a process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KILLED = -9
CASES: list[tuple[str, dict[str, str]]] = [
    ("bbt", {"keep": "mean", "loss_type": "ce-smooth"}),
    ("bbtv2", {"keep": "mean", "loss_type": "ce-entropy"}),
    ("bbt", {"random_proj": "none", "optimizer": "sep-cma"}),
    ("bbtv2", {"templates": "3"}),
    ("bbt", {"label_words": "auto", "calibrate": "true"}),
    ("bbt", {"embeddings": "3", "optimizer": "cma-local"}),
    ("bbtv2", {"optimizer": "snes"}),
]
FAST = CASES[2], CASES[-1]


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    algorithm: str,
    changes: dict[str, str],
    options: Callable[..., dict[str, Any]],
    nursery: Callable[..., Any],
    figures: Callable[[Path], tuple[Any, ...]],
    tmp_path: Path,
) -> None:
    asked = options(algorithm=algorithm, **changes)
    killed = asked | {"output_dir": str(tmp_path / "killed")}
    for _ in range(2):
        ended = nursery(killed, tmp_path / "cache", kill={"at": "journal", "count": 3, "share": 0.5})
        assert ended["status"] == KILLED
    assert nursery(killed, tmp_path / "cache") == {"status": 0, "message": ""}
    assert nursery(asked | {"output_dir": str(tmp_path / "whole")}, tmp_path / "cache")["status"] == 0
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
