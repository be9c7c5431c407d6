"""Whole runs over the network end as at home: several at once, on a network that breaks, and after interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bbt_fast import tune
from bbt_fast.engine.calls import Traffic
from bbt_fast.engine.remote import RemoteEngine, load_remote
from bbt_fast.engine.wire import Message
from bbt_fast.export.errors import ArtifactError, UsageError
from bbt_fast.service.app import Service
from bbt_fast.service.limits import Limits
from bbt_fast.service.server import Models, build
from bbt_fast.tuner.artifacts.result import Result
from bbt_fast.tuner.data.splits import Row
from bbt_fast.tuner.demo import MODEL_DIR, rows
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.driver import Search
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.search.losses import LOSSES
from bbt_fast.tuner.search.metrics import METRICS
from bbt_fast.tuner.tasks.task import load_task

ALGORITHMS = ("bbt", "bbtv2")
SMALL: dict[str, Any] = {
    "popsize": 4, "n_prompt_tokens": 5, "k_shot": 2, "intrinsic_dim": 20, "budget": 24, "eval_every": 8,
    "max_test_examples": 8, "plots": False,
}  # fmt: skip


def make_service(**limits: Any) -> Service:
    return build(Models("demo", None, "torch", "fp32", "cpu"), None, Limits(**limits))


@pytest.fixture(scope="module")
def service() -> Service:
    return make_service()


@pytest.fixture(scope="module")
def url(service: Service, serving: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    with serving(service) as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """A function that returns the run of an algorithm at home, made once."""

    @cache
    def make(algorithm: str) -> Result:
        folder = tmp_path_factory.mktemp("alone") / algorithm
        return tune(algorithm=algorithm, engine="torch", precision="fp32", output_dir=str(folder), **SMALL)

    return make


def check_same(one: Result, other: Result) -> None:
    """Compare what two runs found, generation by generation, and what they kept."""
    assert one.tuned == other.tuned
    journals = [(run.output_dir / "journal.jsonl").read_text().splitlines() for run in (one, other)]
    for lines in zip(*journals, strict=True):
        mine, theirs = map(json.loads, lines)
        if mine["kind"] == "generation":
            assert mine["candidates"] == theirs["candidates"]
            assert mine["fitness"] == pytest.approx(theirs["fitness"], abs=1e-6)
    assert len({(run.output_dir / "prompt.safetensors").read_bytes() for run in (one, other)}) == 1


@pytest.fixture
def second_task(tmp_path: Path) -> dict[str, Any]:
    """Options of a task of one's own on the demo's model: its classes the other way round."""
    bad, good = (word for (word,) in load_task("demo").words("masked"))
    task = tmp_path / "other.yaml"
    task.write_text(
        f"name: other\nlabels: [good, bad]\ntemplates: {{masked: '{{mask}} : {{text}}'}}\n"
        f"label_words: {{masked: [{good}, {bad}]}}\n"
    )
    for part in ("train", "test"):
        lines = [json.dumps({"text": row["text"], "label": ("bad", "good")[n % 2]}) for n, row in enumerate(rows(part))]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    return {"task_name": str(task), "data_dir": str(tmp_path), "model_name": "demo"}


@pytest.mark.slow
def test_four_clients_two_algorithms_and_two_tasks_end_as_alone(
    tmp_path: Path, url: str, alone: Callable[[str], Result], second_task: dict[str, Any]
) -> None:
    runs: list[dict[str, Any]] = [
        {"algorithm": algorithm, **task, **SMALL} for task in ({}, second_task) for algorithm in ALGORITHMS
    ]
    expected = [alone(algorithm) for algorithm in ALGORITHMS] + [
        tune(engine="torch", precision="fp32", output_dir=str(tmp_path / f"alone-{run['algorithm']}"), **run)
        for run in runs[len(ALGORITHMS) :]
    ]
    with ThreadPoolExecutor(len(runs)) as pool:
        started = [
            pool.submit(tune, engine="remote", url=url, output_dir=str(tmp_path / f"together-{number}"), **run)
            for number, run in enumerate(runs)
        ]
        for run, one in zip(started, expected, strict=True):
            check_same(one, run.result())


@pytest.mark.parametrize("algorithm", ["bbt", pytest.param("bbtv2", marks=pytest.mark.slow)])
def test_a_run_over_a_network_that_breaks_connections_ends_as_at_home(
    algorithm: str,
    tmp_path: Path,
    url: str,
    alone: Callable[[str], Result],
    flaky: Callable[[int], AbstractContextManager[str]],
) -> None:
    with flaky(int(url.rpartition(":")[2])) as broken:
        found = tune(algorithm=algorithm, engine="remote", url=broken, output_dir=str(tmp_path / "run"), **SMALL)
    check_same(alone(algorithm), found)


def test_a_server_that_restarts_in_the_middle_costs_a_retry_and_not_the_run(
    tmp_path: Path,
    alone: Callable[[str], Result],
    serving: Callable[..., AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stops when half of BBTv2's prompts are committed, and one that knows nothing comes after a while."""
    first, second = make_service(), make_service()
    taken = Search._take

    with ExitStack() as servers, ExitStack() as running:
        found = running.enter_context(serving(first))

        def restart(self: Search, generation: Any, *more: Any) -> Any:
            if generation.index == 3:
                running.close()
                later = Timer(0.3, lambda: servers.enter_context(serving(second, int(found.rpartition(":")[2]))))
                servers.callback(later.join)
                later.start()
            return taken(self, generation, *more)

        monkeypatch.setattr(Search, "_take", restart)
        run = tune(algorithm="bbtv2", engine="remote", url=found, output_dir=str(tmp_path / "run"), **SMALL)
    monkeypatch.undo()
    check_same(alone("bbtv2"), run)
    assert "retrying in" in caplog.text
    assert "has lost the examples: registering again" in caplog.text


