"""Runs that were interrupted end with the same bytes as runs that were not."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import closing

import pytest
import torch

from bbt_fast.export.errors import ArtifactError
from bbt_fast.tuner.artifacts.metrics_log import MetricsLog
from bbt_fast.tuner.artifacts.prompt import read_prompt
from bbt_fast.tuner.artifacts.result import MEASURED
from bbt_fast.tuner.run import single
from bbt_fast.tuner.run.control import Control, RunInterruptedError
from bbt_fast.tuner.run.driver import Search

ALGORITHMS = ("bbt", "bbtv2")
GENERATIONS = 12


class PowerCutError(Exception):
    """Stands for SIGKILL: nothing after it happens."""


CHANGES: tuple[dict[str, str], ...] = (
    {}, {"keep": "mean"}, {"select": "due"}, {"optimizer": "sep-cma"}, {"optimizer": "snes"}, {"optimizer": "pycma"},
    {"random_proj": "none", "optimizer": "snes"},
)  # fmt: skip
SLOW: tuple[dict[str, str], ...] = (
    {"optimizer": "cma-local"}, {"embeddings": "3"}, {"embeddings": "2", "keep": "mean"},
)  # fmt: skip


@pytest.fixture(
    params=[
        pytest.param((algorithm, changes), marks=pytest.mark.slow if changes in SLOW else ())
        for changes in (*CHANGES, *SLOW)
        for algorithm in ALGORITHMS
    ],
    ids=str,
)
def whole(request, tmp_path, make_options, start):
    """A run that nothing disturbed: its options, folder and result."""
    algorithm, changes = request.param
    options = make_options(algorithm, **changes)
    return options, tmp_path / "whole", start(tmp_path / "whole", options)


plainly = pytest.mark.parametrize("whole", [(algorithm, {}) for algorithm in ALGORITHMS], ids=str, indirect=True)
"""For what does not depend on the optimizer."""


def check_same(one, other):
    """Check that two runs left the same files, except for times and memory."""
    for name in ("journal.jsonl", "prompt.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    timeless = []
    for folder in (one, other):
        result = json.loads((folder / "result.json").read_text())
        for name in (*MEASURED, "checksum"):
            del result[name]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        untimed = [{k: v for k, v in line.items() if k not in ("seconds", "train", "sum")} for line in lines]
        timeless.append((result, untimed))
    assert timeless[0] == timeless[1]


def test_a_run_may_be_cut_off_at_any_line_of_its_journal(whole, tmp_path, start):
    options, folder, _ = whole
    journal = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(journal) == 1 + GENERATIONS + GENERATIONS // 2
    for kept in range(0, len(journal) + 1, 1 if options.optimizer == "cma" else 3):
        cut = tmp_path / f"cut-{kept}"
        shutil.copytree(folder, cut)
        (cut / "result.json").unlink()
        torn = journal[kept][: len(journal[kept]) // 2] if kept < len(journal) else b""
        (cut / "journal.jsonl").write_bytes(b"".join(journal[:kept]) + torn)
        start(cut, options)
        check_same(folder, cut)


def test_a_power_cut_in_any_evaluation_loses_that_generation_only(whole, tmp_path, start, toy_engine):
    options, folder, _ = whole
    for at in (1, 5, 9, GENERATIONS):
        engine = toy_engine("input" if options.algorithm == "bbt" else "layers")
        sessions = []
        engine_open = engine.open

        def opened(examples, engine=engine, engine_open=engine_open, sessions=sessions, at=at):
            session = engine_open(examples)
            if not sessions:
                evaluate = session.evaluate

                def failing(prompts, layer=0):
                    if len([size for _, size in engine.calls if size == 8]) == at - 1:
                        raise PowerCutError
                    return evaluate(prompts, layer)

                session.evaluate = failing
            sessions.append(session)
            return session

        engine.open = opened
        cut = tmp_path / f"power-{at}"
        with pytest.raises(PowerCutError):
            start(cut, options, engine)
        kinds = [json.loads(line)["kind"] for line in (cut / "journal.jsonl").read_text().splitlines()]
        assert kinds.count("generation") == at - 1
        fresh = toy_engine("input" if options.algorithm == "bbt" else "layers")
        start(cut, options, fresh)
        assert len([size for _, size in fresh.calls if size == 8]) == GENERATIONS - at + 1
        check_same(folder, cut)


@plainly
def test_a_stop_file_ends_after_the_generation_with_the_best_prompt_saved(whole, tmp_path, start, monkeypatch):
    options, folder, _ = whole
    taken = Search._take

    def touch(self, generation, log, replayed):
        if generation.index == 4 and not replayed:
            self._folder.stop.touch()
        return taken(self, generation, log, replayed)

    monkeypatch.setattr(Search, "_take", touch)
    cut = tmp_path / "stopped"
    with pytest.raises(RunInterruptedError, match=r"stopped by the file .*stop after 40 evaluations\. The best prompt"):
        start(cut, options)
    assert torch.isfinite(read_prompt(cut)[0]).all()
    assert not (cut / "result.json").exists()
    monkeypatch.undo()
    start(cut, options)
    check_same(folder, cut)


@plainly
def test_a_stop_after_the_search_leaves_the_test_for_later(whole, tmp_path, start, monkeypatch):
    options, folder, _ = whole
    control, cut, answered = Control(), tmp_path / "stopped", single.test_logits

    def stopped(*given):
        control.request = "SIGTERM"
        return answered(*given)

    monkeypatch.setattr(single, "test_logits", stopped)
    with pytest.raises(RunInterruptedError, match=r"stopped by SIGTERM after the search, before the test\. The best"):
        start(cut, options, control=control)
    assert not (cut / "result.json").exists()
    monkeypatch.undo()
    start(cut, options)
    check_same(folder, cut)


def test_a_stop_before_the_first_development_score_saves_the_best_so_far(tmp_path, make_options, start):
    control = Control()
    control.request = "SIGINT"
    with pytest.raises(RunInterruptedError, match="stopped by SIGINT after 8 evaluations"):
        start(tmp_path / "r", make_options(), control=control)
    assert read_prompt(tmp_path / "r")[0].shape == (1, 3, 8)


def test_a_run_that_ended_early_stays_ended(tmp_path, make_options, start):
    for name, control in (("time", Control(max_time=1e-9)), ("target", Control(target_metric=0.0))):
        options = make_options()
        first = start(tmp_path / name, options, control=control)
        (tmp_path / name / "result.json").unlink()
        again = start(tmp_path / name, options, control=control)
        assert (again.evaluations, again.stopped_by, again.tuned) == (first.evaluations, first.stopped_by, first.tuned)


@plainly
def test_a_run_that_ran_out_of_time_may_be_given_more(whole, tmp_path, start):
    options, folder, _ = whole
    cut = tmp_path / "more"
    first = start(cut, options, control=Control(max_time=1e-9))
    assert first.evaluations == 8
    (cut / "result.json").unlink()
    more = start(cut, options)
    assert more.evaluations == GENERATIONS * 8
    assert (folder / "journal.jsonl").read_bytes() != (cut / "journal.jsonl").read_bytes()  # one score more
    generations = [
        [line for line in (f / "journal.jsonl").read_text().splitlines() if '"generation"' in line]
        for f in (folder, cut)
    ]
    fitness = [[json.loads(line)["fitness"] for line in lines] for lines in generations]
    assert fitness[0] == fitness[1]


@plainly
def test_time_is_summed_over_the_parts_of_a_run(whole, tmp_path, start):
    options, folder, result = whole
    (folder / "result.json").unlink()
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").unlink()
    with closing(MetricsLog(folder / "metrics.jsonl")) as later:
        for line in log:
            del line["sum"]
            later.append(line | {"seconds": line["seconds"] + 1000})
    assert 1000 < start(folder, options).seconds.tune < 1000 + 10 * result.seconds.tune + 10


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train", lambda engine, parts: (engine, type(parts)(parts.dev, parts.dev, parts.test))),
        ("dev", lambda engine, parts: (engine, type(parts)(parts.train, parts.train, parts.test))),
        ("engine", lambda engine, parts: (setattr(engine, "name", "other"), (engine, parts))[1]),
        ("precision", lambda engine, parts: (setattr(engine, "precision", "bf16"), (engine, parts))[1]),
        ("embeddings", lambda engine, parts: (engine.word_embeddings.mul_(2), (engine, parts))[1]),
    ],
)
def test_a_run_is_not_gone_on_with_on_something_else(
    name, change, tmp_path, make_options, start, toy_engine, toy_parts
):
    options = make_options()
    start(tmp_path / "r", options)
    (tmp_path / "r" / "result.json").unlink()
    engine, parts = change(toy_engine(), toy_parts())
    with pytest.raises(ArtifactError, match=rf"journal\.jsonl cannot be resumed: {name} was .* and is now"):
        start(tmp_path / "r", options, engine, parts=parts)


def rewrite(path, change):
    """Change a journal's records and write them back with sums that fit."""
    from bbt_fast.tuner.artifacts.journal import Journal

    old = Journal(path)
    old.close()
    path.unlink()
    new = Journal(path)
    for record in change(old.records):
        new.append(record)
    new.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [*r[:2], {**r[2], "candidates": "0"}, *r[3:]], "line 3, cannot be replayed: its candidates differ"),
        (lambda r: [*r[:2], {**r[2], "layer": 1}, *r[3:]], "line 3, cannot be replayed: its candidates differ"),
        (lambda r: [r[0], *r[2:]], "line 2, cannot be replayed: its candidates differ"),
        (lambda r: [r[0], {**r[1], "fitness": [1.0]}, *r[2:]], "line 2, cannot be replayed: it has not 8 fitness"),
        (lambda r: [r[0], {**r[1], "fitness": ["x"] * 8}, *r[2:]], "line 2, cannot be replayed: 'x' is not a number"),
        (lambda r: [r[0], {**r[1], "fitness": None}, *r[2:]], "line 2, cannot be replayed: it has not 8 fitness"),
        (lambda r: [r[0], {**r[1], "fitness": r[1]["fitness"][::-1]}, *r[2:]], "line 3, cannot be replayed: its cand"),
        (lambda r: [*r[:3], {**r[3], "score": [1]}, *r[4:]], "line 4, cannot be replayed: it has no score"),
        (lambda r: [*r[:3], {**r[3], "score": [None, 1]}, *r[4:]], "line 4, cannot be replayed: None is not a number"),
    ],
)
def test_a_journal_that_does_not_fit_is_refused_with_its_line(change, message, tmp_path, make_options, start):
    options = make_options()
    start(tmp_path / "r", options)
    (tmp_path / "r" / "result.json").unlink()
    rewrite(tmp_path / "r" / "journal.jsonl", change)
    with pytest.raises(ArtifactError, match=message):
        start(tmp_path / "r", options)


@plainly
def test_lost_curves_and_a_lost_prompt_come_back(whole, start):
    options, folder, _ = whole
    prompt = (folder / "prompt.safetensors").read_bytes()
    for name in ("result.json", "metrics.jsonl", "prompt.safetensors"):
        (folder / name).unlink()
    start(folder, options)
    assert (folder / "prompt.safetensors").read_bytes() == prompt
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == GENERATIONS


@plainly
def test_resuming_is_said(whole, start, caplog):
    options, folder, _ = whole
    (folder / "result.json").unlink()
    with caplog.at_level(logging.INFO):
        start(folder, options)
    assert f"resuming {folder}" in caplog.text


def test_a_journal_of_an_earlier_search_is_refused_with_the_reason(tmp_path, make_options, start):
    start(tmp_path / "r", make_options())
    (tmp_path / "r" / "result.json").unlink()
    rewrite(tmp_path / "r" / "journal.jsonl", lambda records: [{**records[0], "format": 1}, *records[1:]])
    with pytest.raises(ArtifactError, match=r"format was 1 and is now 3; CMA-ES draws other candidates"):
        start(tmp_path / "r", make_options())
