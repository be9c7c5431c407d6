"""Generations that are replayed answer as those that are not, whatever is tuned, committed and asked in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from bbt_fast.engine import Engine, Examples, Session, load_engine, ort
from bbt_fast.engine.ort import OrtEngine, OrtRunner
from bbt_fast.engine.replay import MOST, PLAIN, Replay
from bbt_fast.export.errors import DeviceError

N_PROMPT_TOKENS = 5
LAYERS = 3


class _Tape(TorchDispatchMode):
    """Notes the operations of some work, to do them again on the very same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out


class TapeQueue:
    """Stands for a CUDA stream: what it replays reads and writes the addresses of the recorded work, as a graph does.

    Each operation is done again on the tensors that it was given at first, and its result is written over the tensor
    that came out at first. No line of the recorded Python runs again.
    """

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        yield

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captured += 1
        with _Tape() as tape:
            output = work()

        def replay() -> None:
            self.replayed += 1
            with torch.inference_mode():
                for func, args, kwargs, out in tape.steps:
                    tree_map(_write, out, func(*args, **kwargs))

        # As after a real capture, which computes nothing, the answer is not there yet.
        with torch.inference_mode():
            output.fill_(float("nan"))
        return replay, output


def _write(old: Any, new: Any) -> None:
    """Write a tensor over another; ignore other values."""
    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
        old.copy_(new)


RUN: Any = _write
"""Stands for the loaded stages where nothing asks what they are."""


def load(name: str, model: PreTrainedModel, cuts: str = "layers", **options: Any) -> Engine:
    given = {"n_prompt_tokens": N_PROMPT_TOKENS, "cuts": cuts, "precision": "fp32", "device": "cpu"} | options
    return load_engine(name, model, **given)


def replaying(name: str, model: PreTrainedModel, cuts: str = "layers", **options: Any) -> Engine:
    """An engine that replays its generations on the CPU, by a tape or ONNX Runtime's own calls."""
    engine = load(name, model, cuts, **options)
    engine.crew.size = 1
    engine.replay = Replay(engine.calls if isinstance(engine, OrtEngine) else TapeQueue(), "the CPU")
    return engine


@pytest.fixture(scope="module")
def sessions(
    roberta: PreTrainedModel, make_examples: Callable[..., Examples]
) -> Callable[[str, int], tuple[Session, Session]]:
    """A function that opens the same texts on an engine, without and with replay."""

    @cache
    def engines(name: str) -> tuple[Engine, Engine]:
        plain = load(name, roberta)
        plain.crew.size = 1
        return plain, replaying(name, roberta)

    def opened(name: str, tokens: int) -> tuple[Session, Session]:
        examples = make_examples(roberta, "add", N_PROMPT_TOKENS)
        both = engines(name)
        for engine in both:
            engine.tokens_per_call = tokens
        plain, replayed = (engine.open(examples) for engine in both)
        return plain, replayed

    return opened


actions = st.lists(
    st.tuples(st.sampled_from(["evaluate", "evaluate", "commit"]), st.integers(0, LAYERS - 1), st.integers(1, 5)),
    min_size=6,
    max_size=16,
)


@pytest.mark.parametrize("name", ["torch", "ort"])
@settings(max_examples=6)
@given(actions=actions, tokens=st.sampled_from([60, 300, 4096]), seed=st.integers(0, 99))
def test_replayed_generations_answer_as_others(
    name: str, sessions: Any, actions: list[tuple[str, int, int]], tokens: int, seed: int
) -> None:
    plain, replayed = sessions(name, tokens)
    generator = torch.Generator().manual_seed(seed)
    width = plain.engine.staged.hidden_size
    earlier: list[tuple[Tensor, Tensor]] = []
    for action, layer, population in actions:
        prompts = 0.5 * torch.randn(population, N_PROMPT_TOKENS, width, generator=generator)
        if action == "commit":
            plain.commit(prompts[0], layer)
            replayed.commit(prompts[0], layer)
            continue
        for _ in range(PLAIN + 2):  # as it is, recorded, replayed
            expected, found = plain.evaluate(prompts, layer), replayed.evaluate(prompts, layer)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
            prompts = prompts + 0.1
        earlier.append((found, found.clone()))
    for answer, then in earlier:  # no answer is memory that a later replay wrote
        assert torch.equal(answer, then)


def test_a_layer_and_a_part_have_a_recording_each_and_so_has_the_way_up_to_a_layer(
    roberta: PreTrainedModel, make_examples: Callable[..., Examples], make_prompts: Callable[..., Tensor]
) -> None:
    engine = replaying("torch", roberta)
    assert engine.replay is not None
    queue: Any = engine.replay._recorder
    session = engine.open(make_examples(roberta, "add", N_PROMPT_TOKENS))
    recordings = LAYERS * len(session._parts(4)) + (LAYERS - 1) * len(session._buckets)
    for turn in range(PLAIN + 2):
        for layer in range(LAYERS):
            prompts = make_prompts(roberta, 4, N_PROMPT_TOKENS, seed=turn)
            session.evaluate(prompts, layer)
            session.commit(prompts[0], layer)
        assert queue.replayed == max(0, turn + 1 - PLAIN) * recordings
        assert queue.captured == min(1, queue.replayed) * recordings


