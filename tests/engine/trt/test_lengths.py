"""Attention by the lengths of texts instead of padding masks, on the fake TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel

from bbt_fast.engine import Examples, Session
from bbt_fast.engine.padding import padding_lengths
from bbt_fast.engine.tensorrt import TensorRtEngine
from bbt_fast.export.model import StagedModel
from bbt_fast.export.tensorrt import LENGTHS

N_PROMPT_TOKENS = 5


@pytest.fixture
def padded(roberta: PreTrainedModel, make_examples: Callable[..., Examples]) -> Examples:
    """Texts of several lengths in one bucket."""
    return make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples=5, min_length=4, max_length=7)


@pytest.fixture
def padded_apart(
    load: Callable[..., TensorRtEngine], padded: Examples, own_cache: Callable[[TensorRtEngine], None]
) -> Examples:
    """The same texts, and from now on a cache of the test's own with their graphs."""
    engine = load("layers")
    engine.open(padded)
    own_cache(engine)
    return padded


def by_lengths(builds: list[dict[str, dict[str, object]]]) -> set[bool]:
    """Whether attention went by lengths, in the builds of graphs with masks."""
    return {LENGTHS in build["shapes"] for build in builds if "attention_mask" in build["shapes"]}


@pytest.mark.parametrize("mode", ["add", pytest.param("cat", marks=pytest.mark.slow)])
def test_attention_goes_by_lengths_where_all_that_is_hidden_is_padding(
    mode: str,
    load: Callable[..., TensorRtEngine],
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    prompts: Callable[..., Tensor],
    reference: Callable[..., Session],
) -> None:
    texts = make_examples(roberta, mode, N_PROMPT_TOKENS, n_examples=5, min_length=4, max_length=7)
    engine = load("layers", mode=mode)
    session = engine.open(texts)
    assert len(session._buckets) == 1
    expected = reference(texts, "layers", mode)
    for candidates, layer in ((1, 0), (4, 0), (4, 1), (1, 2), (4, 2)):
        logits = session.evaluate(prompts(candidates), layer)
        torch.testing.assert_close(logits, expected.evaluate(prompts(candidates), layer), atol=2e-5, rtol=0)
    assert all(LENGTHS in shapes for _, shapes in session._buckets[0].run._plans)


@pytest.mark.parametrize("fault", ["lengths", "wrong lengths"])
def test_attention_goes_by_masks_for_good_where_lengths_fail(
    fault: str,
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    padded_apart: Examples,
    prompts: Callable[..., Tensor],
    caplog: pytest.LogCaptureFixture,
    reference: Callable[..., Session],
) -> None:
    fake.faults.add(fault)
    engine = load("layers")
    engine.open(padded_apart)
    assert "attention by lengths fails on Fake_GPU-sm86: continuing with masks" in caplog.text
    logits = engine.open(padded_apart).evaluate(prompts(4), 1)
    expected = reference(padded_apart, "layers").evaluate(prompts(4), 1)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    fake.faults.clear()
    fake.builds.clear()
    assert torch.equal(load("layers").open(padded_apart).evaluate(prompts(4), 1), logits)
    assert fake.builds == []  # lengths were not tried again


def test_lengths_that_fail_for_a_population_only_are_given_up_in_the_middle_of_a_run(
    fake: ModuleType,
    load: Callable[..., TensorRtEngine],
    padded_apart: Examples,
    prompts: Callable[..., Tensor],
    reference: Callable[..., Session],
) -> None:
    engine = load("layers")
    session = engine.open(padded_apart)
    fake.builds.clear()
    fake.faults.add("lengths")
    expected = reference(padded_apart, "layers")
    for candidates in (9, 1):
        logits = session.evaluate(prompts(candidates), 1)
        torch.testing.assert_close(logits, expected.evaluate(prompts(candidates), 1), atol=2e-5, rtol=0)
    assert by_lengths(fake.builds) == {False}


def test_only_masks_that_hide_padding_and_nothing_else_become_lengths(
    roberta: PreTrainedModel, padded: Examples
) -> None:
    staged = StagedModel(roberta, "add", N_PROMPT_TOKENS, "input")
    encoded = staged.encode(padded)
    mask = encoded.tensors["attention_mask"]
    found = padding_lengths(encoded)
    assert found is not None
    assert found.tolist() == padded.lengths.tolist()
    square = torch.ones(mask.shape[-2:])
    causal, near = square.tril().bool(), square.tril(2).triu(-2).bool()
    for other in (mask & causal, mask & near, mask.float(), mask.flip(3)):
        assert padding_lengths(replace(encoded, tensors=encoded.tensors | {"attention_mask": other})) is None
    assert padding_lengths(staged.encode(padded.select(torch.tensor([0])))) is None  # no padding, hence no mask


def test_lengths_do_not_stand_for_the_masks_of_a_model_with_a_decoder(make_examples: Callable[..., Examples]) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = BartForConditionalGeneration(BartConfig(vocab_size=200, d_model=32, **sizes)).eval()
    texts = make_examples(model, "add", N_PROMPT_TOKENS, n_examples=5, min_length=4, max_length=7)
    staged = StagedModel(model, "add", N_PROMPT_TOKENS, "input")
    decoder = {"decoder_input_ids": texts.input_ids[:, :2], "answer_position": torch.ones(5).long()}
    encoded = staged.encode(replace(texts, **decoder))
    assert encoded.tensors["attention_mask"].dtype is torch.bool
    assert padding_lengths(encoded) is None
