"""Texts in a row answer as padded ones do, whatever their lengths, and fused kernels as plain ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from bbt_fast.engine import Engine, Examples, load_engine
from bbt_fast.engine.buckets import pack_rows
from bbt_fast.engine.fused import Part
from bbt_fast.engine.gelu import GeluLinear
from bbt_fast.engine.pytorch import TorchEngine
from bbt_fast.engine.reference import ModuleRunner
from bbt_fast.export.families import family_of
from bbt_fast.export.loading import AUTO_CLASSES

N_PROMPT_TOKENS = 5
VOCABULARY = 90
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,  # and what follows from it as in tests/goldens, so that they share traces
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 60,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.2,
}
OWN: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 48},
    "gpt2": {"n_inner": 128},
    "bart": {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    | {"d_model": 64, "init_std": 0.2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
}
PACKED = ("roberta", "electra", "bart", "gpt2", "llama")
"""Families of each kind whose attention can go by the bounds of texts."""
PADDED = ("t5", "deberta-v2", "modernbert")
"""Families whose attention knows positions or windows."""
SAVINGS = ("packing", "fusion", "packing+fusion")
COMBINATIONS = [
    *product(PACKED, ("add", "cat"), ("input", "layers"), ("torch",), SAVINGS),
    *((family, "add", "layers", "ort", "packing+fusion") for family in PACKED if family != "electra"),
    *(("roberta", "cat", cuts, "ort", "packing+fusion") for cuts in ("input", "layers")),
    *(("roberta", "add", "input", "ort", savings) for savings in ("packing", "fusion")),
    ("bart", "cat", "input", "ort", "packing+fusion"),
]
"""All of PyTorch's, and as many exports as meet each kind of layer (ELECTRA's is RoBERTa's) and each option once."""
FAST = {
    *(("roberta", mode, "layers", engine, "packing+fusion") for mode in ("add", "cat") for engine in ("torch", "ort")),
    ("llama", "add", "layers", "torch", "packing+fusion"),
    *((family, "add", "input", "torch", "packing+fusion") for family in PACKED),
}
"""What the fast tests run of them."""
CLOSE = {"atol": 1e-5, "rtol": 2e-5}
"""How far fp32 may round otherwise where kernels sum in another order: these models' logits are around 2."""


