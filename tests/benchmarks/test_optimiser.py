"""The optimiser's benchmark, made small."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from bbt_fast.benchmarks import optimiser, report
from bbt_fast.tuner.artifacts.metrics_log import read_lines
from bbt_fast.tuner.tune import tune


def test_both_contenders_are_measured_beside_a_device_and_in_whole_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "optimiser.json"
    small = ["--dim=20", "--popsize=6", "--generations=3", "--device_ms=1", "--run_dim=20", "--run_generations=6"]
    optimiser.main([*small, "--rounds=1", f"--output={path}"])
    record = json.loads(path.read_text())
    assert [row["contender"] for row in record["rows"]] == ["pycma", "bbt-fast"]
    assert all(0 < row["critical_ms"] <= row["longest_ms"] for row in record["rows"])
    assert [row["algorithm"] for row in record["runs"]] == ["bbt", "bbtv2"]
    assert all(rate["min"] > 0 for row in record["runs"] for rate in row["per_second"].values())
    text = report.PAGES["optimiser"](record)
    assert text in capsys.readouterr().out
    assert path.with_suffix(".md").read_text() == text + "\n"


def test_nothing_is_measured_that_draws_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "Pycma", partial(optimiser.Pycma, bound=0.5))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        optimiser.check_agreement(20, 6)


def test_whole_runs_search_what_they_are_answered_at_once(tmp_path: Path) -> None:
    with optimiser.timed_runs(optimiser.Evolution) as seconds:
        tune(
            engine="torch", device="cpu", intrinsic_dim=20, popsize=6, budget=300, output_dir=str(tmp_path / "run"),
            plots=False, max_test_examples=8,
        )  # fmt: skip
    first, *_, last = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(seconds) == 1
    assert last["best_loss"] < 0.3 * first["best_loss"]
