"""Every row of the table of families answers as the stock model does; a new row is tested by being there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from bbt_fast.benchmarks.harness.tiny import VOCABULARY, tiny_model
from bbt_fast.engine import Engine, Examples, load_engine
from bbt_fast.engine.embeddings import spread_of
from bbt_fast.export.errors import ShapeError, UsageError
from bbt_fast.export.families import FAMILIES, Family, family_of, positions
from bbt_fast.export.model import StagedModel
from bbt_fast.export.parity import asked
from bbt_fast.tuner.search.bbt import bbt
from bbt_fast.tuner.search.bbtv2 import bbtv2
from bbt_fast.tuner.search.evolution import Evolution
from bbt_fast.tuner.search.generation import Array
from bbt_fast.tuner.search.losses import cross_entropy_loss
from bbt_fast.tuner.search.metrics import accuracy
from bbt_fast.tuner.search.objective import Objective, Yardstick
from bbt_fast.tuner.search.projection import draw_projections, normal_scale

N_PROMPT_TOKENS = 7  # as in test_golden.py: with the sizes of the models, so that they share traces
FIRST_TEXT_TOKEN = 5
tiny = cache(tiny_model)


def row_of(model_type: str) -> Family:
    """The family of a model type."""
    return next(family for family in FAMILIES if model_type in family.model_types)


ROWS = [pytest.param(family, kind, id=kind) for family in FAMILIES for kind in family.model_types]
FAST = {("roberta", "add", "layers")}
"""What the fast tests export."""
FIRST_OF_ROWS = [pytest.param(family, family.model_types[0], id=family.model_types[0]) for family in FAMILIES]


@cache
def load_tiny(
    engine: str, family: Family, model_type: str, mode: str, cuts: str, ablate: tuple[str, ...] = ()
) -> Engine:
    """An engine on a family's tiny model, once for the same arguments."""
    return load_engine(
        engine,
        tiny(family, model_type),
        mode=mode,
        n_prompt_tokens=N_PROMPT_TOKENS,
        cuts=cuts,
        precision="fp32",
        device="cpu",
        ablate=ablate,
    )


def texts(family: Family, mode: str, lengths: tuple[int, ...] = (9, 12, 9, 16), seed: int = 0) -> Examples:
    """Random texts with placeholders as the tuner puts them, and the answer where the family's kind has it."""
    generator = torch.Generator().manual_seed(seed)
    before, longest = (N_PROMPT_TOKENS if mode == "add" else 0), max(lengths)
    ids = torch.randint(FIRST_TEXT_TOKEN, VOCABULARY, (len(lengths), longest), generator=generator)
    ids[:, : family.prompt_start] = 2
    placeholders = torch.full((len(lengths), before), FIRST_TEXT_TOKEN)
    ids = torch.cat([ids[:, : family.prompt_start], placeholders, ids[:, family.prompt_start :]], dim=1)
    real = torch.tensor(lengths) + before
    mask = (torch.arange(longest + before) < real[:, None]).long()
    answer = {"masked": real - 3, "seq2seq": real - 3, "decoder": real - 1}[family.kind]
    decoder_ids = None
    if family.kind == "seq2seq" and family.decoder_inputs is None:
        decoder_ids, answer = torch.tensor([[0, VOCABULARY - 1]] * len(lengths)), torch.ones_like(real)
    return Examples(ids * mask, mask, answer, torch.tensor([17, 8, 99]), decoder_ids)


def draw(engine: Engine, count: int, seed: int = 0) -> Tensor:
    """Random prompts with the scale of the word embeddings."""
    generator = torch.Generator().manual_seed(seed)
    scale = float(engine.word_embeddings.std())
    return scale * torch.randn(count, engine.n_prompt_tokens, engine.hidden_size, generator=generator)


