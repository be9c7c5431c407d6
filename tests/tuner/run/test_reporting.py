"""--report_to: what TensorBoard and Weights & Biases get, from whole runs and from resumed ones."""

from __future__ import annotations

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bbt_fast import tune
from bbt_fast.export.errors import MissingExtraError, UsageError
from bbt_fast.tuner.cli.main import main
from bbt_fast.tuner.run import reporting
from bbt_fast.tuner.run.control import Control, RunInterruptedError


def lines(folder):
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder):
    """The curves in TensorBoard's event files."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(folder, name):
    """The curve of a metric, by the run's own file."""
    return [(line["evaluations"], line[name]) for line in lines(folder) if line[name] is not None]


def test_tensorboard_gets_the_curves_and_the_test(tmp_path, make_options, start):
    result = start(tmp_path, make_options(report_to="tensorboard"))
    found = scalars(tmp_path)
    for name, tag in reporting.TAGS.items():
        assert found.pop(tag) == expected(tmp_path, name), name
    assert found == {"test/zero_shot": [(96, result.zero_shot.test)], "test/tuned": [(96, result.tuned.test)]}


def test_bbtv2_reports_its_layers_apart(tmp_path, make_options, start):
    start(tmp_path, make_options("bbtv2", report_to="tensorboard"))
    found = scalars(tmp_path)
    for layer in range(3):
        own = [(line["evaluations"], line["sigma"]) for line in lines(tmp_path) if line["layer"] == layer]
        assert found[f"cma/sigma/layer_{layer:02d}"] == own
    assert found["loss/best"] == expected(tmp_path, "loss")


def test_a_resumed_run_reports_each_generation_once(tmp_path, make_options, start):
    control = Control()
    control.request = "SIGINT"
    options = make_options(report_to="tensorboard")
    with pytest.raises(RunInterruptedError):
        start(tmp_path, options, control=control)
    start(tmp_path, options)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert scalars(tmp_path)["loss/best"] == expected(tmp_path, "loss")


class FakeRun:
    """As wandb's: ``step`` is the next that it takes."""

    def __init__(self, known):
        self.known, self.step, self.logged, self.summary, self.finished = known, 0, [], {}, False

    def log(self, values, step):
        assert step >= self.step
        self.step = step + 1
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place that remembers its runs, by id as the server does."""
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace()
    module.runs = []

    def init(**known):
        run = FakeRun(known)
        same = [old.step for old in module.runs if old.known["id"] == known["id"]]
        run.step = max(same, default=0)
        module.runs.append(run)
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_curves_the_options_and_the_test(tmp_path, make_options, start, wandb):
    options = make_options(report_to="wandb")
    result = start(tmp_path / "r", options)
    (run,) = wandb.runs
    assert run.finished
    assert run.known["config"] == options.as_dict()
    assert (run.known["project"], run.known["name"], run.known["dir"]) == ("bbt-fast", "r", str(tmp_path / "r"))
    assert [(step, v["loss/best"]) for step, v in run.logged] == expected(tmp_path / "r", "loss")
    assert run.summary == {"test/zero_shot": result.zero_shot.test, "test/tuned": result.tuned.test}


def test_wandb_goes_on_with_the_run_of_an_interrupted_part(tmp_path, make_options, start, wandb):
    control = Control()
    control.request = "SIGINT"
    options = make_options(report_to="wandb")
    with pytest.raises(RunInterruptedError):
        start(tmp_path, options, control=control)
    start(tmp_path, options)
    one, other = wandb.runs
    assert one.known["id"] == other.known["id"]
    steps = [step for run in wandb.runs for step, _ in run.logged]
    assert steps == [line["evaluations"] for line in lines(tmp_path)]


def test_a_report_that_fails_is_given_up_and_the_run_goes_on(tmp_path, make_options, start, wandb, caplog):
    def fail(self, values, step):
        raise ConnectionError("the cable is out")

    plain = start(tmp_path / "plain", make_options())
    FakeRun.log, log = fail, FakeRun.log
    try:
        with caplog.at_level(logging.WARNING):
            result = start(tmp_path / "r", make_options(report_to="tensorboard,wandb"))
    finally:
        FakeRun.log = log
    assert caplog.text.count("--report_to wandb failed (the cable is out); the run continues without it") == 1
    assert result.tuned == plain.tuned
    assert scalars(tmp_path / "r")["loss/best"] == expected(tmp_path / "r", "loss")


def test_a_report_that_cannot_be_opened_ends_the_run_before_its_search(tmp_path, make_options, start, wandb):
    def refuse(**known):
        raise RuntimeError("no key: log in first")

    wandb.init = refuse
    with pytest.raises(UsageError, match="--report_to wandb cannot be used: no key: log in first"):
        start(tmp_path / "r", make_options(report_to="wandb"))
    assert not (tmp_path / "r" / "journal.jsonl").exists()


@pytest.mark.parametrize("name", reporting.REPORTERS)
def test_a_missing_extra_is_said_before_any_work(name, small, monkeypatch):
    monkeypatch.setattr(reporting, "find_spec", lambda package: None)
    with pytest.raises(MissingExtraError, match=rf"--report_to {name} needs {name}.*pip install 'bbt-fast\[{name}\]'"):
        tune(**small(report_to=name, model_name="nowhere"), output_dir="r")


def test_an_unknown_report_is_exit_code_2(capsys):
    assert main(["--report_to", "tensorbord"]) == 2
    message = "report_to is 'tensorbord', but must be one of tensorboard, wandb. Did you mean 'tensorboard'?"
    assert message in capsys.readouterr().err


def test_a_run_that_asks_for_no_report_looks_for_none(tmp_path, make_options, start, monkeypatch):
    monkeypatch.setattr(reporting, "find_spec", lambda package: pytest.fail("nothing was asked for"))
    start(tmp_path, make_options())
    assert not (tmp_path / "tensorboard").exists()
