"""A run that is killed at any instant loses the generation in flight, and ends as if nothing had happened."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KILLED = -9
LONGEST = {"export": 2, "journal": 6, "file": 3, "evaluate": 6, "test": 2}
"""In how many of an event's calls a process may be killed."""
FEW = 2
"""Instants in the fast suite, where one run takes the other's graphs. BBT finds its traces, BBTv2 makes them."""
CASES: list[tuple[str, dict[str, str]]] = [
    ("bbt", {"keep": "mean", "loss_type": "ce-smooth"}),
    ("bbtv2", {"keep": "mean", "loss_type": "ce-entropy"}),
    ("bbt", {"random_proj": "none", "optimizer": "sep-cma"}),
    ("bbtv2", {"templates": "3"}),
    ("bbt", {"label_words": "auto", "calibrate": "true"}),
    ("bbt", {"embeddings": "3", "optimizer": "cma-local"}),
    ("bbtv2", {"optimizer": "snes"}),
]
"""Options that change what is drawn, kept or read; test_resume.py cuts off runs of every optimizer."""
FAST_CASES = CASES[2], CASES[-1]
Figures = Callable[[Path], tuple[Any, ...]]


def instants(seed: int, n: int) -> list[dict[str, Any]]:
    """Draw instants at which to kill, all kinds of event in turn, and every sixth by the clock."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for at in itertools.islice(itertools.cycle([*LONGEST, None]), n):
        if at is None:
            found.append({"after": draw.uniform(0.05, 1.5)})
        else:
            found.append({"kill": {"at": at, "count": draw.randint(1, LONGEST[at]), "share": draw.random()}})
    return found


def generations(folder: Path) -> int:
    """Count the whole generations that a journal holds."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return sum(line.startswith(b'{"kind":"generation"') and line.endswith(b"}\n") for line in lines)


def check_killed_again_and_again(
    folder: Path,
    options: dict[str, Any],
    nursery: Callable[..., Any],
    seed: int,
    n: int,
    traces: Callable[[Path], None] | None,
) -> int:
    """Kill one run at n instants, start it again each time, and return how many instants came before its end.

    A run that has ended is started afresh in another folder, with a cache of its own, which ``traces`` fills.
    """
    killed = 0
    begun = itertools.count()
    current = next(begun)
    for instant in instants(seed, n):
        place, cache = folder / str(current), folder / f"cache-{current}"
        if traces is not None and not cache.exists():
            traces(cache)
        before = generations(place)
        ended = nursery(options | {"output_dir": str(place)}, cache, **instant)
        assert ended["status"] in (KILLED, 0), ended
        after = generations(place)
        assert after >= before, "a finished generation is lost"
        if ended["status"] == KILLED:
            killed += 1
            kill = instant.get("kill", {})
            if kill.get("at") == "journal":  # the first line of a journal is no generation
                assert after - before <= kill["count"] - 1
        else:
            current = next(begun)
    for number in range(current + 1):
        place = folder / str(number)
        if not (place / "result.json").exists():
            ended = nursery(options | {"output_dir": str(place)}, folder / f"cache-{number}")
            assert ended == {"status": 0, "message": ""}
    return killed


@pytest.mark.parametrize(
    ("algorithm", "n"),
    [
        ("bbt", FEW),
        pytest.param("bbt", 6, marks=pytest.mark.slow),
        pytest.param("bbtv2", 6, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_instants_ends_as_one_that_was_not(
    algorithm: str,
    n: int,
    options: Callable[..., dict[str, Any]],
    nursery: Callable[..., Any],
    traces: Callable[[Path], None],
    figures: Figures,
    tmp_path: Path,
) -> None:
    asked = options(engine="ort", algorithm=algorithm)
    killed = check_killed_again_and_again(
        tmp_path, asked, nursery, seed=n, n=n, traces=None if algorithm == "bbtv2" else traces
    )
    assert killed >= 0.8 * n
    own_graphs = tmp_path / ("whole-cache" if n > FEW else "cache-0")
    if n > FEW:
        traces(own_graphs)
    whole = nursery(asked | {"output_dir": str(tmp_path / "whole")}, own_graphs)
    assert whole == {"status": 0, "message": ""}
    expected = figures(tmp_path / "whole")
    ended = [place.parent for place in tmp_path.glob("[0-9]*/result.json")]
    assert ended
    for folder in ended:
        assert figures(folder) == expected
        assert not list(folder.glob(".*.tmp"))
    assert all(path.is_file() or "." not in path.name for cache in tmp_path.glob("cache*") for path in cache.iterdir())


def test_a_kill_in_an_evaluation_loses_that_generation_alone(
    options: Callable[..., dict[str, Any]], nursery: Callable[..., Any], figures: Figures, tmp_path: Path
) -> None:
    asked = options(algorithm="bbtv2")
    assert nursery(asked | {"output_dir": str(tmp_path / "whole")}, tmp_path / "cache")["status"] == 0
    killed = asked | {"output_dir": str(tmp_path / "killed")}
    for count in (3, 2):
        before = generations(tmp_path / "killed")
        ended = nursery(killed, tmp_path / "cache", kill={"at": "journal", "count": count, "share": 0.5})
        assert ended["status"] == KILLED
        headers = 1 if before == 0 else 0
        assert generations(tmp_path / "killed") == before + count - 1 - headers
    assert nursery(killed, tmp_path / "cache") == {"status": 0, "message": ""}
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [pytest.param(*case, marks=() if case in FAST_CASES else pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_a_killed_run_with_other_options_goes_on_as_if_it_had_not_been(
    algorithm: str,
    changes: dict[str, str],
    options: Callable[..., dict[str, Any]],
    nursery: Callable[..., Any],
    figures: Figures,
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
