"""The lab compares variants: their names, what shares a process, and the table that decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bbt_fast.benchmarks import gpu
from bbt_fast.benchmarks.harness.contenders import contender, known, torch_best
from bbt_fast.benchmarks.harness.pool import Pool
from bbt_fast.benchmarks.harness.variants import group_of, table, variants, winners
from bbt_fast.benchmarks.harness.worker import WorkerError
from bbt_fast.benchmarks.harness.workload import Workload


def test_each_engine_runs_with_all_without_one_and_without_any() -> None:
    names = variants("cuda")
    assert names[0] == "torch-best-fp16"
    for engine in ("torch", "ort"):
        base = f"bbt-fast-{engine}-fp16"
        ends = ("", "-without-packing", "-without-fusion", "-without-graph", "-without-packing+fusion+graph", "-fast")
        assert {base + end for end in ends} | {f"bbt-fast-{engine}-fp8"} <= set(names)
    assert len(names) == len(set(names)) == 15


def test_on_a_cpu_variants_name_what_they_include() -> None:
    names = variants("cpu")
    assert {"bbt-fast-torch-fp32", "bbt-fast-ort-fp32-with-packing+fusion+graph"} <= set(names)
    for name in names:
        if "fp8" not in name:
            contender(known(name))


def test_what_needs_other_code_or_another_graph_runs_in_another_process() -> None:
    groups = {name: group_of(name) for name in variants("cuda")}
    assert groups["bbt-fast-torch-fp16"] == groups["bbt-fast-torch-fp16-without-packing"] == "bbt-fast-torch-fp16"
    assert groups["bbt-fast-torch-fp16-without-packing+fusion+graph"] == "bbt-fast-torch-fp16-fusion"
    assert groups["bbt-fast-ort-fp16"] == groups["bbt-fast-ort-fp16-without-graph"] == "bbt-fast-ort-fp16"
    assert groups["bbt-fast-ort-fp16-without-packing+fusion+graph"] == "bbt-fast-ort-fp16-packing-fusion"
    assert groups["bbt-fast-torch-fp8"] != groups["bbt-fast-torch-fp16"] != groups["torch-best-fp16"]
    assert group_of("bbt-fast-ort-fp32-with-fusion+graph") == "bbt-fast-ort-fp32-packing"
    assert group_of("bbt-fast-ort-fp32") == "bbt-fast-ort-fp32"


def row(milliseconds: float, **more: Any) -> dict[str, Any]:
    """The record of a contender that is correct and takes so many milliseconds a generation."""
    return {
        "status": "ok",
        "agreement": {"spearman": 0.9987, "mean_loss_error": 0.01, "loss_spread": 2.0},
        "generation_ms": milliseconds,
        "evals_per_s": 20e3 / milliseconds,
        "attention_kernel": "varlen x24",
        **more,
    }


def test_the_table_says_how_fast_each_variant_is_and_the_last_line_which_is_fastest() -> None:
    rows = {
        "torch-best-fp16": row(100.0),
        "bbt-fast-torch-fp16": row(50.0),
        "bbt-fast-torch-fp16-without-graph": row(40.0),
        "bbt-fast-torch-fp8": {"status": "wrong", "reason": "Spearman 0.1 | and\nmore"},
        "bbt-fast-ort-fp16": {"status": "unavailable", "reason": "no"},
    }
    lines = table(rows).splitlines()
    assert lines[3].startswith("| bbt-fast-torch-fp16 | 0.9987 | 0.0050 | 50.0 | 400 | 2.00 |")
    assert "| **wrong**: Spearman 0.1 / and |" in lines[5]
    assert [line.count("|") for line in lines] == [17] * 7
    assert winners({"bbt": {"contenders": rows}}) == (
        "Fastest: bbt torch: bbt-fast-torch-fp16-without-graph (40.0 ms); bbt ort: none ran."
    )


@pytest.mark.slow
def test_contenders_of_one_process_answer_as_if_each_had_its_own(toy: Workload) -> None:
    start = Pool(lambda _: "all")
    names = ("bbt-fast-torch-fp32", "bbt-fast-torch-fp32-without-buckets", "bbt-fast-trt-fp16")
    one, other, missing = (start(name, toy) for name in names)
    assert one._shared is other._shared is missing._shared
    for guest in (one, other, missing):
        guest.send("load")
    with pytest.raises(WorkerError) as error:
        missing.receive(120)
    assert error.value.status == "unavailable"
    missing.close()
    assert other.receive(120)["savings"]["buckets"] is False  # asked for before the other's answer
    assert one.receive(120)["savings"]["buckets"] is True
    first, second = one("check", 120), other("check", 120)
    assert abs(first[0] - second[0]).max() < 1e-4
    with pytest.raises(WorkerError, match="AttributeError"):
        one("no such command", 120)
    one.close()
    assert other("round", 120)["total"] > 0
    other.close()
    assert other._shared.process.exitcode is not None
    with pytest.raises(WorkerError, match="its process died"):
        other("round", 10)


@pytest.mark.slow
def test_the_labs_dry_run_writes_a_record_of_all_variants_and_stops_at_none(
    tmp_path: Path, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "Pool", lambda _: local)
    monkeypatch.delitem(gpu.SHARES, "bbtv2")
    monkeypatch.setitem(torch_best.MODES, "cpu", ())  # the test of the other dry run compiles
    names = [*variants("cpu"), "bbt-fast-torch-fp7"]
    monkeypatch.setattr(gpu, "variants", lambda _: names)
    path = tmp_path / "lab.json"
    gpu.main(["--lab", "--dry_run", "--minutes", "30", "--repeats", "1", "--output", str(path)])
    assert capsys.readouterr().out.splitlines()[-1].startswith("Fastest: bbt torch: bbt-fast-torch-fp32")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["benchmark"] == "lab"
    for part in record["speed"].values():
        statuses = {name: found["status"] for name, found in part["contenders"].items()}
        assert list(statuses) == names
        assert statuses["bbt-fast-torch-fp7"] == "unavailable"
        # What the gate says of fp8 on a toy's random weights is no fault of the lab's.
        sure = {status for name, status in statuses.items() if "fp8" not in name}
        assert sure <= {"ok", "unavailable"}, statuses
        kinds = part["contenders"]["bbt-fast-torch-fp32"]["breakdown"]["kinds"]
        assert min(kinds["products"], kinds["attention"], kinds["gelu"], kinds["norms"]) > 0
