"""A finished run's plots: each is there and shows something; none of them can harm the run."""

from __future__ import annotations

import json
import logging
import sys
from io import BytesIO

import numpy as np
import pytest
from matplotlib import image

from bbt_fast import tune
from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.report import drawing, plots
from bbt_fast.tuner.report.drawing import try_plot_run
from bbt_fast.tuner.report.plots import plot_run

EXPECTED = {"bbt": {"search", "evolution", "confusion"}, "bbtv2": {"search", "evolution", "layers", "confusion"}}


def colours(path):
    """The number of different colours in a picture."""
    picture = image.imread(BytesIO(path.read_bytes()), format="png")
    return len(np.unique((255 * picture[..., :3]).astype(int) @ [1 << 16, 1 << 8, 1]))


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_every_plot_of_the_algorithm_is_drawn(algorithm, tmp_path, make_options, start):
    start(tmp_path, make_options(algorithm))
    paths = plot_run(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {f"plots/{n}.png" for n in EXPECTED[algorithm]}
    assert all(colours(path) > 20 for path in paths)


def test_an_unfinished_run_has_curves_but_no_confusion_matrix(tmp_path, make_options, start):
    start(tmp_path, make_options())
    (tmp_path / "result.json").unlink()
    assert {path.stem for path in plot_run(tmp_path)} == {"search", "evolution"}


def test_a_resumed_run_whose_training_metric_is_unknown_is_drawn(tmp_path, make_options, start):
    start(tmp_path, make_options())
    for name in ("result.json", "metrics.jsonl"):
        (tmp_path / name).unlink()
    start(tmp_path, make_options())
    assert all(json.loads(line)["train"] is None for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert {path.stem for path in plot_run(tmp_path)} == EXPECTED["bbt"]


def test_the_gains_of_the_layers_add_up_to_what_the_search_gained(tmp_path, make_options, start):
    start(tmp_path, make_options("bbtv2"))
    run = plots.read_run(tmp_path)
    losses = [line["loss"] for line in run.lines]
    assert sum(plots._gains(run).values()) == pytest.approx(losses[0] - min(losses))


@pytest.mark.parametrize("error", [AttributeError("no font"), OSError(28, "no space"), UsageError("no run")])
def test_a_plot_that_fails_is_a_warning_and_the_run_is_whole(error, small, monkeypatch, caplog):
    def fail(run):
        raise error

    monkeypatch.setitem(plots.PLOTS, "search", fail)
    with caplog.at_level(logging.WARNING):
        result = tune(**small(plots=True), output_dir="r")
    assert "could not be drawn" in caplog.text
    assert (result.output_dir / "result.json").exists()
    assert not list(result.output_dir.glob("plots/*.png"))


def test_a_matplotlib_that_does_not_load_is_a_warning_too(small, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "bbt_fast.tuner.report.plots", None)
    with caplog.at_level(logging.WARNING):
        result = tune(**small(plots=True), output_dir="r")
    assert "could not be drawn" in caplog.text
    assert (result.output_dir / "result.json").exists()


def test_a_run_draws_its_plots_unless_told_otherwise(small, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "try_plot_run", drawn.append)
    one = tune(**small(plots=True), output_dir="a")
    tune(**small(plots=False), output_dir="b")
    assert drawn == [one.output_dir]
    assert "plots" not in json.loads((one.output_dir / "config.json").read_text())


def test_equal_runs_have_equal_plots(tmp_path, make_options, start):
    for name in "ab":
        start(tmp_path / name, make_options())
        try_plot_run(tmp_path / name)
    one, other = (sorted((tmp_path / name / "plots").iterdir()) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
