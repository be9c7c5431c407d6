"""A Ray cluster of this machine that all tests share.

- cluster: while it lasts, ``load_workers`` and ``tune(workers=...)`` join it instead of starting one of their own
- settled: function(engine) that waits until all workers of an engine are there
- tiny: function(**changes) -> options of a run of a second on a tiny model
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs on this machine."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    import logging

    from bbt_fast.engine import ray_cluster  # says what Ray is told before it is imported

    ray_cluster.ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20,
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    ray_cluster._hush()
    yield
    ray_cluster.ray.shutdown()


@pytest.fixture(scope="session")
def tiny(
    make_model: Callable[..., Any], make_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """A function that makes the options of a run of a second on a tiny random model."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer("bpe")
    make_model("roberta", vocab_size=len(tokenizer), **SIZES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "task_name": "demo", "model_name": str(folder), "engine": "torch", "precision": "fp32", "device": "cpu",
            "popsize": 8, "budget": 96, "eval_every": 16, "n_prompt_tokens": 3, "intrinsic_dim": 10, "k_shot": 4,
            "max_test_examples": 12, "plots": False,
        } | changes  # fmt: skip

    return make


@pytest.fixture
def settled() -> Callable[[Any], None]:
    """A function that waits until all workers of an engine are there."""

    def wait(workers: Any) -> None:
        limit = time.monotonic() + 60
        while len(workers.pool.ready) < len(workers.pool.members):
            assert time.monotonic() < limit, "a lost worker does not come back"
            time.sleep(0.05)

    return wait