def test_what_has_run_before_it_was_freed_does_not_count_for_what_takes_its_place() -> None:
    queue = TapeQueue()
    replay, memory = Replay(queue, "the CPU"), np.ones(3, dtype=np.float32)

    def chain(run: Any, first: int, hidden: Tensor, prompts: Any, given: dict[str, Tensor]) -> Tensor:
        return hidden + prompts[0] + given["mask"]

    for _ in range(PLAIN + 1):
        replay.run(chain, RUN, 0, torch.ones(3), [torch.ones(3)], {"mask": torch.from_numpy(memory)})
    assert not queue.captured
    mask = torch.from_numpy(memory)
    for _ in range(PLAIN + 1):
        replay.run(chain, RUN, 0, torch.ones(3), [torch.ones(3)], {"mask": mask})
    assert queue.captured == 1


def test_a_tensor_that_lies_there_already_is_not_copied_again() -> None:
    replay = Replay(TapeQueue(), "the CPU")
    hidden, committed = torch.ones(1, 3), torch.ones(1, 3)

    def chain(run: Any, first: int, hidden: Tensor, prompts: Any, given: Any) -> Tensor:
        return hidden + prompts[0] + prompts[1]

    def answer(candidates: Tensor) -> Tensor:
        return replay.run(chain, RUN, 0, hidden, [candidates, committed], {})

    for number in range(PLAIN + 1):
        assert torch.equal(answer(torch.full((2, 3), float(number))), torch.full((2, 3), number + 2.0))
    for kept in replay._inputs.values():
        kept.zero_()
    assert torch.equal(answer(torch.full((2, 3), 7.0)), torch.full((2, 3), 7.0))  # only the candidates are new
    committed = torch.full((1, 3), 5.0)
    assert torch.equal(answer(torch.full((2, 3), 7.0)), torch.full((2, 3), 12.0))


@pytest.mark.parametrize("cuts", ["input", "layers"])
@pytest.mark.parametrize("name", ["torch", "ort"])
def test_a_recording_that_fails_is_said_once_and_not_tried_again(
    name: str,
    cuts: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(work: Callable[[], Tensor]) -> None:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = replaying(name, roberta, cuts)
    assert engine.replay is not None
    monkeypatch.setattr(engine.replay._recorder, "capture", fails)
    session, prompts = engine.open(make_examples(roberta, "add", N_PROMPT_TOKENS)), make_prompts(roberta, 4)
    first = session.evaluate(prompts)
    for _ in range(3):
        assert torch.equal(session.evaluate(prompts), first)
    assert caplog.text.count("CUDA graphs fail on the CPU: continuing without (operation not permitted") == 1
    assert not engine.replay.on


def test_onnx_runtimes_recorded_calls_share_memory_by_turns_and_number_their_graphs_by_address(
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    engine = replaying("ort", roberta)
    assert isinstance(engine, OrtEngine)
    session = engine.open(make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples=1))
    for turn in range(PLAIN + 2):
        for layer in range(LAYERS):
            session.evaluate(make_prompts(roberta, 4, N_PROMPT_TOKENS, seed=turn), layer)
    # Each stage tuned, each but the first above it, each but the last on the way up.
    assert len(engine.calls._numbers) == 3 * LAYERS - 2
    assert len(engine.calls._outputs) == 5  # hidden states by turns, of a population and of one prompt, and logits
    engine._load(session._buckets[0].encoded)
    assert not engine.calls._numbers  # a new session's weights may lie where the others' activations did
    for _ in range(PLAIN + 1):
        session.evaluate(make_prompts(roberta, 4, N_PROMPT_TOKENS), 0)
    assert min(engine.calls._numbers.values()) == 3 * LAYERS - 1


@pytest.mark.parametrize("name", ["torch", "ort"])
def test_without_cuda_nothing_is_recorded_even_if_it_is_asked_for(name: str, roberta: PreTrainedModel) -> None:
    assert load(name, roberta, include=["graph"]).replay is None


def test_recordings_that_have_not_been_used_for_longest_are_forgotten() -> None:
    replay, queue = None, TapeQueue()
    replay = Replay(queue, "the CPU")
    tensors = [{"mask": torch.ones(1)} for _ in range(MOST + 1)]

    def answer(number: int) -> Tensor:
        def chain(run: Any, first: int, hidden: Tensor, prompts: Any, given: dict[str, Tensor]) -> Tensor:
            return hidden + prompts[0] + given["mask"]

        return replay.run(chain, RUN, 0, torch.ones(2), [torch.ones(2)], tensors[number])

    for _ in range(PLAIN + 1):
        answer(0)
    assert queue.captured == 1
    for number in range(1, MOST):
        answer(number)
    answer(0)
    answer(MOST)
    answer(0)
    assert queue.captured == 1
    answer(1)  # forgotten: it warms up again
    assert queue.captured == 1
    answer(2)
    assert queue.captured == 1


@pytest.mark.parametrize("name", ["torch", "ort"])
def test_logits_are_on_the_cpu(
    name: str, roberta: PreTrainedModel, make_examples: Callable[..., Examples], make_prompts: Callable[..., Tensor]
) -> None:
    session = load(name, roberta).open(make_examples(roberta, "add", N_PROMPT_TOKENS))
    assert session.evaluate(make_prompts(roberta, 2)).device.type == "cpu"


def test_onnx_runtime_without_cuda_graphs_answers_without(
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Plain(OrtRunner):
        def __init__(self, *given: Any, graphs: bool) -> None:
            if graphs:
                raise DeviceError("graphs are not supported here")
            super().__init__(*given, graphs=False)

    monkeypatch.setattr(ort, "OrtRunner", Plain)
    engine = replaying("ort", roberta)
    assert isinstance(engine, OrtEngine)
    encoded = engine.open(make_examples(roberta, "add", N_PROMPT_TOKENS))._buckets[0].encoded
    assert isinstance(engine._load(encoded), Plain)
    assert engine.replay is None
    assert "continuing without (graphs are not supported here)" in caplog.text
