"""BBT and BBTv2 as published, on an oracle that only writes down what it is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bbt_fast.tuner.search.bbt import bbt
from bbt_fast.tuner.search.bbtv2 import bbtv2
from bbt_fast.tuner.search.evolution import Evolution
from bbt_fast.tuner.search.generation import Array, Scores

DIM, POPSIZE = 6, 8


class Bowl:
    """Layer i wants its vector at the sum of what the other layers have committed, plus i."""

    def __init__(self, layers: int) -> None:
        self.committed = [np.zeros(DIM) for _ in range(layers)]
        self.log: list[tuple[Any, ...]] = []

    def evaluate(self, candidates: Array, layer: int) -> Scores:
        self.log.append(("evaluate", layer, candidates.copy()))
        target = sum(z for i, z in enumerate(self.committed) if i != layer) * 0.1 + layer + 1
        return Scores(((candidates - target) ** 2).sum(axis=1), 0.5)

    def commit(self, candidate: Array, layer: int) -> None:
        self.log.append(("commit", layer, candidate.copy()))
        self.committed[layer] = candidate


def evolutions(layers: int) -> list[Evolution]:
    return [Evolution(DIM, 1.0, POPSIZE, seed=42, layer=layer) for layer in range(layers)]


def same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    """Whether two searches evaluated the same candidates at the same layers."""
    pairs = zip(one, other, strict=True)
    return all(a[:2] == b[:2] and np.array_equal(a[2], b[2]) for a, b in pairs)


def test_bbt_finds_the_bottom_and_never_commits():
    oracle = Bowl(1)
    generations = list(bbt(oracle, evolutions(1), 60))
    assert [g.index for g in generations] == list(range(60))
    assert {entry[0] for entry in oracle.log} == {"evaluate"}
    assert generations[-1].best_loss < 1e-3
    np.testing.assert_allclose(generations[-1].best[0], 1.0, atol=0.05)


def test_the_best_so_far_never_gets_worse_and_is_the_best_of_all_candidates():
    oracle = Bowl(1)
    losses = []
    for generation in bbt(oracle, evolutions(1), 20):
        losses.append(generation.scores.fitness)
        assert generation.best_loss == np.concatenate(losses).min()
        seen = np.concatenate([entry[2] for entry in oracle.log])
        np.testing.assert_array_equal(generation.best[0], seen[np.concatenate(losses).argmin()])


def test_bbtv2_takes_the_layers_in_turn_and_commits_each_layers_best_so_far():
    oracle = Bowl(3)
    best: dict[int, tuple[float, Array]] = {}
    steps = bbtv2(oracle, evolutions(3), 12)
    for index, generation in enumerate(steps):
        assert generation.layer == index % 3
        asked = next(entry for entry in reversed(oracle.log) if entry[0] == "evaluate")
        assert asked[1] == generation.layer
        winner = generation.scores.fitness.argmin()
        loss = float(generation.scores.fitness[winner])
        if generation.layer not in best or loss < best[generation.layer][0]:
            best[generation.layer] = (loss, asked[2][winner])
        np.testing.assert_array_equal(oracle.committed[generation.layer], best[generation.layer][1])
        assert generation.best_loss == best[generation.layer][0]
    assert index == 11


def test_bbt_keeps_the_mean_where_it_is_asked_to():
    oracle, strategies = Bowl(1), evolutions(1)
    for generation in bbt(oracle, strategies, 40, keep="mean"):
        np.testing.assert_array_equal(generation.best[0], strategies[0].mean())
    asked = np.concatenate([entry[2] for entry in oracle.log])
    assert not (asked == generation.best[0]).all(axis=1).any()
    best = asked[((asked - 1) ** 2).sum(axis=1).argmin()]
    assert generation.best_loss == ((best - 1) ** 2).sum()
    np.testing.assert_allclose(generation.best[0], 1.0, atol=0.05)


def test_bbtv2_commits_each_layers_mean_after_each_of_its_turns():
    oracle, alone = Bowl(3), Bowl(3)
    list(bbtv2(oracle, evolutions(3), 12, keep="mean"))
    strategies = evolutions(3)
    for index in range(12):
        strategy = strategies[index % 3]
        strategy.tell(alone.evaluate(strategy.ask().candidates, index % 3).fitness)
        alone.commit(strategy.mean(), index % 3)
    assert same(oracle.log, alone.log)


def test_bbtv2_gives_each_layer_the_candidates_of_its_own_strategy():
    oracle = Bowl(2)
    list(bbtv2(oracle, evolutions(2), 2))
    asked = {entry[1]: entry[2] for entry in oracle.log if entry[0] == "evaluate"}
    for layer, evolution in enumerate(evolutions(2)):
        np.testing.assert_array_equal(asked[layer], evolution.ask().candidates)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_working_aside_changes_nothing(layers, at_once):
    aside, inline, plain = Bowl(layers), Bowl(layers), Bowl(layers)
    list(bbtv2(aside, evolutions(layers), 6 * layers))
    list(bbtv2(inline, evolutions(layers), 6 * layers, at_once))
    strategies = evolutions(layers)
    best = [np.inf] * layers
    for index in range(6 * layers):
        layer = index % layers
        candidates = strategies[layer].ask().candidates
        fitness = plain.evaluate(candidates, layer).fitness
        strategies[layer].tell(fitness)
        if fitness.min() < best[layer]:
            best[layer] = fitness.min()
            plain.commit(candidates[fitness.argmin()], layer)
    assert same(aside.log, plain.log)
    assert same(inline.log, plain.log)


def test_an_error_in_the_bookkeeping_comes_out():
    strategies = evolutions(2)

    def broken(fitness: Array) -> None:
        raise FloatingPointError("out of range")

    strategies[0].tell = broken  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="out of range"):
        list(bbtv2(Bowl(2), strategies, 6))


def test_a_search_can_be_left_at_any_generation():
    oracle = Bowl(3)
    steps = bbtv2(oracle, evolutions(3), 30)
    next(steps)
    steps.close()
    assert len([entry for entry in oracle.log if entry[0] == "evaluate"]) == 1
