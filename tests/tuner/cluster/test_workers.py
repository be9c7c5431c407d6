"""Several workers answer as one engine does, whoever dies."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, load_engine
from bbt_fast.export.errors import NumericsError, ShapeError, UsageError

pytestmark = pytest.mark.slow
N = 5
PATIENCE = 2.0


@pytest.fixture(scope="module")
def workers(cluster: None, roberta: PreTrainedModel) -> Iterator[Any]:
    """An engine of two workers."""
    from bbt_fast.engine.workers import load_workers

    del cluster
    vars(roberta)["attached"] = threading.Lock()  # a model in use may hold what cannot be sent
    engine = load_workers(
        "torch", roberta, workers=2, n_prompt_tokens=N, cuts="layers", precision="fp32", device="cpu", patience=PATIENCE
    )
    del vars(roberta)["attached"]
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def one(roberta: PreTrainedModel) -> Any:
    """The same engine in this process."""
    return load_engine("torch", roberta, n_prompt_tokens=N, cuts="layers", precision="fp32", device="cpu")


@pytest.fixture
def pair(workers: Any, one: Any, roberta: PreTrainedModel, make_examples: Callable[..., Examples]) -> Any:
    """The same texts on the workers and in this process."""
    examples = make_examples(roberta, "add", N)
    return workers.open(examples), one.open(examples)


def same(found: Tensor, expected: Tensor) -> None:
    """Not bitwise: a matrix product's last bit depends on how many rows it has."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("cluster")
def test_an_engine_that_cannot_be_loaded_is_said_as_at_home(roberta: PreTrainedModel) -> None:
    from bbt_fast.engine.workers import load_workers

    with pytest.raises(UsageError, match="there is no engine 'fast'"):
        load_workers("fast", roberta, workers=1, precision="fp32")


def test_a_population_is_answered_as_by_one(
    pair: Any, roberta: PreTrainedModel, make_prompts: Callable[..., Tensor]
) -> None:
    several, alone = pair
    assert len(several) == len(alone)
    for turn, layer in enumerate([0, 0, 1, 2, 0]):
        prompts = make_prompts(roberta, 8, N, seed=turn)
        same(several.evaluate(prompts, layer), alone.evaluate(prompts, layer))
        for session in pair:
            session.commit(prompts[0], layer)
    assert several.clipped_spread(1) == pytest.approx(alone.clipped_spread(1), rel=1e-6)
    for session in pair:
        session.commit(torch.zeros(N, 32), 0)
    same(several.evaluate(prompts, 2), alone.evaluate(prompts, 2))


@pytest.mark.parametrize("candidates", [1, 3])
def test_few_candidates_are_answered_on_parts_of_the_texts(
    candidates: int, pair: Any, roberta: PreTrainedModel, make_prompts: Callable[..., Tensor]
) -> None:
    several, alone = pair
    prompts = make_prompts(roberta, candidates, N, seed=candidates)
    same(several.evaluate(prompts, 1), alone.evaluate(prompts, 1))


def test_candidates_are_projected_where_they_are_answered(pair: Any) -> None:
    several, alone = pair
    generator = torch.Generator().manual_seed(0)
    matrix, origin = torch.randn(N * 32, 10, generator=generator), torch.randn(N, 32, generator=generator)
    for _ in range(2):
        z = torch.randn(8, 10, generator=generator)
        prompts = (z @ matrix.T).reshape(-1, N, 32) + origin
        found = several.evaluate_projected(z.double().numpy(), matrix, origin, 1)
        same(found, alone.evaluate(prompts, 1))


def test_it_knows_the_facts_that_a_search_reads(workers: Any, one: Any) -> None:
    for name in ("name", "mode", "cuts", "n_prompt_tokens", "n_layers", "hidden_size", "precision", "runs_on"):
        assert getattr(workers, name) == getattr(one, name)
    for name in ("digest", "spread", "width"):
        assert getattr(workers.embeddings, name) == getattr(one.embeddings, name)
    assert torch.equal(workers.embeddings.rows([7, 3]), one.embeddings.rows([7, 3]))
    assert workers.place == "2 workers with 1 CPU thread each"


def test_what_does_not_fit_is_the_same_error_as_at_home(pair: Any) -> None:
    session, _ = pair
    for some in pair:
        for shape in ((N, 32), (0, N, 32), (8, N, 32, 1)):
            with pytest.raises(ShapeError, match=re.escape(f"prompts must be [P, n, H], not {list(shape)}.")):
                some.evaluate(torch.zeros(shape))
        for candidates, layer in ((8, 3), (1, 3), (8, -1), (8, 7)):
            with pytest.raises(ShapeError, match=f"layer is {layer}, but prompts can enter layers 0 to 2"):
                some.evaluate(torch.zeros(candidates, N, 32), layer)
    with pytest.raises(ShapeError, match="prompts have 3 tokens, but graph 'roberta-add-fp32' was built for 5"):
        session.evaluate(torch.zeros(8, 3, 32))
    with pytest.raises(ShapeError, match="layers 0 to 2"):
        session.commit(torch.zeros(N, 32), 3)
    with pytest.raises(NumericsError, match=r"returned NaN or infinity\. Try a smaller"):
        session.evaluate(torch.full((8, N, 32), float("nan")))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced_and_its_share_answered(
    how: signal.Signals,
    workers: Any,
    pair: Any,
    roberta: PreTrainedModel,
    make_prompts: Callable[..., Tensor],
    settled: Callable[[Any], None],
) -> None:
    several, alone = pair
    settled(workers)
    before, prompts = workers.pool.restarts, make_prompts(roberta, 8, N)
    for session in pair:
        session.commit(prompts[1], 0)
        session.evaluate(prompts, 2)
    os.kill(workers.pool.members[0].facts.pid, how)
    same(several.evaluate(prompts, 2), alone.evaluate(prompts, 2))
    assert workers.pool.restarts == before + 1
    settled(workers)
    same(several.evaluate(prompts, 2), alone.evaluate(prompts, 2))  # the new one was told everything


def test_where_all_are_lost_the_next_to_come_answers(
    workers: Any,
    pair: Any,
    roberta: PreTrainedModel,
    make_prompts: Callable[..., Tensor],
    settled: Callable[[Any], None],
) -> None:
    several, alone = pair
    settled(workers)
    prompts = make_prompts(roberta, 8, N)
    for member in workers.pool.members:
        os.kill(member.facts.pid, signal.SIGKILL)
    same(several.evaluate(prompts, 1), alone.evaluate(prompts, 1))


def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from bbt_fast.engine import ray_cluster

    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "nowhere"):
        with pytest.raises(UsageError, match=f"--ray_address {address} leads to no Ray cluster"):
            ray_cluster.Cluster(address, 1, 1)
