"""What every optimizer of the table promises, and what each is there for."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from bbt_fast.export.errors import NumericsError
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.search.evolution import Evolution
from bbt_fast.tuner.search.generation import Array
from bbt_fast.tuner.search.optimizers import OPTIMIZERS
from bbt_fast.tuner.search.pycma import Pycma
from bbt_fast.tuner.search.snes import Snes
from bbt_fast.tuner.search.threads import background

DIM, POPSIZE = 12, 8
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def sphere(x: Array) -> Array:
    return ((x - 0.3) ** 2).sum(axis=1)


def ellipsoid(x: Array) -> Array:
    return (10 ** np.linspace(0, 4, x.shape[1]) * (x - 0.3) ** 2).sum(axis=1)


def make(name: str, dim: int = DIM, popsize: int = POPSIZE, sigma: float = 0.7, **changes: Any) -> Evolution:
    return Evolution(dim, sigma, popsize, **({"seed": 42, "optimizer": name, "generations": 8} | changes))


def trajectory(evolution: Evolution, generations: int = 12, function: Any = sphere) -> Array:
    """All candidates of some generations on a function."""
    asked = []
    for _ in range(generations):
        asked.append(evolution.ask().candidates)
        evolution.tell(function(asked[-1]))
    return np.array(asked)


def test_the_table_is_what_the_option_takes():
    assert get_args(get_type_hints(Options)["optimizer"]) == tuple(OPTIMIZERS)


@every_optimizer
@pytest.mark.parametrize(("dim", "popsize"), [(2, 4), (12, 5), (12, 8), (300, 20)])
def test_a_generation_has_its_shape_and_its_distribution_is_told(name, dim, popsize):
    evolution = make(name, dim, popsize)
    for generation in range(6):
        before = evolution.mean()
        asked = evolution.ask()
        assert asked.candidates.shape == (popsize, dim)
        assert len(np.unique(asked.candidates, axis=0)) == popsize
        assert asked.axis_ratio >= 1
        assert asked.sigma == pytest.approx(0.7) if generation == 0 else asked.sigma > 0
        np.testing.assert_array_equal(evolution.mean(), before)
        evolution.tell(sphere(asked.candidates))
        assert not np.array_equal(evolution.mean(), before)


@every_optimizer
def test_a_search_starts_at_zero_with_the_step_size_asked_for(name):
    evolution = make(name, 400, 50)
    np.testing.assert_array_equal(evolution.mean(), 0)
    candidates = evolution.ask().candidates
    assert candidates.std() == pytest.approx(0.7, rel=0.05)


@every_optimizer
@pytest.mark.parametrize("dim", [DIM, 300])
def test_the_same_seed_and_fitness_give_the_same_bits(name, dim):
    expected = trajectory(make(name, dim))
    np.testing.assert_array_equal(trajectory(make(name, dim)), expected)
    with background() as aside:
        np.testing.assert_array_equal(trajectory(make(name, dim, aside=aside)), expected)
    assert not np.allclose(trajectory(make(name, dim, seed=7))[0], expected[0])
    assert not np.allclose(trajectory(make(name, dim, layer=1))[0], expected[0])


@every_optimizer
def test_numpys_global_stream_is_neither_seeded_nor_read(name):
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.rand(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    trajectory(make(name))
    np.testing.assert_array_equal(np.random.rand(3), expected)  # noqa: NPY002


@every_optimizer
def test_only_the_order_of_the_fitness_counts(name):
    expected = trajectory(make(name))
    np.testing.assert_array_equal(trajectory(make(name), function=lambda x: np.log(sphere(x)) * 3 - 5), expected)


@every_optimizer
def test_a_bound_holds_for_candidates_and_mean(name):
    evolution = make(name, bound=0.2)
    assert np.abs(trajectory(evolution, 40)).max() <= 0.2
    assert np.abs(evolution.mean()).max() <= 0.2
    assert evolution.mean().min() > 0.05
    assert np.abs(trajectory(make(name))).max() > 0.2


@every_optimizer
def test_it_finds_the_bottom(name):
    evolution = make(name)
    trajectory(evolution, 250)
    np.testing.assert_allclose(evolution.mean(), 0.3, atol=0.01)


@pytest.mark.parametrize("name", ["sep-cma", "snes"])
def test_a_scale_per_coordinate_is_learned_sooner_than_a_covariance(name):
    def end(name: str) -> float:
        ends = [make(name, 60, 20, 0.5, seed=seed) for seed in (1, 2, 3)]
        return float(np.mean([np.log(ellipsoid(trajectory(e, 300, ellipsoid)[-1]).min()) for e in ends]))

    assert end(name) < end("cma") - 1


@pytest.mark.parametrize("name", ["sep-cma", "snes"])
def test_it_holds_no_matrix(name):
    from bbt_fast.tuner.artifacts.economics import held_bytes

    evolution = make(name, 4000, 8)
    trajectory(evolution, 3)
    assert held_bytes(evolution) < 4000 * 8 * 200


def test_cma_local_is_cma_es_for_three_quarters_and_then_stays_near_its_best_candidate():
    evolution, cma = make("cma-local", generations=40), make("cma")
    asked = trajectory(evolution, 40)
    np.testing.assert_array_equal(asked[:30], trajectory(cma, 30))
    best, centre, radius = np.inf, np.zeros(DIM), np.inf
    for generation, candidates in enumerate(asked):
        distances = np.linalg.norm(candidates - centre, axis=1)
        if generation < 30:
            radius = distances.mean()
        else:
            assert distances.max() < radius
        if (losses := sphere(candidates)).min() < best:
            best, centre = losses.min(), candidates[losses.argmin()]
    np.testing.assert_array_equal(evolution.mean(), centre)
    assert best < sphere(asked[:30].reshape(-1, DIM)).min()


@pytest.mark.parametrize("generations", [5, 6, 7])
def test_the_candidates_of_cma_local_do_not_depend_on_how_fast_the_thread_aside_is(generations, at_once):
    dim, count = 60, generations + 2  # a decomposition begins every three generations
    expected = trajectory(make("cma-local", dim, generations=generations), count)
    found = trajectory(make("cma-local", dim, generations=generations, aside=at_once), count)
    np.testing.assert_array_equal(found, expected)


def test_snes_draws_pairs_that_mirror_each_other():
    drawn = make("snes", popsize=7).ask().candidates
    np.testing.assert_array_equal(drawn[0:6:2], -drawn[1:6:2])


@every_optimizer
def test_a_search_that_diverges_says_so(name):
    evolution = make(name)
    strategy: Any = getattr(evolution._strategy, "_wide", evolution._strategy)
    with pytest.raises(NumericsError, match="the search has diverged"):  # noqa: PT012
        for _ in range(12):
            candidates = evolution.ask().candidates
            if isinstance(strategy, Snes):
                strategy._deviations[0] = np.inf
            elif not isinstance(strategy, Pycma):
                strategy._path[0] = np.nan
            evolution.tell(sphere(candidates))
            if isinstance(strategy, Pycma):
                strategy._strategy.mean[0] = np.nan


def test_pycma_ends_a_search_by_its_own_criteria():
    evolution = make("pycma")
    for _ in range(3):
        evolution.tell(sphere(evolution.ask().candidates))
        assert not evolution.ended
    for _ in range(10):
        evolution.ask()
        evolution.tell(np.ones(POPSIZE))  # flat
    assert evolution.ended
