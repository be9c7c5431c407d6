"""What several workers are worth: the simulation's arithmetic, and the benchmark made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bbt_fast.benchmarks import cluster


def test_a_generation_is_the_largest_share_a_round_of_calls_and_the_optimiser() -> None:
    shares, calls = {1: 10.0, 5: 30.0, 10: 60.0}, {1: 2.0, 2: 3.0}
    assert cluster.simulate(shares, calls, 4.0, 10, 1) == 4 + 2 + 60
    assert cluster.simulate(shares, calls, 4.0, 10, 2) == 4 + 3 + 30
    assert cluster.simulate(shares, calls, 4.0, 10, 4) == 4 + 5 + 20  # shares of 3 and 2
    assert cluster.simulate(shares, calls, 0.0, 20, 1) == 2 + 120
    assert cluster.simulate(shares, calls, 4.0, 10, 2, busy=1.1) == pytest.approx(4 + 3 + 33)


def test_workers_stop_to_pay_where_twice_as_many_are_hardly_faster() -> None:
    assert cluster.stops_to_pay({1: 100, 2: 55, 4: 50, 8: 49}) == 2
    assert cluster.stops_to_pay({1: 100, 2: 50, 4: 25}) == 4


def test_an_h100_takes_what_its_record_says() -> None:
    assert 40 < cluster.h100_share("bbt")[20] < 80
    assert cluster.h100_share("bbtv2")[20] < cluster.h100_share("bbt")[20]


@pytest.mark.slow
@pytest.mark.cluster
def test_the_benchmark_runs_whole(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    cluster.main(["--dry_run", "--output", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["measured"]) == {"bbt", "bbtv2"}
    assert (tmp_path / "record.png").stat().st_size > 1000
    assert "more than this many do not pay" in (tmp_path / "record.md").read_text()
