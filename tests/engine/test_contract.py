"""Every engine keeps the contract: the original's outputs, and answers that depend on nothing but the prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import ENGINES, Engine, Examples, load_engine
from bbt_fast.engine.remote import load_remote
from bbt_fast.export.errors import NumericsError, ShapeError
from bbt_fast.export.model import load_model
from bbt_fast.service.app import Service
from bbt_fast.service.keys import Keys
from bbt_fast.service.limits import Limits
from bbt_fast.service.scorer import Scorer
from bbt_fast.service.server import in_background

CPU_ENGINES = [name for name, row in ENGINES.items() if name == "trt" or row.installed]
SLOW = pytest.mark.slow
PACKED = [pytest.param(f"{name} packed", marks=SLOW) for name in ("torch", "ort")]
"""The engines as on CUDA, on twins of its kernels: texts in a row, fused kernels."""
# The fake TensorRT has fast tests of its own.
LOCAL = [*(pytest.param(name, marks=SLOW) if name == "trt" else name for name in CPU_ENGINES), *PACKED]
AFAR = ["remote", pytest.param("workers", marks=[SLOW, pytest.mark.cluster])]
EVERY = [*LOCAL, *AFAR]
"""LOCAL for tests that look inside an engine; that of a server or of workers is out of sight, and one of LOCAL."""
N_PROMPT_TOKENS = 5
SERVERS = ExitStack()
ON_WORKERS: dict[Any, Any] = {}
"""The engine of two workers that was loaded last; another one ends it, since each has processes of its own."""
pytestmark = pytest.mark.usefixtures("fake_tensorrt")
"""For "trt", which here runs the fake TensorRT on the CPU."""


@pytest.fixture(scope="module", autouse=True)
def servers() -> Iterator[None]:
    """Stop the servers and workers of ``load`` after the last test."""
    with SERVERS:
        yield
    forget_workers()


@cache
def serve(model: Any) -> str:
    """Serve a model on PyTorch until the last test here has run; return the URL."""
    limits = Limits(max_graphs=8)
    loaded = load_model(model) if isinstance(model, Path) else model
    service = Service(Scorer(loaded, "torch", "fp32", "cpu", limits), None, None, Keys(None), limits)
    return SERVERS.enter_context(in_background(service))


def on_workers(model: Any, **options: Any) -> Any:
    """Load PyTorch on two workers, unless that was the last thing loaded on them."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from bbt_fast.engine.workers import load_workers

    key = (model, *sorted(options.items()))
    if key not in ON_WORKERS:
        forget_workers()
        ON_WORKERS[key] = load_workers("torch", model, workers=2, precision="fp32", device="cpu", **options)
    return ON_WORKERS[key]


def forget_workers() -> None:
    """End the engine of workers that was loaded last."""
    while ON_WORKERS:
        ON_WORKERS.popitem()[1].close()


def load(engine: str, model: Any, **options: Any) -> Any:
    """Load an engine by its name in EVERY; without a saving those of AFAR are PyTorch here."""
    if engine in AWAY and not options.get("ablate"):
        options.pop("ablate", None)
        return AWAY[engine](model, **options)
    name, _, packed = ("torch" if engine in AWAY else engine).partition(" ")
    include = ("packing", "fusion") if packed else ()
    return load_engine(name, model, precision="fp32", device="cpu", include=include, **options)


AWAY: dict[str, Callable[..., Any]] = {
    "remote": lambda model, **options: load_remote(serve(model), **options),
    "workers": on_workers,
}


