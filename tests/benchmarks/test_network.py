"""What a network costs: the records of service.py and efficiency.py, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor

from bbt_fast.benchmarks import efficiency, service
from bbt_fast.benchmarks.harness.server import server_apart
from bbt_fast.benchmarks.harness.workload import Algorithm, Workload
from bbt_fast.engine.remote import RemoteSession
from bbt_fast.export.errors import BbtFastError, DeviceError
from bbt_fast.service.server import Models

TORCH = Models("demo", None, "torch", "fp32", "cpu")


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes that a test starts; its own has one anyway."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("algorithm", ["bbt", "bbtv2"])
def test_what_passes_outside_the_model_is_told_from_the_model_s_time(algorithm: Algorithm) -> None:
    found = service.network_share(TORCH, Workload("demo", algorithm, "sst2", 4, 2, 5), 2)
    assert found["layers"] == (1 if algorithm == "bbt" else 6)
    for outside, inside, whole in zip(
        *(found[f"{k}_ms"]["samples"] for k in ("outside", "model", "remote")), strict=True
    ):
        assert 0 < outside < whole
        assert outside + inside == pytest.approx(whole)
    assert 0 < found["share_outside"] < 1
    assert found["up_bytes_per_query"] > 4 * 5 * found["hidden"]


def test_nothing_is_timed_that_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = RemoteSession.evaluate

    def wrong(self: RemoteSession, prompts: Tensor, layer: int = 0) -> Tensor:
        return answered(self, prompts, layer) + 1e-4

    monkeypatch.setattr(RemoteSession, "evaluate", wrong)
    with pytest.raises(BbtFastError, match="the remote engine and the one at home give different answers"):
        service.network_share(TORCH, Workload("demo", "bbt", "sst2", 4, 2, 5), 1)


def test_a_server_that_does_not_start_is_an_error_that_names_the_command() -> None:
    with (
        pytest.raises(DeviceError, match=r"did not start\. Run it by hand to see why: .* --host 0\.0\.0\.0"),
        server_apart("--model_name", "demo", "--host", "0.0.0.0"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_load_s_record_holds_rate_latencies_and_the_servers_memory(tmp_path: Path) -> None:
    flags = ["--n_prompt_tokens", "5", "--rounds", "1", "--examples", "2", "--engine", "torch", "--requests", "200"]
    service.main([*flags, "--output", str(tmp_path / "record.json")])
    load = json.loads((tmp_path / "record.json").read_text())["load"]
    assert (load["requests"], len(load["server_mib"])) == (200, 10)
    assert 0 < load["p50_ms"] <= load["p99_ms"]
    assert load["requests_per_s"] > 0
    assert "200 requests of 4 clients" in (tmp_path / "record.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_efficiency_table_is_of_runs_that_end_alike(tmp_path: Path) -> None:
    efficiency.main(
        ["--budget", "20", "--max_test_examples", "4", "--engine", "torch", "--algorithms", "bbt"]
        + ["--output", str(tmp_path / "record.json")]
    )
    (row,) = json.loads((tmp_path / "record.json").read_text())["rows"]
    sent = row["per_query_bytes"]
    assert (row["model"], row["algorithm"], row["queries"]) == ("demo", "bbt", 20)
    assert sent["prompts_up"] > 4 * 50 * 64 > sent["z_up"] > 4 * 500
    assert sent["logits_down"] > 4 * 2 * row["examples"] > sent["losses_down"] > 8
    assert row["server_mib"] > 100
    assert row["user_mib"]["process"] > 100
    assert "| demo, demo, bbt | 20 |" in (tmp_path / "record.md").read_text()
