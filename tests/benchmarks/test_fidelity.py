"""How faithfully a precision ranks populations: those of a small search, and the same ones from its journal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bbt_fast.benchmarks import fidelity, search
from bbt_fast.benchmarks.harness.fidelity import journal_of, populations
from bbt_fast.engine import Session
from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task

SMALL = {"engine": "torch", "precision": "fp32", "device": "cpu", "seed": 8, "budget": 60, "max_test_examples": 20}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What search.py leaves of three generations."""
    folder = tmp_path_factory.mktemp("runs")
    small = ["--budget", "60", "--max_test_examples", "20", "--variants", "bbt+torch-fp32"]
    where = ["--runs", str(folder), "--output", str(folder / "record.json")]
    search.main([*small, *where, "--seeds", "8", "--device", "cpu"])
    return folder


def test_a_journal_leads_to_the_populations_of_its_search(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("demo")
    setup = Setup(resolve(Options.of(**SMALL), task.preset), task)
    engine, data = setup.load_engine({}), setup.encode(setup.splits(8)).train
    made = populations(engine, data, "bbt", 8, {0, 2})
    monkeypatch.setattr(Session, "evaluate", None)
    journal = journal_of(runs / "demo-demo", "bbt", 8)
    told = populations(engine, data, "bbt", 8, {0, 2}, journal)
    assert [population.kind for population in told] == ["random", "cma"]
    for one, other in zip(made, told, strict=True):
        assert torch.equal(one.prompts, other.prompts)
    with pytest.raises(ValueError, match="generation 0 of the journal is of another search"):
        populations(engine, data, "bbt", 9, {0, 2}, journal)


def test_runs_of_another_task_are_not_taken_for_this_one_s(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"demo-sst2 has no run of bbt in fp32 with seed 8\. Make one with search.py"):
        journal_of(runs / "demo-sst2", "bbt", 8)


def test_a_run_of_other_options_or_in_another_precision_is_not_taken(runs: Path, tmp_path: Path) -> None:
    (run,) = runs.glob("demo-demo/*/seed-8")
    for name in ("bbt+mean-60", "bbt+snes+torch-fp32-60", "bbt+torch-bf16-60", "bbtv2-60"):
        shutil.copytree(run, tmp_path / name / "seed-8")
    with pytest.raises(UsageError, match="has no run of bbt in fp32"):
        journal_of(tmp_path, "bbt", 8)
    shutil.copytree(run, tmp_path / "bbt-60" / "seed-8")
    assert len(journal_of(tmp_path, "bbt", 8)) == 3


@pytest.fixture
def measure(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that measures engines by the command, and returns what the record says of each."""
    monkeypatch.setattr(fidelity, "WANTED", {"bbt": {0, 2}, "bbtv2": {0}})

    def run(*engines: str) -> dict[str, Any]:
        small = ["--algorithms", "bbt", "--engines", *engines, "--seeds", "8", "--device", "cpu"]
        fidelity.main([*small, "--runs", str(runs), "--output", str(tmp_path / "record.json")])
        found: dict[str, Any] = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["fidelity"]["bbt"]
        return found

    return run


@pytest.mark.slow
def test_the_command_writes_a_record_and_a_table(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = measure("torch-bf16")["torch-bf16"]
    assert set(found["summary"]) == {"random", "cma"}
    assert 0.5 < found["summary"]["random"]["spearman"] <= 1
    assert 0 < found["summary"]["cma"]["mean_loss_error"] < found["summary"]["cma"]["loss_spread"]
    assert "| bbt | torch-bf16 | 1 cma |" in (tmp_path / "record.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_fewer_bits_cost_more(measure: Callable[..., dict[str, Any]]) -> None:
    found = measure("torch-bf16", "ort-int8", "ort-int8blocks")
    error = {name: rows["summary"]["cma"]["mean_loss_error"] for name, rows in found.items()}
    assert error["ort-int8"] > error["ort-int8blocks"] > error["torch-bf16"] > 0