@cache
def tiny(model_type: str) -> PreTrainedModel:
    """A tiny model whose biases and norms are random too: as they are made they are zeros and ones."""
    config = AutoConfig.for_model(model_type, **TINY, **OWN.get(model_type, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, AUTO_CLASSES[family_of(config).kind]).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@cache
def load(model_type: str, engine: str, mode: str, cuts: str, *include: str) -> Engine:
    """The engine on a tiny model, once for the same arguments."""
    return load_engine(
        engine,
        tiny(model_type),
        mode=mode,
        n_prompt_tokens=N_PROMPT_TOKENS,
        cuts=cuts,
        precision="fp32",
        device="cpu",
        include=include,
    )


def draw_examples(engine: Engine, lengths: list[int], seed: int = 0) -> Examples:
    """Texts with so many tokens of their own, right-padded, that all begin alike."""
    generator = torch.Generator().manual_seed(seed)
    before = engine.family.prompt_start + (N_PROMPT_TOKENS if engine.mode == "add" else 0)
    real = torch.tensor(lengths) + before
    ids = torch.randint(5, VOCABULARY, (len(lengths), int(real.max())), generator=generator)
    ids[:, :before] = 4
    mask = (torch.arange(ids.shape[1]) < real[:, None]).long()
    kind = engine.family.kind
    decoder = ids[:, :2] if kind == "seq2seq" and engine.family.decoder_inputs is None else None
    position = torch.ones_like(real) if decoder is not None else real - 1 if kind == "decoder" else real - 2
    return Examples(ids * mask, mask, position, torch.tensor([11, 12, 13]), decoder)


def draw_prompts(engine: Engine, candidates: int, seed: int = 0) -> Tensor:
    shape = (candidates, N_PROMPT_TOKENS, engine.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_of(engine: Engine, examples: Examples) -> list[Any]:
    """The packed row of each bucket, or None if a bucket is padded."""
    return [bucket.encoded.row for bucket in engine.open(examples)._buckets]


@pytest.mark.parametrize(
    ("model_type", "mode", "cuts", "engine", "include"),
    [pytest.param(*row, marks=() if row in FAST else pytest.mark.slow) for row in COMBINATIONS],
)
def test_savings_of_the_gpu_change_no_answer(model_type: str, mode: str, cuts: str, engine: str, include: str) -> None:
    found, plain = load(model_type, engine, mode, cuts, *include.split("+")), load(model_type, "torch", mode, cuts)
    examples = draw_examples(plain, [4, 9, 9, 2, 14])
    sessions = found.open(examples), plain.open(examples)
    for layer in range(plain.staged.n_stages):
        prompts = draw_prompts(plain, 4, seed=layer)
        answers = [session.evaluate(prompts, layer) for session in sessions]
        torch.testing.assert_close(*answers, **CLOSE)
        for session in sessions:
            session.commit(prompts[1], layer)
        states = [session.hidden_states(layer) for session in sessions]
        torch.testing.assert_close(states[0].std(), states[1].std(), **CLOSE)
        assert states[0].shape == states[1].shape
    assert all(row is not None for row in rows_of(found, examples)) == ("packing" in include)


@pytest.mark.parametrize(
    ("engine", "model_type", "mode"),
    [("torch", "roberta", "add"), ("torch", "roberta", "cat"), ("torch", "llama", "add"), ("ort", "roberta", "add")],
)
@settings(max_examples=5)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=2, max_size=8),
    steps=st.lists(st.tuples(st.sampled_from(["commit", "evaluate"]), st.integers(0, 2)), min_size=1, max_size=6),
    candidates=st.integers(1, 5),
    tokens_per_call=st.sampled_from([1, 100, 100_000]),
    seed=st.integers(0, 99),
)
def test_rows_equal_buckets_whatever_the_lengths_and_whatever_is_committed_when(
    engine: str,
    model_type: str,
    mode: str,
    lengths: list[int],
    steps: list[tuple[str, int]],
    candidates: int,
    tokens_per_call: int,
    seed: int,
) -> None:
    engines = load(model_type, engine, mode, "layers", "packing"), load(model_type, "torch", mode, "layers")
    usual, engines[0].tokens_per_call = engines[0].tokens_per_call, tokens_per_call
    try:
        examples = draw_examples(engines[1], lengths, seed)
        sessions = [one.open(examples) for one in engines]
        for number, (step, layer) in enumerate([*steps, ("evaluate", 1)]):
            prompts = draw_prompts(engines[1], candidates, seed + number)
            if step == "commit":
                for session in sessions:
                    session.commit(prompts[0], layer)
            else:
                answers = [session.evaluate(prompts, layer) for session in sessions]
                torch.testing.assert_close(*answers, **CLOSE)
    finally:
        engines[0].tokens_per_call = usual


@pytest.mark.parametrize("engine", ["torch", "ort"])
def test_neighbours_in_the_row_change_nothing(engine: str) -> None:
    packed = load("roberta", engine, "add", "input", "packing")
    examples, prompts = draw_examples(packed, [4, 9, 2, 14]), draw_prompts(packed, 5)
    together = packed.open(examples).evaluate(prompts)
    for candidate in range(5):
        alone = packed.open(examples).evaluate(prompts[candidate][None])[0]
        torch.testing.assert_close(together[candidate], alone, **CLOSE)
    for pair in ([0, 1], [2, 3]):
        some = packed.open(examples.select(torch.tensor(pair))).evaluate(prompts)
        torch.testing.assert_close(together[:, pair], some, **CLOSE)


@pytest.mark.parametrize("model_type", PADDED)
def test_models_whose_attention_is_no_plain_one_stay_on_buckets(model_type: str) -> None:
    extra = {"local_attention": 8} if model_type == "modernbert" else {}
    config = AutoConfig.for_model(model_type, **TINY, **OWN.get(model_type, {}), **extra)
    model = getattr(transformers, AUTO_CLASSES[family_of(config).kind]).from_config(config).eval()
    options: dict[str, Any] = {"n_prompt_tokens": N_PROMPT_TOKENS, "precision": "fp32", "device": "cpu"}
    engine = load_engine("torch", model, include=["packing"], **options)
    plain = load_engine("torch", model, **options)
    examples, prompts = draw_examples(plain, [4, 9, 2]), draw_prompts(plain, 3)
    assert rows_of(engine, examples) == [None, None, None]
    torch.testing.assert_close(*(one.open(examples).evaluate(prompts) for one in (engine, plain)), **CLOSE)


