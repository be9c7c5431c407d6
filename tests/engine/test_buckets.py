"""Length buckets cover every example once and are as cheap as can be."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from bbt_fast.engine.buckets import bucket_rows

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths=LENGTHS, overhead=st.integers(0, 500), most=st.integers(1, 500))
def test_every_example_is_in_exactly_one_bucket_and_none_is_too_large(
    lengths: list[int], overhead: int, most: int
) -> None:
    buckets = bucket_rows(torch.tensor(lengths), overhead, most)
    assert sorted(torch.cat(buckets).tolist()) == list(range(len(lengths)))
    for rows in buckets:
        longest = max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * longest <= most


@given(lengths=LENGTHS)
def test_without_overhead_no_padding_is_computed(lengths: list[int]) -> None:
    for rows in bucket_rows(torch.tensor(lengths), 0, 10**6):
        assert len({lengths[row] for row in rows}) == 1


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7), overhead=st.integers(0, 60))
def test_no_other_boundaries_are_cheaper(lengths: list[int], overhead: int) -> None:
    def cost(parts: list[list[int]]) -> int:
        return sum(overhead + max(part) * len(part) for part in parts)

    ordered = sorted(lengths)
    cuts = range(1, len(ordered))
    best = min(
        cost([ordered[a:b] for a, b in itertools.pairwise((0, *chosen, len(ordered)))])
        for size in range(len(ordered))
        for chosen in itertools.combinations(cuts, size)
    )
    buckets = bucket_rows(torch.tensor(lengths), overhead, 10**6)
    assert cost([[lengths[row] for row in rows] for rows in buckets]) == best
