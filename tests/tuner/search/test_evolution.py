"""The wrapper of pycma: own random stream, published start."""

from __future__ import annotations

import os
import subprocess
import sys

import cma
import numpy as np
import pytest

from bbt_fast.tuner.search.evolution import Evolution


def sphere(candidates: np.ndarray) -> np.ndarray:
    return ((candidates - 0.3) ** 2).sum(axis=1)


def trajectory(evolution: Evolution, generations: int = 6) -> np.ndarray:
    """All candidates of some generations on the sphere."""
    asked = []
    for _ in range(generations):
        asked.append(evolution.ask().candidates)
        evolution.tell(sphere(asked[-1]))
    return np.array(asked)


def make(seed: int = 42, layer: int = 0, bound: float = 0.0) -> Evolution:
    return Evolution(12, 0.7, 8, seed=seed, layer=layer, bound=bound)


def test_layer_zero_draws_what_the_original_bbt_draws():
    published = cma.CMAEvolutionStrategy(12 * [0], 0.7, {"seed": 42, "popsize": 8, "maxiter": 10, "verbose": -1})
    expected = []
    for _ in range(6):
        solutions = published.ask()
        expected.append(np.array(solutions))
        published.tell(solutions, sphere(np.array(solutions)).tolist())
    np.testing.assert_allclose(trajectory(make()), np.array(expected), rtol=1e-7, atol=1e-8)


def test_numpys_global_stream_is_neither_seeded_nor_read():
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.rand(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    trajectory(make())
    np.testing.assert_array_equal(np.random.rand(3), expected)  # noqa: NPY002


def test_strategies_do_not_disturb_each_other():
    alone = [trajectory(make(layer=layer), 4) for layer in range(3)]
    together = [make(layer=layer) for layer in range(3)]
    for generation in range(4):
        for layer, evolution in enumerate(together):
            asked = evolution.ask()
            np.testing.assert_array_equal(asked.candidates, alone[layer][generation])
            evolution.tell(sphere(asked.candidates))


def test_layers_and_seeds_have_streams_of_their_own():
    first = [make(seed, layer).ask().candidates for seed in (1, 2) for layer in (0, 1, 2)]
    for i, one in enumerate(first):
        for other in first[i + 1 :]:
            assert not np.allclose(one, other)


def test_a_bound_holds():
    asked = trajectory(make(bound=0.4))
    assert np.abs(asked).max() <= 0.4
    assert np.abs(trajectory(make())).max() > 0.4


def test_the_first_generation_has_the_step_size_asked_for():
    asked = Evolution(400, 0.7, 50, seed=3).ask()
    assert asked.sigma == 0.7
    assert asked.axis_ratio == pytest.approx(1.0, abs=0.01)
    assert asked.candidates.std() == pytest.approx(0.7, rel=0.05)
    assert abs(asked.candidates.mean()) < 0.02


SEARCH = """
import hashlib
import numpy as np
from bbt_fast.tuner.search.evolution import Evolution
evolution, digest = Evolution(300, 1.0, 20, seed=42), hashlib.sha256()
for _ in range(12):
    candidates = evolution.ask().candidates
    digest.update(candidates.tobytes())
    evolution.tell(((candidates - 0.3) ** 2).sum(axis=1))
print(digest.hexdigest())
"""


def test_how_many_threads_numpy_has_changes_no_candidate():
    found = [
        subprocess.run(
            [sys.executable, "-c", SEARCH],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert len(found[0].strip()) == 64
    assert found[0] == found[1]


def test_the_mean_is_within_the_bounds_and_asking_does_not_move_it():
    evolution = make(bound=0.2)
    for _ in range(20):
        before = evolution.mean()
        candidates = evolution.ask().candidates
        np.testing.assert_array_equal(evolution.mean(), before)
        evolution.tell(sphere(candidates))
    assert evolution.mean().shape == (12,)
    assert np.abs(evolution.mean()).max() <= 0.2
    assert evolution.mean().min() > 0.05