@pytest.mark.parametrize(("algorithm", "by_name"), [("bbt", True), ("bbtv2", False)])
def test_a_killed_run_goes_on_over_the_network(
    algorithm: str,
    by_name: bool,
    tmp_path: Path,
    url: str,
    alone: Callable[[str], Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its folder knows where the server was; by the same command another address may be given."""
    taken = Search._take

    def cut(self: Search, generation: Any, *more: Any) -> Any:
        if generation.index == 3:
            raise RuntimeError("power cut")
        return taken(self, generation, *more)

    folder = str(tmp_path / "run")
    options = {"algorithm": algorithm, "engine": "remote", "url": url, "output_dir": folder, **SMALL}
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_take", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            tune(**options)
    with monkeypatch.context() as patch:
        ask = RemoteEngine._ask
        patch.setattr(RemoteEngine, "_ask", lambda engine: ask(engine) | {"engine": "other"})
        with pytest.raises(ArtifactError, match="behind was 'torch' and is now 'other'"):
            tune(**options)
    moved = url.replace("127.0.0.1", "localhost")
    check_same(alone(algorithm), tune(resume=folder) if by_name else tune(**(options | {"url": moved})))


def test_texts_that_the_server_tokenises_are_the_examples_that_the_tuner_would_send(url: str) -> None:
    options = Options.of(task_name="demo", model_name="demo", n_prompt_tokens=5)
    texts = [str(row["text"]) for row in rows("train")[:4]]
    encoded = Setup(options, load_task("demo")).encoder.encode([Row(text, None, 0) for text in texts], quiet=True)
    session = load_remote(url, n_prompt_tokens=5).open(encoded.examples)
    engine = session.engine
    prompts, labels = np.ones((2, 5, engine.hidden_size), np.float32), np.array([0, 1, 1, 0])

    def post(call: str, tensors: dict[str, Any], **parameters: Any) -> Message:
        return engine.caller.post(engine.path(call), tensors, parameters, Traffic())

    told = post("texts", {"texts": np.array(texts, object)}, task="demo").parameters
    assert told == {"examples": session.name, "count": 4, "truncated": 0}
    labelled = post("texts", {"texts": np.array(texts, object), "labels": labels}, task="demo").parameters["examples"]
    losses = post("infer", {"prompts": prompts}, examples=labelled, loss="ce").tensors["losses"]
    logits = session.evaluate(torch.from_numpy(prompts))
    expected = LOSSES["ce"](logits, torch.from_numpy(labels), METRICS["accuracy"])
    assert losses.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(UsageError, match="task must be one of"):
        post("texts", {"texts": np.array(texts, object)}, task=__file__)


def test_a_server_with_another_model_is_refused_and_leaves_no_folder(
    bert: PreTrainedModel, tiny_scorer: Callable[..., Service], serving: Callable[..., Any], tmp_path: Path
) -> None:
    different = r"model_type is bert there and roberta here, vocabulary is 200 there and \d+ here, hidden_size is 32 th"
    with (
        serving(tiny_scorer(bert)) as url,
        pytest.raises(UsageError, match=f"{url} has another model than --model_name {MODEL_DIR}: {different}"),
    ):
        tune(engine="remote", url=url, model_name=str(MODEL_DIR), output_dir=str(tmp_path / "run"), **SMALL)
    assert list(tmp_path.iterdir()) == []
