"""Whole runs over several seeds: a small one of the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bbt_fast
from bbt_fast.benchmarks import accuracy


def test_the_command_tunes_with_each_seed_and_writes_a_record_and_a_table(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    small = ["--budget", "20", "--max_test_examples", "20", "--algorithms", "bbt", "--engines", "torch-fp32"]
    given = [*small, "--seeds", "8", "13", "--device", "cpu", "--output", str(path)]
    accuracy.main(given)
    record = json.loads(path.read_text(encoding="utf-8"))
    (row,) = record["rows"]
    assert (row["budget"], row["examples"]["test"], set(row["seeds"])) == (20, 20, {"8", "13"})
    table = path.with_suffix(".md").read_text(encoding="utf-8")
    mean = sum(run["test"] for run in row["seeds"].values()) / 2
    assert "| bbt | torch-fp32 | 20 |" in table
    assert f"| {100 * mean:.1f} (" in table


@pytest.mark.slow
def test_a_measurement_adds_to_its_record_what_that_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    small = ["--budget", "20", "--max_test_examples", "20", "--algorithms", "bbt", "--engines", "torch-fp32"]
    given = [*small, "--device", "cpu", "--output", str(path)]
    accuracy.main([*given, "--seeds", "13"])
    first = json.loads(path.read_text(encoding="utf-8"))["rows"][0]["seeds"]["13"]
    asked: list[int] = []
    tune = bbt_fast.tune
    monkeypatch.setattr(bbt_fast, "tune", lambda options: asked.append(options.seed) or tune(options))
    accuracy.main([*given, "--seeds", "8", "13"])
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert asked == [8]
    assert list(row["seeds"]) == ["8", "13"]
    assert row["seeds"]["13"] == first


def test_a_finished_run_is_taken_over_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--budget", "20", "--max_test_examples", "20", "--algorithms", "bbt", "--engines", "torch-fp32"]
    given = [*small, "--seeds", "8", "--device", "cpu", "--runs", str(tmp_path / "runs")]
    accuracy.main([*given, "--output", str(tmp_path / "record.json")])
    monkeypatch.setattr(bbt_fast, "tune", None)
    accuracy.main([*given, "--output", str(tmp_path / "other.json")])
    assert "| bbt | torch-fp32 | 20 |" in (tmp_path / "other.md").read_text(encoding="utf-8")
