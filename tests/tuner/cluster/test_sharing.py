"""How work is divided between workers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bbt_fast.engine.sharing import Shares, even_parts, largest_share, proportional


@dataclass(eq=False)
class FakeWorker:
    """A worker, of which only the speed counts."""

    speed: float = 0.0


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.integers(0, 60))
def test_candidates_are_divided_so_that_no_other_division_is_done_sooner(speeds: list[float], total: int) -> None:
    sizes = proportional(speeds, total)
    assert sum(sizes) == total
    longest = max(size / speed for size, speed in zip(sizes, speeds, strict=True))
    for giver, size in enumerate(sizes):
        if size and size / speeds[giver] == longest:  # who is done last could give a candidate to nobody
            assert all((sizes[k] + 1) / speeds[k] >= longest for k in range(len(speeds)) if k != giver)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30), st.integers(1, 8))
def test_parts_of_texts_hold_every_text_once_and_none_is_empty(lengths: list[int], count: int) -> None:
    parts = even_parts(torch.tensor(lengths), count)
    assert len(parts) == min(count, len(lengths))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    assert all(len(part) for part in parts)


def test_parts_of_texts_hold_about_as_many_tokens() -> None:
    lengths = torch.arange(10, 110)
    tokens = [int(lengths[part].sum()) for part in even_parts(lengths, 4)]
    assert max(tokens) - min(tokens) <= 2 * 110


def test_shares_follow_measured_speed_and_stay_where_little_would_be_gained() -> None:
    shares, fast, slow = Shares(), FakeWorker(), FakeWorker()
    assert shares.of([fast, slow], 20) == [10, 10]
    for member in (fast, slow):
        shares.learn(member, 10, 12.0)  # it compiles
        assert shares.speed(member), "a limit for its next answer is known already"
    shares.learn(fast, 10, 1.0)
    assert shares.of([fast, slow], 20) == [10, 10], "one of unknown speed is taken to be as fast"
    shares.learn(slow, 10, 1.05)
    assert shares.of([fast, slow], 20) == [10, 10], "5 % are not worth new shapes"
    shares.learn(slow, 10, 4.0)
    changed = shares.of([fast, slow], 20)
    assert changed[0] > 12
    slow.speed = 0.0  # started again: what was measured is of another process
    shares.learn(slow, 10, 12.0)
    assert shares.of([fast, slow], 20) == [10, 10], "a first answer says nothing of the later ones"
    shares.learn(slow, 10, 1.0)
    assert shares.of([fast, slow], 20) == [10, 10]
    assert shares.of([fast], 20) == [20]


@pytest.mark.parametrize(
    ("cpus", "workers", "share"), [([16], 3, 5), ([4, 4, 4], 2, 4), ([4, 4, 4], 4, 2), ([8, 2], 5, 2), ([2], 4, 1)]
)
def test_a_share_of_the_cpus_fits_on_one_node(cpus: list[int], workers: int, share: int) -> None:
    assert largest_share(cpus, workers) == share
