"""Workers that come late, and workers that come at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples, load_engine

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
N = 5


def test_a_worker_joins_late_where_there_was_no_room_for_it(
    roberta: PreTrainedModel, make_examples: Callable[..., Examples], make_prompts: Callable[..., Tensor],
    settled: Callable[[Any], None], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from bbt_fast.engine.ray_cluster import Cluster, Share
    from bbt_fast.engine.workers import load_workers

    options: dict[str, Any] = {"n_prompt_tokens": N, "cuts": "layers", "precision": "fp32", "device": "cpu"}
    other = Cluster(None, 1, 1)
    occupant = other.spawn(Share(0, 1))
    other.result(occupant.make.remote(Occupant))
    several, one = load_workers("torch", roberta, workers=2, **options), load_engine("torch", roberta, **options)
    try:
        assert "has room for 1 of 2 workers now; the others join when there is more" in caplog.text
        sessions = [engine.open(make_examples(roberta, "add", N)) for engine in (several, one)]
        prompts = make_prompts(roberta, 8, N)
        for session in sessions:
            session.commit(prompts[1], 0)
        torch.testing.assert_close(*(session.evaluate(prompts, 2) for session in sessions), atol=1e-5, rtol=0)
        assert len(several.pool.ready) == 1
        other.kill(occupant)
        settled(several)
        torch.testing.assert_close(
            *(session.evaluate(prompts, 2) for session in sessions), atol=1e-5, rtol=0
        )  # the new one was told what was committed
        assert all(member.speed for member in several.pool.members)
    finally:
        several.close()


class Occupant:
    """Takes a worker's place in the cluster."""

    def facts(self) -> None:
        """Have nothing to say."""


def test_workers_that_start_at_once_build_each_graph_once(
    roberta: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bbt_fast.engine.workers import load_workers

    pytest.importorskip("onnxruntime")
    built: dict[int, tuple[set[str], set[str]]] = {}
    for count in (1, 2):
        folder, over, scratch = tmp_path / str(count), threading.Event(), set[str]()
        monkeypatch.setenv("BBT_FAST_CACHE", str(folder))

        def watch(folder: Path = folder, over: threading.Event = over, scratch: set[str] = scratch) -> None:
            while not over.wait(0.002):
                scratch.update(path.name for path in folder.glob("*.*/"))  # each build has a folder of its own

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            load_workers("ort", roberta, workers=count, n_prompt_tokens=N, precision="fp32", device="cpu").close()
        finally:
            over.set()
            watcher.join()
        built[count] = {path.name for path in folder.glob("*/")} - scratch, scratch
    (entries, builds), (entries_of_two, builds_of_two) = built[1], built[2]
    assert entries_of_two == entries
    assert len(builds) == len(builds_of_two) == len(entries)
    assert {name.partition(".")[0] for name in builds_of_two} == entries