def test_a_row_that_fails_is_replaced_by_padded_texts_and_a_log_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_runner = TorchEngine._load

    def fails(self: TorchEngine, encoded: Any) -> Any:
        if encoded.row is not None:
            raise RuntimeError("no kernel image is available")
        return load_runner(self, encoded)

    monkeypatch.setattr(TorchEngine, "_load", fails)
    engine = load_engine(
        "torch", tiny("roberta"), n_prompt_tokens=5, precision="fp32", device="cpu", include=["packing"]
    )
    assert "packed texts fail on cpu: continuing with padded ones (no kernel image is available)" in caplog.text
    assert rows_of(engine, draw_examples(engine, [4, 9])) == [None, None]


def test_maps_that_read_the_same_states_become_one_product() -> None:
    merged = load("roberta", "torch", "add", "layers", "fusion")
    merged.open(draw_examples(merged, [3, 4]))
    stages = [stage for runner in merged._runners.values() for stage in runner._stages]  # type: ignore[attr-defined]
    parts = [part for part in stages[0].layers.modules() if isinstance(part, Part)]
    assert len(parts) == 3
    (products,) = {part.products for part in parts}
    assert products.linear.weight.shape == (192, 64)
    assert not [one for one in tiny("roberta").modules() if isinstance(one, Part)]
    assert not ["compiled" for layer in stages[0].layers.stack if "forward" in vars(layer)]  # it is small


