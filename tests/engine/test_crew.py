"""Calls that run at a time, on threads of their own, answer as one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.benchmarks.harness.tiny import tiny_model
from bbt_fast.engine import ENGINES, Engine, Examples, crew, load_engine
from bbt_fast.engine.crew import Crew
from bbt_fast.export.families import FAMILIES

N_PROMPT_TOKENS = 5
MODES = {"roberta": ("cat", N_PROMPT_TOKENS), "gpt2": ("add", 7)}
"""Mode and number of prompt tokens by the kind of model, those of other tests, to share their traces."""
SIDE_BY_SIDE = [name for name in ("ort", "openvino") if ENGINES[name].installed]


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Let a crew have three members, on any machine."""
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(usual)


def test_results_keep_the_items_order() -> None:
    later = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert later.wait(timeout=10)  # the first is done last
        elif item == 3:
            later.set()
        return item * item

    assert Crew(2).each(work, range(4)) == [0, 1, 4, 9]


def test_a_crew_of_one_is_the_caller() -> None:
    assert Crew(1).each(lambda _: threading.current_thread(), range(3)) == [threading.current_thread()] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_after_a_failure_nothing_runs_on_and_nothing_is_begun(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    ended: list[int] = []
    other, cancelled = threading.Event(), threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == failing:
            assert other.wait(timeout=60)
            ended.append(item)
            raise ValueError("no")
        other.set()
        assert cancelled.wait(timeout=60)
        ended.append(item)

    def wait_and_tell(futures: Any, **until: Any) -> object:
        if not until:  # the others are cancelled by now
            cancelled.set()
        return wait(futures, **until)

    monkeypatch.setattr(crew, "wait", wait_and_tell)
    try:
        with pytest.raises(ValueError, match="no"):
            Crew(2).each(work, range(50))
        assert sorted(ended) == sorted(begun)
        assert set(begun) <= {0, 1, 2}  # the thread of the failure may have gone on before anyone knew of it
    finally:
        cancelled.set()


def test_no_thread_keeps_track_of_gradients() -> None:
    assert all(Crew(2).each(lambda _: torch.is_inference_mode_enabled(), range(4)))


def tiny(kind: str, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """A tiny model; GPT-2's is that of tests/export/test_families.py."""
    return make_model(kind) if kind == "roberta" else tiny_model(next(f for f in FAMILIES if f.name == "GPT-2"), kind)


@pytest.fixture
def load(three_threads: None, make_model: Callable[..., PreTrainedModel]) -> Callable[..., Engine]:
    """A function that loads an engine for a tiny model, on three threads if its calls take one each."""

    def load(name: str, kind: str = "roberta", ablate: tuple[str, ...] = ()) -> Engine:
        return load_engine(
            name,
            tiny(kind, make_model),
            mode=MODES[kind][0],
            n_prompt_tokens=MODES[kind][1],
            cuts="layers",
            precision="fp32",
            device="cpu",
            ablate=ablate,
        )

    return load


@pytest.mark.parametrize("population", [1, 7])
@pytest.mark.parametrize(
    ("kind", "ablate"),
    [("roberta", ()), ("roberta", ("reuse",)), pytest.param("gpt2", (), marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_every_layer_answers_as_pytorch_does(
    name: str,
    kind: str,
    ablate: tuple[str, ...],
    population: int,
    load: Callable[..., Engine],
    make_model: Callable[..., PreTrainedModel],
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    model = tiny(kind, make_model)
    examples = make_examples(model, *MODES[kind], n_examples=6)
    engine = load(name, kind, ablate)
    assert engine.crew.size == 3
    session, reference = engine.open(examples), load("torch", kind, ablate).open(examples)
    assert (session._prefix is not None) == (kind == "gpt2")
    for layer in range(engine.n_layers):
        prompts = make_prompts(model, population, MODES[kind][1], seed=layer)
        answers = session.evaluate(prompts, layer)
        torch.testing.assert_close(answers, reference.evaluate(prompts, layer), atol=2e-5, rtol=0)
        assert torch.equal(session.evaluate(prompts, layer), answers)
        reference.evaluate(prompts, layer)
        for each in (session, reference):
            each.commit(prompts[0], layer)
    assert session.layer_evaluations == reference.layer_evaluations
    torch.testing.assert_close(session.hidden_states(1), reference.hidden_states(1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
@pytest.mark.parametrize("population", [1, 20])
def test_small_work_too_is_divided_among_all_threads(
    population: int,
    name: str,
    load: Callable[..., Engine],
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
) -> None:
    texts = make_examples(roberta, "cat", N_PROMPT_TOKENS, n_examples=6, min_length=12, max_length=12)
    parts = load(name).open(texts)._parts(population)
    assert len(parts) >= 3
    assert sum(part.tokens for part in parts) == population * 6 * (int(texts.lengths[0]) + N_PROMPT_TOKENS)


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_memory_for_one_call_at_a_time_is_enough(
    name: str,
    load: Callable[..., Engine],
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    run_by: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = load(name)
    session = engine.open(make_examples(roberta, "cat", N_PROMPT_TOKENS, n_examples=4))
    prompts = make_prompts(roberta, 4, N_PROMPT_TOKENS)
    expected = session.evaluate(prompts, 1)
    busy, refused, take_less = threading.Lock(), threading.Event(), session._take_less
    for bucket in session._buckets:

        def scarce(*call: Any, run: Callable[..., Tensor] = bucket.run) -> Tensor:
            if not busy.acquire(blocking=False):
                refused.set()
                raise MemoryError
            try:
                assert engine.crew.size == 1 or refused.wait(timeout=60)  # so that calls meet in every round
                return run(*call)
            finally:
                busy.release()

        run_by(bucket, scarce)
    monkeypatch.setattr(session, "_take_less", lambda *why: (refused.clear(), take_less(*why)))
    torch.testing.assert_close(session.evaluate(prompts, 1), expected, atol=1e-5, rtol=0)
    assert "out of memory: continuing with one thread" in caplog.text


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_a_failed_call_is_tried_again_in_smaller_parts(
    name: str,
    load: Callable[..., Engine],
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    run_by: Callable[..., None],
) -> None:
    session = load(name).open(make_examples(roberta, "cat", N_PROMPT_TOKENS, n_examples=1))
    prompts = make_prompts(roberta, 40, N_PROMPT_TOKENS)
    expected = session.evaluate(prompts)
    (bucket,) = session._buckets
    run, sizes = bucket.run, []

    def faulty(stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        if stage == 0:
            sizes.append(len(prompt))
        if len(prompt) == largest:
            raise RuntimeError("this shape does not work")
        return run(stage, hidden, prompt, tensors)

    largest = len(session._parts(len(prompts))[0])
    run_by(bucket, faulty)
    torch.testing.assert_close(session.evaluate(prompts), expected, atol=1e-5, rtol=0)
    assert max(sizes[-10:]) <= largest // 2