@contextmanager
def before_layers(layers: list[nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Change what enters each layer of a stock model; a module that stands there twice runs twice."""
    ran = iter(range(len(layers)))

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(next(ran), arguments[0]), *arguments[1:])

    with ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield


def stock_answers(engine: Engine, examples: Examples, prompts: Tensor) -> Tensor:
    """Let the stock model answer one candidate, [L or 1, n, H] -> [N, C], with hooks and nothing of the stages."""
    family, model, n = engine.family, engine.staged.model, engine.n_prompt_tokens
    paths = family.layers if isinstance(family.layers, str) else family.layers(model)
    layers = list(model.get_submodule(paths)) if isinstance(paths, str) else [model.get_submodule(p) for p in paths]
    start = family.prompt_start if engine.mode == "add" else 0
    at_tokens = engine.cuts == "input" and family.entrance is not None
    ids, mask, own = examples.input_ids, examples.attention_mask, None
    arguments: dict[str, Tensor] = {}
    if family.kind == "seq2seq":
        decoder_ids = examples.decoder_input_ids
        if decoder_ids is None:
            decoder_ids = model.prepare_decoder_input_ids_from_labels(labels=ids)
        arguments["decoder_input_ids"] = decoder_ids
    if engine.mode == "cat":
        entered = []
        with before_layers(layers, lambda _, hidden: entered.append(hidden) or hidden):
            model(input_ids=ids, attention_mask=mask, **arguments)
        own = entered[0]
        ids, mask = (torch.cat([torch.ones_like(x[:, :n]), x], dim=1) for x in (ids, mask))

    def join(hidden: Tensor, prompt: Tensor, first: bool) -> Tensor:
        joined = hidden.clone()
        if engine.mode == "cat" and first:
            joined[:, :n] = 0
        joined[:, start : start + n] += prompt
        return joined

    def change(layer: int, hidden: Tensor) -> Tensor:
        if layer == 0 and at_tokens:
            return hidden
        if layer == 0 and own is not None:
            hidden = torch.cat([torch.zeros_like(own[:, :1]).expand(-1, n, -1), own], dim=1)
        return join(hidden, prompts[layer], layer == 0) if layer < len(prompts) else hidden

    text = model.get_encoder() if family.kind == "seq2seq" else model.base_model
    with torch.no_grad(), before_layers(layers, change), ExitStack() as stack:
        if at_tokens:
            hook = text.get_input_embeddings().register_forward_hook(lambda *a: join(a[-1], prompts[0], True))
            stack.callback(hook.remove)
        logits = model(input_ids=ids, attention_mask=mask, **arguments).logits
    position = examples.answer_position + (n if engine.mode == "cat" and family.kind != "seq2seq" else 0)
    return logits[torch.arange(len(ids)), position][:, examples.label_token_ids]


def engine_answers(engine: Engine, examples: Examples, prompts: Tensor) -> Tensor:
    """Let an engine answer candidates, [P, L or 1, n, H] -> [P, N, C]: each layer's population in turn."""
    session = engine.open(examples)
    for layer in range(1, prompts.shape[1]):
        session.commit(prompts[0, layer], layer)
    answers = [session.evaluate(prompts[:, 0])]
    for layer in range(1, prompts.shape[1]):
        session.commit(prompts[0, layer - 1], layer - 1)
        answers.append(session.evaluate(prompts[:, layer], layer))
    return torch.cat(answers)


def expected_answers(engine: Engine, examples: Examples, prompts: Tensor) -> Tensor:
    """What engine_answers() must return, by the stock model."""
    return torch.stack(
        [
            stock_answers(engine, examples, torch.cat([prompts[0, :layer], one[layer, None], prompts[0, layer + 1 :]]))
            for layer in range(prompts.shape[1])
            for one in prompts
        ]
    )


@pytest.mark.parametrize("cuts", ["input", "layers"])
@pytest.mark.parametrize("mode", ["add", "cat"])
@pytest.mark.parametrize(("family", "model_type"), ROWS)
def test_torch_answers_as_the_stock_model_does(family: Family, model_type: str, mode: str, cuts: str) -> None:
    engine = load_tiny("torch", family, model_type, mode, cuts)
    layers = engine.n_layers if cuts == "layers" else 1
    prompts = draw(engine, 3 * layers).unflatten(0, (3, layers))
    for examples in (texts(family, mode), texts(family, mode, (20, 7), seed=1)):
        expected = expected_answers(engine, examples, prompts)
        assert float(expected.std(0).mean()) > 0.01, "the answers hardly depend on the prompt"
        torch.testing.assert_close(engine_answers(engine, examples, prompts), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("family", "model_type", "mode", "cuts"),
    [
        pytest.param(
            *row.values, mode, cuts, id=f"{row.id}-{mode}-{cuts}", marks=() if case in FAST else pytest.mark.slow
        )
        for mode, cuts in (("add", "layers"), ("cat", "input"))
        for row in FIRST_OF_ROWS
        for case in [(row.id, mode, cuts)]
        # Qwen2's layers are Llama's, but for biases.
        if case not in (("qwen2", "add", "layers"), ("llama", "cat", "input"))
    ],
)
def test_ort_answers_and_searches_as_torch_does(family: Family, model_type: str, mode: str, cuts: str) -> None:
    engines = [load_tiny(name, family, model_type, mode, cuts) for name in ("torch", "ort")]
    layers = engines[0].n_layers if cuts == "layers" else 1
    prompts = draw(engines[0], 3 * layers).unflatten(0, (3, layers))
    examples = texts(family, mode)
    reference, found = (engine_answers(engine, examples, prompts) for engine in engines)
    torch.testing.assert_close(found, reference, atol=2e-5, rtol=2e-5)
    for one, other in zip(*(two_generations(engine, examples) for engine in engines), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)


def two_generations(engine: Engine, examples: Examples) -> list[Array]:
    """Return the fitness of every generation of a BBT or BBTv2 run."""
    layers, dim, popsize, sigma = (engine.n_layers if engine.cuts == "layers" else 1), 6, 8, 1.0
    scale = normal_scale(spread_of(engine.word_embeddings), dim, 1.0, sigma)
    origin = torch.zeros(engine.n_prompt_tokens, engine.hidden_size)
    projections = draw_projections("normal", 0, dim, [scale] * layers, [origin] * layers, engine.device)
    yardstick = Yardstick(cross_entropy_loss, accuracy)
    oracle = Objective(engine.open(examples), torch.arange(len(examples)) % 3, projections, yardstick)
    evolutions = [Evolution(dim, sigma, popsize, seed=1, layer=layer) for layer in range(layers)]
    search = bbt(oracle, evolutions, 2) if engine.cuts == "input" else bbtv2(oracle, evolutions, 2 * layers)
    return [generation.scores.fitness for generation in search]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("mode", ["add", "cat"])
def test_a_decoder_answers_right_padded_texts_as_it_answers_each_alone(model_type: str, mode: str) -> None:
    family = row_of(model_type)
    examples = texts(family, mode, (7, 19, 11, 30))
    for ablate in ((), ("buckets",)):
        engine = load_tiny("torch", family, model_type, mode, "input", ablate)
        prompts = draw(engine, 3)
        together = engine.open(examples).evaluate(prompts)
        for row in range(len(examples)):
            alone = engine.open(examples.select(torch.tensor([row]))).evaluate(prompts)
            torch.testing.assert_close(together[:, row : row + 1], alone, atol=1e-5, rtol=1e-5)


DECODERS = [kind for family in FAMILIES if family.kind == "decoder" for kind in family.model_types]


@pytest.mark.parametrize("cuts", ["input", "layers"])
@pytest.mark.parametrize("mode", ["add", "cat"])
@pytest.mark.parametrize("model_type", DECODERS)
def test_a_prompt_shared_by_all_texts_answers_as_one_run_with_each(model_type: str, mode: str, cuts: str) -> None:
    family = row_of(model_type)
    shared, apart = (load_tiny("torch", family, model_type, mode, cuts, ablate) for ablate in ((), ("prefix",)))
    examples = texts(family, mode)
    assert shared.staged.encode(examples, share_prefix=True).prefix is not None
    sessions = [engine.open(examples) for engine in (shared, apart)]
    for number, layer in enumerate((0, 1, 1, 0, 1) if cuts == "layers" else (0, 0)):
        prompts = draw(shared, 4, seed=number)
        one, other = (session.evaluate(prompts, layer) for session in sessions)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        for session in sessions:
            session.commit(prompts[number % 4], layer)
        if cuts == "layers":
            one, other = (session.hidden_states(layer) for session in sessions)
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_shared_prompt_runs_once_per_candidate_and_a_committed_one_once() -> None:
    family = row_of("gpt2")
    session = load_tiny("torch", family, "gpt2", "add", "layers").open(texts(family, "add"))
    prompts = draw(session.engine, 7)
    for layer, runs in ((0, 2 * 7), (1, 7), (1, 7)):  # the layers from there on, for each candidate
        before = session.layer_evaluations
        session.evaluate(prompts, layer)
        committed = layer == 1 and before == 2 * 7 * 5  # the layer below, once, when it is first needed
        assert session.layer_evaluations - before == (runs + committed) * (len(session) + 1)


def test_texts_that_begin_differently_or_look_through_a_window_are_run_whole() -> None:
    family = row_of("gpt2")
    engine, examples = load_tiny("torch", family, "gpt2", "add", "input"), texts(family, "add")
    ids = examples.input_ids.clone()
    ids[1, 2] += 1
    assert engine.staged.shares_prefix(examples)
    assert not engine.staged.shares_prefix(replace(examples, input_ids=ids))
    family = row_of("mistral")
    model = tiny(family, "mistral", sliding_window=6)
    engine = load_engine("torch", model, n_prompt_tokens=N_PROMPT_TOKENS, device="cpu")
    examples, prompts = texts(family, "add"), draw(engine, 3)[:, None]
    assert engine.staged.encode(examples, share_prefix=True).prefix is None
    expected = expected_answers(engine, examples, prompts)
    torch.testing.assert_close(engine_answers(engine, examples, prompts), expected, atol=2e-5, rtol=2e-5)


MADE_OF_WHAT_ENTERS = {"roberta", "xlm-roberta", "bert", "electra", "albert", "distilbert", "cpt", "bart"}
"""Whose keys and values are linear maps of a layer's input: no norm, no rotation and no bias of positions between."""


@pytest.mark.parametrize("mode", ["add", "cat"])
@pytest.mark.parametrize(("family", "model_type"), ROWS)
def test_the_last_layer_does_without_keys_and_values_where_they_are_made_of_its_input(
    family: Family, model_type: str, mode: str
) -> None:
    engine = load_tiny("torch", family, model_type, mode, "layers", ("buckets",))
    stage = engine.staged.encode(texts(family, mode)).stages[-1]
    answering = stage.layers if stage.decoder is None else stage.decoder
    assert (answering.absorbed is not None) is (model_type in MADE_OF_WHAT_ENTERS)
    whole = load_tiny("torch", family, model_type, mode, "layers", ("buckets", "answer_only"))
    examples, prompts = texts(family, mode, (20, 7, 13), seed=2), draw(engine, 3)  # of one bucket, so padded and masked
    answers = [each.open(examples).evaluate(prompts, engine.n_layers - 1) for each in (engine, whole)]
    torch.testing.assert_close(*answers, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("cuts", ["input", "layers"])
def test_the_savings_change_nothing_for_an_encoder_decoder_model(cuts: str) -> None:
    for model_type in ("bart", "t5"):
        family = row_of(model_type)
        plain = load_tiny("torch", family, model_type, "cat", cuts, ("buckets", "answer_only", "label_head", "reuse"))
        engine = load_tiny("torch", family, model_type, "cat", cuts)
        prompts = draw(engine, 3)
        answers = [each.open(texts(family, "cat")).evaluate(prompts) for each in (engine, plain)]
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)


def test_a_decoder_with_one_layer_makes_its_biases_itself() -> None:
    family = row_of("t5")
    model = tiny(family, "t5", num_hidden_layers=1, num_decoder_layers=1)
    engine = load_engine("torch", model, mode="add", n_prompt_tokens=N_PROMPT_TOKENS, cuts="input", device="cpu")
    prompts = draw(engine, 3)[:, None]
    examples = texts(family, "add")
    expected = expected_answers(engine, examples, prompts)
    torch.testing.assert_close(engine_answers(engine, examples, prompts), expected, atol=2e-5, rtol=2e-5)


def test_an_unknown_architecture_is_refused_with_the_known_ones_and_the_page_on_adding_one() -> None:
    config = transformers.FunnelConfig()
    with pytest.raises(UsageError, match=r"'funnel' is not supported; .* types are: albert, bart, .*adding-a-model"):
        family_of(config)


def test_t5_without_decoder_tokens_and_bert_with_them_are_refused() -> None:
    examples = texts(row_of("bert"), "add")
    with pytest.raises(ShapeError, match="T5 needs decoder_input_ids"):
        load_tiny("torch", row_of("t5"), "t5", "add", "input").open(examples)
    with pytest.raises(ShapeError, match="BERT takes no decoder_input_ids"):
        load_tiny("torch", row_of("bert"), "bert", "add", "input").open(
            replace(examples, decoder_input_ids=examples.input_ids)
        )


@pytest.mark.parametrize(
    ("model_type", "mode", "taken"),
    [("roberta", "add", 1), ("roberta", "cat", 1), ("bert", "cat", 0), ("electra", "cat", 0), ("albert", "cat", 0)]
    + [(kind, "cat", N_PROMPT_TOKENS) for kind in ("gpt2", "bart")],
)
def test_a_text_has_the_positions_that_its_model_can_look_up(model_type: str, mode: str, taken: int) -> None:
    """On a GPU, a lookup beyond them would take the process's CUDA context with it."""
    engine = load_tiny("torch", row_of(model_type), model_type, mode, "input")
    longest = engine.staged.model.config.max_position_embeddings - taken
    placeholders = N_PROMPT_TOKENS if mode == "add" else 0
    engine.open(texts(row_of(model_type), mode, (longest - placeholders,)))
    with pytest.raises(ShapeError, match=f"a text has {longest + 1} tokens.*, but this .* has fewer positions"):
        engine.staged.check(texts(row_of(model_type), mode, (longest + 1 - placeholders,)))


def test_the_id_that_is_not_in_the_vocabulary_is_named() -> None:
    examples = texts(row_of("bert"), "add")
    with pytest.raises(ShapeError, match="input_ids holds -100, but the vocabulary has"):
        load_tiny("torch", row_of("bert"), "bert", "add", "input").open(
            replace(examples, input_ids=examples.input_ids.clone().fill_(-100))
        )


@pytest.mark.parametrize("model_type", ["roberta", "bert", "bart"])
def test_texts_that_fill_the_model_are_encoded_first(model_type: str) -> None:
    """Which axes of its inputs grow shows in shorter texts then."""
    model = tiny(row_of(model_type), model_type)
    for mode in ("add", "cat"):
        short, staged = (StagedModel(model, mode, N_PROMPT_TOKENS, "input") for _ in range(2))
        longest = int(positions(model.config)) - (N_PROMPT_TOKENS if mode == "add" or model_type == "bart" else 0)
        full = staged.encode(texts(row_of(model_type), mode, (longest, longest - 7)))
        assert full.stages[0].axes == short.encode(texts(row_of(model_type), mode, (16, 9))).stages[0].axes


def test_a_model_that_computes_something_between_its_layers_is_refused() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.DebertaV2Config(vocab_size=VOCABULARY, conv_kernel_size=3, **small)
    with pytest.raises(UsageError, match="computes something between its layers, such as the convolution"):
        load_engine(
            "torch", transformers.DebertaV2ForMaskedLM(config), n_prompt_tokens=5, precision="fp32", device="cpu"
        )


def test_random_texts_of_a_t5_begin_its_answers() -> None:
    ids = torch.arange(24).view(2, 12)
    for model_type, position in (("t5", [1, 1]), ("bart", [4, 4])):
        staged = load_tiny("torch", row_of(model_type), model_type, "add", "input").staged
        examples = asked(staged, ids, torch.ones_like(ids), torch.tensor([4, 4]), torch.tensor([5, 6]))
        assert examples.answer_position.tolist() == position
        staged.encode(examples)


def test_a_loaded_model_may_have_any_precision() -> None:
    model = tiny_model(row_of("llama"), "llama").bfloat16()
    engine = load_engine("torch", model, n_prompt_tokens=N_PROMPT_TOKENS, precision="fp32", device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    engine.open(texts(row_of("llama"), "add"))