def test_a_product_and_its_gelu_become_one_operator() -> None:
    merged = load("roberta", "torch", "add", "layers", "fusion")
    merged.open(draw_examples(merged, [3, 4]))
    stages = [stage for runner in merged._runners.values() for stage in runner._stages]  # type: ignore[attr-defined]
    parts = [part for part in stages[0].layers.modules() if isinstance(part, GeluLinear)]
    assert [part.weight.shape for part in parts] == [(128, 64)]
    other = load("gpt2", "torch", "add", "layers", "packing", "fusion")  # its GELU is the tanh form
    other.open(draw_examples(other, [3, 4]))
    stages = [stage for runner in other._runners.values() for stage in runner._stages]  # type: ignore[attr-defined]
    assert not [part for part in stages[0].layers.modules() if isinstance(part, GeluLinear)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's code generator needs g++ on a CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_answer_as_they_do_uncompiled(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("bbt_fast.engine.fused.COMPILE_FROM", 60)
    monkeypatch.setattr("bbt_fast.engine.fused.LARGE", 0)
    options: dict[str, Any] = {"n_prompt_tokens": 5, "precision": "fp32", "device": "cpu", "cuts": "layers"}
    before, joined = torch._dynamo.utils.counters["stats"]["unique_graphs"], ModuleRunner._joined
    engine = load_engine("torch", tiny("roberta"), include=["packing", "fusion"], **options)
    plain = load("roberta", "torch", "add", "layers")
    examples, prompts = draw_examples(plain, [4, 9, 2]), draw_prompts(plain, 4)
    sessions = [one.open(examples) for one in (engine, plain)]
    for session in sessions:
        for layer in range(1, plain.staged.n_stages):
            session.commit(prompts[layer] / 2, layer)
    for layer in range(plain.staged.n_stages):
        torch.testing.assert_close(*(session.evaluate(prompts, layer) for session in sessions), **CLOSE)
    apart: list[int] = []
    monkeypatch.setattr(ModuleRunner, "_joined", lambda *args: apart.append(args[1]) or joined(*args))
    sessions[0].evaluate(prompts)
    assert apart == [0]  # committed prompts join inside the compiled layers below
    assert "cannot be compiled" not in caplog.text
    assert "recompile_limit" not in caplog.text
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 8  # two for each kind of call


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def refuse(*_: object, **__: object) -> Callable[..., Any]:
        def compiled(*_: object, **__: object) -> Any:
            raise RuntimeError("no compiler")

        return compiled

    monkeypatch.setattr("bbt_fast.engine.fused.COMPILE_FROM", 1)
    monkeypatch.setattr("bbt_fast.engine.fused.LARGE", 0)
    monkeypatch.setattr("bbt_fast.engine.fused._Compiled.broken", False)
    monkeypatch.setattr(torch, "compile", refuse)
    options: dict[str, Any] = {"n_prompt_tokens": 5, "precision": "fp32", "device": "cpu"}
    engine = load_engine("torch", tiny("roberta"), include=["fusion"], **options)
    plain = load("roberta", "torch", "add", "input")
    examples, prompts = draw_examples(plain, [4, 9, 2]), draw_prompts(plain, 4)
    torch.testing.assert_close(*(one.open(examples).evaluate(prompts) for one in (engine, plain)), **CLOSE)
    assert caplog.text.count("layers cannot be compiled here: continuing without (no compiler)") == 1


def flash_by_bounds(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> Tensor:
    """What PyTorch documents of varlen_attn, text by text; a causal query's last key is its own, at the end."""
    for part in (query, key, value):
        assert part.ndim == 3
        assert part.stride(-1) == 1
    assert query_bounds.dtype is key_bounds.dtype is torch.int32
    assert int(query_bounds[-1]) == len(query)
    assert int(key_bounds[-1]) == len(key) == len(value)
    assert int(query_bounds.diff().max()) <= max_q
    assert int(key_bounds.diff().max()) <= max_k
    seen = []
    for number in range(len(query_bounds) - 1):
        q = query[query_bounds[number] : query_bounds[number + 1]].transpose(0, 1)
        k, v = (part[key_bounds[number] : key_bounds[number + 1]].transpose(0, 1) for part in (key, value))
        hidden = k.shape[1] - q.shape[1]
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        if window_size == (-1, 0):
            mask = mask.tril(hidden)
        seen.append(nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(0, 1))
    return torch.cat(seen)


@pytest.mark.parametrize(("model_type", "mode"), [("roberta", "add"), ("gpt2", "cat"), ("llama", "add")])
@pytest.mark.parametrize("prefix", ["shared", "whole"])
def test_the_kernel_of_the_gpu_is_given_what_it_documents(
    model_type: str, mode: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest: list[int] = []

    def noted(*args: Any, **how: Any) -> Tensor:
        longest.append(args[5])
        return flash_by_bounds(*args, **how)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", noted)
    monkeypatch.setattr(TorchEngine, "packing_kernels", {"cpu": "varlen"})
    options: dict[str, Any] = {"mode": mode, "n_prompt_tokens": 5, "precision": "fp32", "device": "cpu"}
    ablate = [] if prefix == "shared" else ["prefix"]
    engine = load_engine("torch", tiny(model_type), cuts="layers", include=["packing"], ablate=ablate, **options)
    plain = load(model_type, "torch", mode, "layers")
    examples, prompts = draw_examples(plain, [4, 9, 2, 6]), draw_prompts(plain, 4)
    sessions = engine.open(examples), plain.open(examples)
    for layer in (2, 0, 1):
        torch.testing.assert_close(*(one.evaluate(prompts, layer) for one in sessions), **CLOSE)
        for session in sessions:
            session.commit(prompts[layer], layer)
    assert engine.packs
    assert (1 in longest) == (model_type == "roberta")  # one query of each text, in the last layer of an encoder


@given(lengths=st.lists(st.integers(1, 50), min_size=2, max_size=30), most=st.integers(1, 400))
def test_every_example_is_in_exactly_one_row_and_none_is_alone(lengths: list[int], most: int) -> None:
    rows = pack_rows(torch.tensor(lengths), max(most, max(lengths)))
    assert sorted(torch.cat(rows).tolist()) == list(range(len(lengths)))
    assert all(len(row) > 1 for row in rows)


def test_modules_of_the_model_are_left_alone() -> None:
    model = tiny("roberta")
    engine = load("roberta", "torch", "add", "input", "packing", "fusion")
    engine.open(draw_examples(engine, [3, 4])).evaluate(draw_prompts(engine, 2))
    layer = model.get_submodule("roberta.encoder.layer.0")
    assert isinstance(layer.get_submodule("attention.self.query"), nn.Linear)
    assert "forward" not in vars(layer)
