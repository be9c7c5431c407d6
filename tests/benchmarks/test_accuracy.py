"""Whole runs over several seeds: a small one of the demo."""

from __future__ import annotations

import json
from pathlib import Path

from bbt_fast.benchmarks import accuracy


def test_the_command_tunes_with_each_seed_and_writes_a_record_and_a_table(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    small = ["--budget", "40", "--max_test_examples", "20", "--algorithms", "bbt", "--engines", "torch-fp32"]
    given = [*small, "--seeds", "8", "13", "--device", "cpu", "--runs", str(tmp_path / "runs"), "--output", str(path)]
    accuracy.main(given)
    record = json.loads(path.read_text(encoding="utf-8"))
    (row,) = record["rows"]
    assert (row["budget"], row["examples"]["test"], set(row["seeds"])) == (40, 20, {"8", "13"})
    assert row["mean"]["test"] == sum(row["seeds"].values()) / 2
    assert "| bbt | torch-fp32 | 40 |" in path.with_suffix(".md").read_text(encoding="utf-8")

    began = (tmp_path / "runs" / "bbt-torch-fp32" / "seed-8" / "result.json").stat().st_mtime_ns
    accuracy.main(given)  # takes over what is finished
    assert (tmp_path / "runs" / "bbt-torch-fp32" / "seed-8" / "result.json").stat().st_mtime_ns == began
