"""A run on the toy engine: what it asks of the engine, what it keeps, what it writes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from bbt_fast.engine.embeddings import clipped_spread, spread_of
from bbt_fast.export.errors import NumericsError, UsageError
from bbt_fast.tuner.artifacts.prompt import read_prompt
from bbt_fast.tuner.artifacts.result import read_result
from bbt_fast.tuner.run import single
from bbt_fast.tuner.run.control import Control
from bbt_fast.tuner.search.losses import LOSSES
from bbt_fast.tuner.search.metrics import METRICS
from bbt_fast.tuner.search.objective import answer
from bbt_fast.tuner.search.projection import draw_projections

ALGORITHMS = ("bbt", "bbtv2")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def records_of_kind(path, kind):
    """The records of one kind in a run's journal."""
    return [record for record in lines(path / "journal.jsonl") if record["kind"] == kind]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_budget_counts_candidate_evaluations(algorithm, tmp_path, make_options, start, toy_engine):
    engine = toy_engine("input" if algorithm == "bbt" else "layers")
    result = start(tmp_path / "r", make_options(algorithm), engine)
    populations = [(layer, size) for layer, size in engine.calls if size == 8]
    layers = [0] * 12 if algorithm == "bbt" else [0, 1, 2] * 4
    assert [layer for layer, _ in populations] == layers
    assert result.evaluations == 96
    assert [record["layer"] for record in records_of_kind(tmp_path / "r", "generation")] == layers