def kept(load: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function loads, but for workers, of which there are two at a time."""
    cached = cache(load)

    @wraps(load)
    def again(*args: Any) -> Any:
        return load(*args) if "workers" in args else cached(*args)

    return again


@kept
def load_golden(folder: Path, engine: str, mode: str, cuts: str) -> Engine:
    return load(engine, folder, mode=mode, n_prompt_tokens=7, cuts=cuts)


def golden_examples(data: dict[str, np.ndarray]) -> Examples:
    """The texts of the recorded answers."""
    tensors = [torch.from_numpy(data[name]).long() for name in ("input_ids", "attention_mask", "mask_pos")]
    return Examples(*tensors, label_token_ids=torch.arange(data["logits_add_0"].shape[-1]))


def stacked(data: dict[str, np.ndarray], what: str) -> Tensor:
    """A recorded value of all three candidates, as one tensor."""
    return torch.stack([torch.from_numpy(data[f"{what}_{k}"]).float() for k in range(3)])


@pytest.mark.parametrize(
    ("family", "mode", "cuts", "engine"),
    [
        pytest.param(
            family,
            mode,
            cuts,
            engine,
            marks=SLOW if "packed" in engine or engine == "trt" or (family, cuts) == ("bert", "input") else (),
        )
        for family, mode in [("roberta", "add"), ("roberta", "cat"), ("bert", "add")]
        for cuts in ("input", "layers")
        for engine in (*CPU_ENGINES, "remote", "torch packed", "ort packed")
        if (family, cuts) != ("bert", "input") or engine in ("torch", "ort")  # whose layers are RoBERTa's
    ],
)
def test_a_prompt_at_the_input_answers_as_the_original_does(
    family: str, mode: str, cuts: str, engine: str, golden_file: Callable[..., Path]
) -> None:
    data = np.load(golden_file(family, "shallow.npz"))
    session = load_golden(golden_file(family), engine, mode, cuts).open(golden_examples(data))
    logits = session.evaluate(stacked(data, f"prompt_{mode}"))
    torch.testing.assert_close(logits, stacked(data, f"logits_{mode}"), atol=2e-5, rtol=0)


@pytest.mark.parametrize("engine", EVERY)
@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_a_prompt_at_any_layer_answers_as_the_original_does(
    engine: str, family: str, golden_file: Callable[..., Path]
) -> None:
    data = np.load(golden_file(family, "deep.npz"))
    loaded = load_golden(golden_file(family), engine, "add", "layers")
    session = loaded.open(golden_examples(data))
    for prompts, logits in zip(stacked(data, "prompt_add"), stacked(data, "logits_add"), strict=True):
        for layer in range(loaded.n_layers):
            session.commit(prompts[layer], layer)
        for layer in range(loaded.n_layers):
            found = session.evaluate(prompts[layer][None], layer)[0]
            torch.testing.assert_close(found, logits, atol=2e-5, rtol=0)


@kept
def load_tiny(engine: str, mode: str, cuts: str, model: PreTrainedModel, *ablate: str) -> Engine:
    return load(engine, model, mode=mode, n_prompt_tokens=N_PROMPT_TOKENS, cuts=cuts, ablate=ablate)


@pytest.mark.parametrize("engine", LOCAL)
@pytest.mark.parametrize("mode", ["add", "cat"])
@settings(max_examples=6)
@given(
    n_examples=st.integers(1, 7),
    candidates=st.integers(1, 6),
    longest=st.integers(4, 20),
    tokens_per_call=st.sampled_from([1, 60, 200, 100_000]),
    seed=st.integers(0, 99),
)
def test_buckets_and_chunks_change_nothing(
    engine: str,
    mode: str,
    n_examples: int,
    candidates: int,
    longest: int,
    tokens_per_call: int,
    seed: int,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    examples = make_examples(roberta, mode, N_PROMPT_TOKENS, n_examples, max_length=longest, seed=seed)
    prompts = make_prompts(roberta, candidates, N_PROMPT_TOKENS, seed=seed)
    whole = load_tiny("torch", mode, "input", roberta, "buckets", "answer_only", "label_head")
    loaded = load_tiny(engine, mode, "input", roberta)
    usual, loaded.tokens_per_call = loaded.tokens_per_call, tokens_per_call
    try:
        logits = loaded.open(examples).evaluate(prompts)
    finally:
        loaded.tokens_per_call = usual
    torch.testing.assert_close(logits, whole.open(examples).evaluate(prompts), atol=2e-5, rtol=0)


@pytest.mark.parametrize("engine", EVERY)
@pytest.mark.parametrize("mode", ["add", "cat"])
@settings(max_examples=4)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["commit", "evaluate"]), st.integers(0, 2)), min_size=1, max_size=8),
    candidates=st.integers(1, 5),
    n_examples=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_activation_reuse_changes_nothing_whatever_is_committed_when(
    engine: str,
    mode: str,
    steps: list[tuple[str, int]],
    candidates: int,
    n_examples: int,
    seed: int,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    examples = make_examples(roberta, mode, N_PROMPT_TOKENS, n_examples, seed=seed)
    sessions = [load_tiny(engine, mode, "layers", roberta, *ablate).open(examples) for ablate in ((), ("reuse",))]
    for number, (step, layer) in enumerate([*steps, ("evaluate", 2)]):
        prompts = make_prompts(roberta, candidates, N_PROMPT_TOKENS, seed=seed + number)
        if step == "commit":
            for session in sessions:
                session.commit(prompts[0], layer)
        else:
            kept, recomputed = (session.evaluate(prompts, layer) for session in sessions)
            # Not bitwise: a matrix product's last bit depends on how many rows it has, P * N here and N there.
            torch.testing.assert_close(kept, recomputed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", [*LOCAL, "remote"])  # workers share the texts out, and other shapes round otherwise
def test_reuse_is_bitwise_for_one_candidate(
    engine: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    examples = make_examples(roberta, "add", N_PROMPT_TOKENS)
    prompts = make_prompts(roberta, 3, N_PROMPT_TOKENS)
    answers = []
    for ablate in ((), ("reuse",)):
        session = load_tiny(engine, "add", "layers", roberta, *ablate).open(examples)
        for layer in range(3):
            session.commit(prompts[layer], layer)
        answers.append(session.evaluate(prompts[2:], 2))
    assert torch.equal(*answers)


@pytest.mark.parametrize("engine", LOCAL)
def test_a_round_over_the_layers_runs_what_it_must_and_not_one_layer_more(
    engine: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    loaded = load_tiny(engine, "add", "layers", roberta)
    session = loaded.open(make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples=4))
    population, layers = 5, loaded.n_layers
    for turn in range(2):
        before = session.layer_evaluations
        for layer in range(layers):
            prompts = make_prompts(roberta, population, N_PROMPT_TOKENS, seed=10 * turn + layer)
            session.evaluate(prompts, layer)
            session.commit(prompts[0], layer)
        tuned = population * sum(layers - layer for layer in range(layers))
        below = layers - 1  # each but the last runs once more, for one candidate, under its new prompt
        assert session.layer_evaluations - before == (tuned + below) * len(session)


@pytest.mark.parametrize("engine", EVERY)
def test_evaluate_depends_on_the_committed_prompts_of_the_other_layers_only(
    engine: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    session = load_tiny(engine, "add", "layers", roberta).open(make_examples(roberta, "add", N_PROMPT_TOKENS))
    prompts = make_prompts(roberta, 3, N_PROMPT_TOKENS)
    alone = session.evaluate(prompts, 1)
    session.commit(prompts[0], 1)
    assert torch.equal(session.evaluate(prompts, 1), alone)
    for other in (0, 2):
        session.commit(prompts[1], other)
        assert not torch.allclose(session.evaluate(prompts, 1), alone, atol=1e-3)
        session.commit(torch.zeros_like(prompts[1]), other)
        torch.testing.assert_close(session.evaluate(prompts, 1), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", EVERY)
@pytest.mark.parametrize("ablated", [(), ("label_head",)])
def test_a_class_of_several_biased_words_is_as_likely_as_their_mean(
    engine: str,
    ablated: tuple[str, ...],
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    words = make_examples(roberta, "add", N_PROMPT_TOKENS, n_classes=5)
    loaded = load_tiny(engine, "add", "input", roberta, *ablated)
    prompts = make_prompts(roberta, 3, N_PROMPT_TOKENS)
    bias = torch.tensor([0.5, -1.25, 0.0, 2.0, -0.75])
    each = (loaded.open(words).evaluate(prompts).double() + bias).exp()
    biased = replace(words, label_classes=torch.tensor([0, 1, 1, 2, 0]), label_bias=bias)
    of_classes = loaded.open(biased).evaluate(prompts)
    expected = torch.stack([each[..., [0, 4]].mean(2), each[..., [1, 2]].mean(2), each[..., 3]], dim=2).log()
    torch.testing.assert_close(of_classes, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", EVERY)
def test_a_deep_engine_with_zero_prompts_above_answers_as_a_shallow_one(
    engine: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
) -> None:
    prompts = make_prompts(roberta, 3, N_PROMPT_TOKENS)
    for mode in ("add", "cat"):
        examples = make_examples(roberta, mode, N_PROMPT_TOKENS)
        shallow, deep = (
            load_tiny(engine, mode, cuts, roberta).open(examples).evaluate(prompts) for cuts in ("input", "layers")
        )
        torch.testing.assert_close(shallow, deep, atol=1e-5, rtol=0)


def test_hidden_states_are_those_of_the_stock_model(
    roberta: PreTrainedModel, make_examples: Callable[..., Examples]
) -> None:
    examples = make_examples(roberta, "add", N_PROMPT_TOKENS)
    session = load_tiny("torch", "add", "layers", roberta).open(examples)
    with torch.no_grad():
        stock = roberta(
            input_ids=examples.input_ids, attention_mask=examples.attention_mask, output_hidden_states=True
        ).hidden_states
    real = examples.attention_mask.bool()
    for layer in range(roberta.config.num_hidden_layers):
        found, expected = session.hidden_states(layer), stock[layer][real]
        assert found.shape == expected.shape
        torch.testing.assert_close(found.sum(0), expected.sum(0), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.std(), expected.std(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((2, 3, 32), 0, "prompts have 3 tokens, but graph 'roberta-add-fp32' was built for 5"),
        ((2, 5, 16), 0, "prompts are 16 wide, but graph 'roberta-add-fp32' has hidden size 32"),
        ((5, 32), 0, r"prompts must be \[P, n, H\]"),
        ((2, 5, 32), 1, "layer is 1, but prompts can enter layers 0 to 0 here. Load the engine with cuts="),
        ((2, 5, 32), -1, "layer is -1"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    shape: tuple[int, ...], layer: int, message: str, roberta: PreTrainedModel, make_examples: Callable[..., Examples]
) -> None:
    session = load_tiny("torch", "add", "input", roberta).open(make_examples(roberta, "add", N_PROMPT_TOKENS))
    with pytest.raises(ShapeError, match=message):
        session.evaluate(torch.zeros(shape), layer)


@pytest.mark.parametrize("engine", EVERY)
def test_nan_and_infinite_logits_are_an_error_that_says_what_to_try(
    engine: str, roberta: PreTrainedModel, make_examples: Callable[..., Examples]
) -> None:
    session = load_tiny(engine, "add", "input", roberta).open(make_examples(roberta, "add", N_PROMPT_TOKENS))
    said = f"{engine.partition(' ')[0]} in fp32 returned NaN or infinity. Try a smaller --sigma"
    if engine == "remote":  # such prompts are not sent
        said = "prompts contain NaN or infinity. Try a smaller --sigma"
    if engine == "workers":
        said = "torch in fp32 returned NaN or infinity. Try a smaller --sigma"
    with pytest.raises(NumericsError, match=said):
        session.evaluate(torch.full((1, N_PROMPT_TOKENS, roberta.config.hidden_size), float("nan")))


@pytest.mark.parametrize("engine", LOCAL)
def test_a_population_that_does_not_fit_into_memory_is_run_in_smaller_chunks(
    engine: str,
    roberta: PreTrainedModel,
    make_examples: Callable[..., Examples],
    make_prompts: Callable[..., Tensor],
    run_by: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = load_tiny(engine, "add", "input", roberta)
    session = loaded.open(make_examples(roberta, "add", N_PROMPT_TOKENS, n_examples=1))
    prompts = make_prompts(roberta, 7, N_PROMPT_TOKENS)
    expected = session.evaluate(prompts)
    run, sizes = session._buckets[0].run, []

    def scarce(stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        sizes.append(prompt.shape[0])
        if prompt.shape[0] > 2:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return run(stage, hidden, prompt, tensors)

    run_by(session._buckets[0], scarce)
    monkeypatch.setattr(loaded, "tokens_per_call", loaded.tokens_per_call)
    torch.testing.assert_close(session.evaluate(prompts), expected, atol=1e-5, rtol=0)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
