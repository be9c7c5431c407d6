"""Calls that run at a time, on threads of their own, answer as one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import ENGINES, Examples, load_engine
from bbt_fast.engine.crew import Crew

N_PROMPT_TOKENS = 5
SIDE_BY_SIDE = [name for name in ("ort", "openvino") if find_spec(ENGINES[name].requires)]


@pytest.fixture
def three_threads() -> Iterator[None]:
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


def test_after_a_failure_nothing_runs_on_and_nothing_is_begun() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise ValueError("no")
        gate.wait(timeout=0.2)

    with pytest.raises(ValueError, match="no"):
        Crew(2).each(work, range(50))
    soon = len(begun)
    gate.set()
    assert soon < 10
    assert len(begun) == soon


def test_no_thread_keeps_track_of_gradients() -> None:
    assert all(Crew(2).each(lambda _: torch.is_inference_mode_enabled(), range(4)))


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
@pytest.mark.parametrize("engine", SIDE_BY_SIDE)
def test_every_layer_answers_as_pytorch_does(
    engine: str,
    kind: str,
    make_model: Callable[..., PreTrainedModel],
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    model = make_model(kind)
    examples = make_examples(model, "cat", N_PROMPT_TOKENS, n_examples=6)
    options = {"mode": "cat", "n_prompt_tokens": N_PROMPT_TOKENS, "cuts": "layers"}
    options |= {"precision": "fp32", "device": "cpu"}
    loaded = load_engine(engine, model, **options)
    assert loaded.crew.size == 3
    session, reference = loaded.open(examples), load_engine("torch", model, **options).open(examples)
    assert (session._prefix is not None) == (kind == "gpt2")
    for layer in range(loaded.n_layers):
        prompts = make_prompts(model, 7, N_PROMPT_TOKENS, seed=layer)
        expected = reference.evaluate(prompts, layer)
        torch.testing.assert_close(session.evaluate(prompts, layer), expected, atol=2e-5, rtol=0)
        for each in (session, reference):
            each.commit(prompts[0], layer)
    assert session.layer_evaluations == reference.layer_evaluations
    torch.testing.assert_close(session.hidden_states(1), reference.hidden_states(1), atol=2e-5, rtol=0)