@pytest.mark.parametrize(("algorithm", "generations"), [("bbt", 12), ("bbtv2", 12)])
def test_what_does_not_fill_a_round_is_not_spent(algorithm, generations, tmp_path, make_options, start):
    budget = {"bbt": 96 + 7, "bbtv2": 96 + 23}[algorithm]
    result = start(tmp_path / "r", make_options(algorithm, budget=budget))
    assert result.evaluations == 8 * generations
    assert result.budget == budget


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tuning_lowers_the_training_loss(algorithm, tmp_path, make_options, start):
    start(tmp_path / "r", make_options(algorithm, budget=960))
    curve = lines(tmp_path / "r" / "metrics.jsonl")
    assert curve[-1]["best_loss"] < 0.8 * curve[0]["loss"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_kept_prompt_is_the_best_on_the_development_set(algorithm, tmp_path, make_options, start, toy_parts):
    result = start(tmp_path / "r", make_options(algorithm, budget=480))
    scores = [record["score"] for record in records_of_kind(tmp_path / "r", "development")]
    assert len(scores) == 30
    metric, loss = max(scores, key=lambda score: (score[0], -score[1]))
    assert result.tuned.dev == metric
    index = scores.index([metric, loss])
    assert index not in (0, len(scores) - 1), "the search is too easy to tell the kept prompt from the last"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_results_figures_are_those_of_the_saved_prompt(
    algorithm, tmp_path, make_options, start, toy_engine, toy_parts
):
    result = start(tmp_path / "r", make_options(algorithm))
    prompts, about = read_prompt(tmp_path / "r")
    engine = toy_engine("input" if algorithm == "bbt" else "layers")
    parts = toy_parts()
    for part, expected in (
        (parts.train, result.tuned.train),
        (parts.dev, result.tuned.dev),
        (parts.test, result.tuned.test),
    ):
        session = engine.open(part.examples)
        for layer in range(1, len(prompts)):
            session.commit(prompts[layer], layer)
        found = (session.evaluate(prompts[:1]).argmax(2)[0] == part.labels).double().mean()
        assert float(found) == expected
    zero = engine.open(parts.test.examples).evaluate(torch.zeros(1, 3, 8)).argmax(2)[0]
    assert result.zero_shot.test == float((zero == parts.test.labels).double().mean())
    assert about["algorithm"] == algorithm
    assert about["task"] == "toy"


def test_the_test_set_is_answered_once_at_the_end(tmp_path, make_options, start, toy_engine):
    engine = toy_engine("input")
    opened = []
    engine_open = engine.open

    def spy(examples):
        opened.append((len(examples), len(engine.calls)))
        return engine_open(examples)

    engine.open = spy
    start(tmp_path / "r", make_options(), engine)
    assert [n for n, _ in opened] == [16, 16, 20, 20, 10]
    searched = max(i for i, (_, size) in enumerate(engine.calls) if size == 8)
    assert all(calls > searched for _, calls in opened[2:])


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_test_sets_batches_change_nothing(batch_size, tmp_path, make_options, start):
    one = start(tmp_path / "a", make_options())
    other = start(tmp_path / "b", make_options(batch_size=batch_size))
    assert one.tuned == other.tuned
    assert one.zero_shot == other.zero_shot


def test_the_result_is_written_and_read_back(tmp_path, make_options, start):
    result = start(tmp_path / "r", make_options("bbtv2"))
    written = json.loads((tmp_path / "r" / "result.json").read_text())
    expected = """model task engine algorithm mode precision device seed budget evaluations metric zero_shot tuned
    seconds evals_per_s parity versions"""
    assert set(expected.split()) <= set(written)
    assert set(written["zero_shot"]) == {"dev", "test"}
    assert set(written["tuned"]) == {"train", "dev", "test"}
    assert set(written["seconds"]) == {"export", "tune", "test"}
    assert written["examples"] == {"train": 16, "dev": 16, "test": 50, "truncated": 0}
    assert 0 < written["optimizer_overhead"] < 1
    assert written["classes"] == ["cold", "warm"]
    assert read_result(tmp_path / "r") == result


def test_the_curves_have_a_line_for_every_generation(tmp_path, make_options, start):
    start(tmp_path / "r", make_options("bbtv2"))
    curve = lines(tmp_path / "r" / "metrics.jsonl")
    assert [line["generation"] for line in curve] == list(range(12))
    assert [line["evaluations"] for line in curve] == list(range(8, 97, 8))
    assert [line["dev"] is not None for line in curve] == [False, True] * 6
    assert all(line["sigma"] > 0 and line["axis_ratio"] >= 1 and 0 <= line["train"] <= 1 for line in curve)
    seconds = [line["seconds"] for line in curve]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_command_writes_the_same_bytes(algorithm, tmp_path, make_options, start):
    options = make_options(algorithm)
    one, other = start(tmp_path / "a", options), start(tmp_path / "b", options)
    for name in ("config.json", "journal.jsonl", "prompt.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert one.tuned == other.tuned


def test_another_seed_searches_elsewhere(tmp_path, make_options, start):
    start(tmp_path / "a", make_options(seed=1))
    start(tmp_path / "b", make_options(seed=2))
    first = [records_of_kind(tmp_path / name, "generation")[0]["candidates"] for name in "ab"]
    assert first[0] != first[1]


def test_a_target_ends_the_search_at_the_first_score_that_reaches_it(tmp_path, make_options, start):
    start(tmp_path / "a", make_options(budget=480))
    scores = [record["score"][0] for record in records_of_kind(tmp_path / "a", "development")]
    target = sorted(set(scores))[-1]
    result = start(
        tmp_path / "b", make_options(budget=480, target_metric=target), control=Control(target_metric=target)
    )
    assert result.stopped_by == "target_metric"
    assert result.evaluations == 16 * (1 + scores.index(target)) < 480
    assert result.tuned.dev == target


def test_the_best_of_the_due_candidates_of_a_generation_can_end_the_search(tmp_path, make_options, start):
    options = make_options(select="due", eval_every=2)
    start(tmp_path / "a", options)
    scores = [record["score"][0] for record in records_of_kind(tmp_path / "a", "development")]
    of_generations = [scores[i : i + 4] for i in range(0, len(scores), 4)]
    target = max(scores)
    ends = next(index for index, its in enumerate(of_generations) if target in its)
    assert of_generations[ends][-1] < target, "the last due candidate would end the search, too"
    result = start(tmp_path / "b", options, control=Control(target_metric=target))
    assert (result.stopped_by, result.evaluations, result.tuned.dev) == ("target_metric", 8 * (1 + ends), target)
    curve = [line["dev"] for line in lines(tmp_path / "b" / "metrics.jsonl")]
    assert curve == [max(its) for its in of_generations[: ends + 1]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_patience_ends_a_search_that_gets_no_better_on_the_development_set(algorithm, tmp_path, make_options, start):
    options, patience = make_options(algorithm, budget=960), 64
    result = start(tmp_path / "r", options, control=Control(patience=patience))
    scores = [record["score"] for record in records_of_kind(tmp_path / "r", "development")]
    found = [(metric, -loss) for metric, loss in scores]
    kept = found.index(max(found))
    assert result.stopped_by == "patience"
    assert result.evaluations == 16 * (1 + kept) + patience < 960
    (tmp_path / "r" / "result.json").unlink()
    again = start(tmp_path / "r", options, control=Control(patience=patience))
    assert (again.stopped_by, again.evaluations, again.tuned) == ("patience", result.evaluations, result.tuned)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_kept_mean_is_none_of_the_candidates(algorithm, tmp_path, make_options, start):
    found = []
    for keep in ("best", "mean"):
        start(tmp_path / keep, make_options(algorithm, keep=keep))
        prompts = read_prompt(tmp_path / keep)[0]
        found.append(prompts)
        assert (json.loads((tmp_path / keep / "config.json").read_text())["keep"]) == keep
    assert not torch.allclose(*found)
    assert records_of_kind(tmp_path / "best", "generation")[0] == {
        **records_of_kind(tmp_path / "mean", "generation")[0],
        "sum": records_of_kind(tmp_path / "best", "generation")[0]["sum"],
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("optimizer", ["sep-cma", "snes"])
def test_without_a_projection_all_numbers_of_a_prompt_are_searched(algorithm, optimizer, tmp_path, make_options, start):
    options = make_options(algorithm, random_proj="none", optimizer=optimizer, budget=960)
    result = start(tmp_path / "r", options)
    assert result.queries.z_up_bytes == 4 * 3 * 8
    assert result.memory.projection == 0
    curve = lines(tmp_path / "r" / "metrics.jsonl")
    assert curve[-1]["best_loss"] < 0.8 * curve[0]["loss"]


def test_time_ends_the_search_but_not_without_a_score(tmp_path, make_options, start):
    result = start(tmp_path / "r", make_options(), control=Control(max_time=1e-9))
    assert result.stopped_by == "max_time"
    assert result.evaluations == 8
    assert [record["kind"] for record in lines(tmp_path / "r" / "journal.jsonl")] == [
        "start",
        "generation",
        "development",
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_starts_from_p0(algorithm, tmp_path, make_options, start, toy_engine, toy_parts):
    origins = torch.randn(1 if algorithm == "bbt" else 3, 3, 8, generator=torch.Generator().manual_seed(3))
    result = start(tmp_path / "r", make_options(algorithm, alpha=1e-9), origins=origins)
    prompts, _ = read_prompt(tmp_path / "r")
    assert torch.allclose(prompts, origins, atol=1e-6)
    assert result.zero_shot == type(result.zero_shot)(dev=result.tuned.dev, test=result.tuned.test)
    plain = start(tmp_path / "p", make_options(algorithm, alpha=1e-9))
    assert plain.zero_shot != result.zero_shot


def test_deep_projections_are_scaled_by_the_layers_own_hidden_states(
    tmp_path, make_options, start, toy_engine, toy_parts, monkeypatch
):
    drawn = []

    def draw(kind, seed, dim, scales, *rest):
        drawn.extend(scales)
        return draw_projections(kind, seed, dim, scales, *rest)

    monkeypatch.setattr(single, "draw_projections", draw)
    engine, origins = toy_engine("layers"), torch.ones(3, 3, 8)
    start(tmp_path / "r", make_options("bbtv2", alpha=0.5, sigma=0.4), engine, origins=origins)
    session = engine.open(toy_parts().train.examples)
    for layer in range(3):
        session.commit(origins[layer], layer)
    spreads = [spread_of(engine.word_embeddings), *(clipped_spread(session.hidden_states(i)) for i in (1, 2))]
    assert drawn == pytest.approx([0.5 * spread / (6**0.5 * 0.4) for spread in spreads])
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("algorithm", ["bbt", "bbtv2"])
def test_every_embedding_begins_at_the_best_prompts_of_the_one_before(
    algorithm, tmp_path, make_options, start, toy_engine, toy_parts, monkeypatch
):
    began = []

    def draw(kind, seed, dim, scales, origins, *rest):
        began.append(torch.stack(origins))
        return draw_projections(kind, seed, dim, scales, origins, *rest)

    monkeypatch.setattr(single, "draw_projections", draw)
    engine, layers = toy_engine("input" if algorithm == "bbt" else "layers"), 1 if algorithm == "bbt" else 3
    start(tmp_path / "r", make_options(algorithm, embeddings=2), engine)
    curves = lines(tmp_path / "r" / "metrics.jsonl")
    assert [line["generation"] for line in curves] == list(range(12))
    assert [line["layer"] for line in curves] == [generation % layers for generation in range(12)]
    assert len(began) == 2
    assert not began[0].any()
    train = toy_parts().train
    logits = answer(engine.open(train.examples), began[1][None])
    assert float(LOSSES["ce"](logits, train.labels, METRICS["accuracy"])) <= curves[0]["best_loss"]
    if algorithm == "bbt":
        lowest = [line["loss"] for line in curves]
        assert [line["best_loss"] for line in curves] == [min(lowest[: i + 1]) for i in range(12)]
        assert float(LOSSES["ce"](logits, train.labels, METRICS["accuracy"])) == pytest.approx(min(lowest[:6]))
    first = [record["candidates"] for record in records_of_kind(tmp_path / "r", "generation")]
    assert first[0] != first[6]


def test_more_embeddings_than_rounds_are_refused(tmp_path, make_options, start):
    with pytest.raises(UsageError, match="budget 96 pays for 4 rounds of 24 evaluations, but embeddings is 5"):
        start(tmp_path / "r", make_options("bbtv2", embeddings=5))


def test_losses_that_are_nan_are_refused(tmp_path, make_options, start, toy_engine):
    engine = toy_engine("input")
    engine.weights[0, 0] = float("nan")
    with pytest.raises(
        NumericsError, match=r"8 of 8 prompts got a loss that is NaN or infinite\. Try --precision fp32"
    ):
        start(tmp_path / "r", make_options(), engine)


def test_the_prompt_file_names_what_it_belongs_to_and_has_one_tensor(tmp_path, make_options, start):
    start(tmp_path / "r", make_options("bbtv2"))
    with safe_open(tmp_path / "r" / "prompt.safetensors", "pt") as file:
        assert list(file.keys()) == ["prompt"]
        assert file.get_tensor("prompt").shape == (3, 3, 8)
