"""Length buckets cover every example once, are as cheap as can be, and are padded where a kernel wants it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, load_engine
from bbt_fast.engine.buckets import bucket_rows
from bbt_fast.engine.pytorch import TorchEngine
from bbt_fast.export.prompts import Mode

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


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
@pytest.mark.parametrize("mode", ["add", "cat"])
def test_buckets_with_masks_are_padded_to_the_runtimes_step_and_answer_the_same(
    kind: str,
    mode: Mode,
    make_model: Callable[..., PreTrainedModel],
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(kind)
    examples, prompts = make_examples(model, mode, min_length=4, max_length=19), make_prompts(model)
    options = {"mode": mode, "n_prompt_tokens": 5, "precision": "fp32", "device": "cpu", "ablate": ["buckets"]}
    plain = load_engine("torch", model, **options).open(examples)
    monkeypatch.setattr(TorchEngine, "length_step", {"cpu": 8})
    stepped = load_engine("torch", model, **options).open(examples)
    torch.testing.assert_close(stepped.evaluate(prompts), plain.evaluate(prompts), atol=1e-5, rtol=0)
    torch.testing.assert_close(stepped.hidden_states(0), plain.hidden_states(0), atol=0, rtol=0)
    (bucket,) = stepped._buckets
    prefix = bucket.encoded.prefix
    assert (bucket.encoded.joined_length + (0 if prefix is None else prefix.joined_length)) % 8 == 0


def test_a_bucket_is_not_padded_without_a_mask_or_where_positions_end(
    make_model: Callable[..., PreTrainedModel],
    make_examples: Callable[..., Examples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TorchEngine, "length_step", {"cpu": 8})
    options = {"n_prompt_tokens": 5, "precision": "fp32", "device": "cpu", "ablate": ["buckets"]}
    model = make_model("roberta")
    alike = make_examples(model, min_length=9, max_length=9)
    assert load_engine("torch", model, **options).open(alike)._buckets[0].encoded.joined_length == 17
    for positions, padded in ((28, True), (27, False)):  # two are no token's, and two are kept
        model = make_model("roberta", max_position_embeddings=positions)
        texts = make_examples(model, min_length=4, max_length=13)
        longest = int(texts.lengths.max())
        assert 16 < longest < 24
        (bucket,) = load_engine("torch", model, **options).open(texts)._buckets
        assert bucket.encoded.joined_length == (24 if padded else longest)
