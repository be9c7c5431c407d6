"""The speed benchmark: every contender is right before it is fast, and the record says how fast."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertForMaskedLM

from bbt_fast.benchmarks import gpu, report, speed
from bbt_fast.benchmarks.harness import contenders
from bbt_fast.benchmarks.harness.contenders.base import Contender
from bbt_fast.benchmarks.harness.contenders.fast import Fast
from bbt_fast.benchmarks.harness.contenders.original import Original
from bbt_fast.benchmarks.harness.flops import Sizes, round_flops
from bbt_fast.benchmarks.harness.lengths import LENGTHS, QUANTILES, draw_lengths
from bbt_fast.benchmarks.harness.memory import PeakMemory
from bbt_fast.benchmarks.harness.rounds import ON_END, Rounds
from bbt_fast.benchmarks.harness.shapes import make_model
from bbt_fast.benchmarks.harness.worker import WorkerError
from bbt_fast.benchmarks.harness.workload import Workload
from bbt_fast.engine import Savings
from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.artifacts.economics import MIB

FIGURES = {
    "status", "precision", "library", "savings", "load_seconds", "export_seconds", "agreement", "attention_kernel",
    "peak_mib", "round_flop", "round_seconds", "evals_per_s", "generation_ms", "parts_ms", "optimizer_share",
    "matmul_flop_per_s", "flop_per_s", "matmul_share", "full_run_s",
}  # fmt: skip


@pytest.mark.parametrize("algorithm", ["bbt", pytest.param("bbtv2", marks=pytest.mark.slow)])
def test_contenders_that_agree_are_timed(algorithm: str, toy: Workload, local: Callable[..., Any]) -> None:
    names = ["original", "bbt-fast-torch-fp32", "bbt-fast-ort-fp32", "bbt-fast-torch-fp32-without-reuse+buckets"]
    record = speed.compare_speed(replace(toy, algorithm=algorithm), names, repeats=2, start=local)
    assert list(record["contenders"]) == names
    for figures in record["contenders"].values():
        assert set(figures) >= FIGURES, figures
        assert figures["agreement"]["spearman"] > 0.99
        assert len(figures["round_seconds"]["samples"]) == 2
        assert figures["parts_ms"]["total"] >= figures["parts_ms"]["evaluate"] > 0
    json.dumps(record)
    flops = [record["contenders"][name]["round_flop"] for name in names]
    assert flops[1] == flops[2] < flops[3] < flops[0]


@pytest.mark.parametrize("algorithm", ["bbt", pytest.param("bbtv2", marks=pytest.mark.slow)])
def test_a_decoder_runs_with_and_without_a_shared_prefix(
    algorithm: str, toy: Workload, local: Callable[..., Any]
) -> None:
    names = ["original", "bbt-fast-torch-fp32-without-prefix", "bbt-fast-torch-fp32"]
    workload = replace(toy, model="toy-gpt2", algorithm=algorithm)
    record = speed.compare_speed(workload, names, repeats=1, start=local)
    for figures in record["contenders"].values():
        assert figures["agreement"]["max_logit_difference"] < 1e-5
    flops = [record["contenders"][name]["round_flop"] for name in names]
    assert flops[0] > flops[1] > flops[2]


def test_a_contender_that_disagrees_is_reported_as_wrong_and_not_timed(
    toy: Workload, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards(Original):
        def answer(self, prompts: Tensor, layer: int) -> Tensor:
            return super().answer(prompts, layer).flip(0)

    monkeypatch.setitem(contenders.BASELINES, "backwards", Backwards)
    record = speed.compare_speed(toy, ["original", "backwards"], repeats=1, start=local)
    wrong = record["contenders"]["backwards"]
    assert wrong["status"] == "wrong"
    assert "of the population's spread (at most 0.01 in fp32)" in wrong["reason"]
    assert "evals_per_s" not in wrong
    assert "| backwards | **wrong**: mean loss error" in report.table(record)
    refused = speed.compare_speed(replace(toy, refused=True), ["original", "backwards"], repeats=1, start=local)
    timed = refused["contenders"]["backwards"]
    assert (timed["status"], timed["reason"]) == ("wrong", wrong["reason"])
    assert timed["evals_per_s"] > 0
    assert "| backwards (wrong) | " in report.table(refused)
    assert "backwards" not in report.brief(refused)
    assert speed.failed(refused)


def test_what_fails_or_cannot_run_ends_only_itself(
    toy: Workload, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Original):
        def answer(self, prompts: Tensor, layer: int) -> Tensor:
            raise RuntimeError("no kernel for this")

    monkeypatch.setitem(contenders.BASELINES, "broken", Broken)
    names = ["broken", "original-parallel", "original"]
    found = speed.compare_speed(replace(toy, algorithm="bbtv2"), names, repeats=1, start=local)["contenders"]
    assert [found[name]["status"] for name in names] == ["failed", "unavailable", "ok"]
    assert found["broken"]["reason"] == "RuntimeError: no kernel for this"


def test_what_fails_while_it_is_timed_ends_only_itself(
    toy: Workload, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tires(Original):
        calls = 0

        def evaluate(self, *given: Any) -> Tensor:
            self.calls += 1
            if self.calls == 3:  # a warm-up and a repeat went well
                raise RuntimeError("out of breath")
            return super().evaluate(*given)

    monkeypatch.setitem(contenders.BASELINES, "tires", Tires)
    record = speed.compare_speed(toy, ["tires", "original"], repeats=3, start=local)
    found = record["contenders"]
    assert found["tires"]["reason"] == "RuntimeError: out of breath"
    assert len(found["original"]["round_seconds"]["samples"]) == 3
    assert "| tires | **failed**: RuntimeError: out of breath |" in report.table(record)


def test_what_is_not_loaded_in_time_is_left_out(toy: Workload, local: Callable[..., Any]) -> None:
    class Slow(local):  # type: ignore[misc,valid-type]
        def receive(self, seconds: float | None = None) -> Any:
            if self.sent == "load" and self.served.name == "original-parallel":
                seconds = -1.0
            return super().receive(seconds)

    record = speed.compare_speed(toy, ["original-parallel", "original"], repeats=2, seconds=60, start=Slow)
    found = record["contenders"]
    assert found["original-parallel"] == {"status": "skipped", "reason": "the time was up before it was ready"}
    assert len(found["original"]["round_seconds"]["samples"]) == 2


def test_a_repeat_for_which_there_is_no_time_is_not_begun(
    toy: Workload, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([60.0] * 20 + [0.0] * 100)  # enough to load, check and time some rounds
    monkeypatch.setattr(speed.Limit, "left", property(lambda _: next(left)))
    figures = speed.compare_speed(toy, ["original"], repeats=50, seconds=60, start=local)["contenders"]["original"]
    assert figures["status"] == "ok"
    assert 1 < len(figures["round_seconds"]["samples"]) < 50


def test_the_gpu_script_keeps_what_it_has_measured(
    tmp_path: Path, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(workload: Workload, *given: Any, **options: Any) -> dict[str, Any]:
        if workload.algorithm == "bbtv2":
            raise WorkerError("failed", "no such model")
        return speed.compare_speed(workload, *given, **options | {"start": local})

    monkeypatch.setattr(gpu, "compare_speed", compare)
    path = tmp_path / "gpu.json"
    flags = ["--dry_run", "--repeats", "2", "--output", str(path), "--contenders", "original", "bbt-fast-torch-fp32"]
    assert gpu.main(flags) == 1
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["faults"] == {"bbtv2": "no such model"}
    assert [row["status"] for row in record["speed"]["bbt"]["contenders"].values()] == ["ok", "ok"]
    said = capsys.readouterr().out
    assert said.count("| bbt-fast-torch-fp32 |") == 2  # its speed, and where its time goes
    assert "| share of a generation | attention | products |" in said
    page = tmp_path / "page.md"
    page.write_text(f"{report.BEGIN}\n{report.END}\n", encoding="utf-8")
    report.main([str(path), "--into", str(page)])
    assert "| original |" in page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what torch.compile imports
def test_the_gpu_scripts_dry_run_is_green(
    tmp_path: Path, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, compiling = [], torch.compile

    def compile_once(module: Any, **how: Any) -> Any:
        """Compile the first of the strong baselines, in ten seconds; the others run as they are."""
        compiled.append(module)
        return compiling(module, **how) if len(compiled) == 1 else module

    monkeypatch.setattr(torch, "compile", compile_once)
    monkeypatch.setattr(gpu, "own_process", local)
    monkeypatch.delitem(gpu.SHARES, "bbtv2")
    path = tmp_path / "gpu.json"
    minutes = "30"  # more than a slow machine needs
    assert gpu.main(["--dry_run", "--minutes", minutes, "--repeats", "1", "--output", str(path)]) == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    for part in record["speed"].values():
        statuses = {name: row["status"] for name, row in part["contenders"].items()}
        assert {"bbt-fast-ort-fp32", "bbt-fast-torch-fp32-without-reuse"} <= set(statuses)
        assert set(statuses.values()) <= {"ok", "unavailable"}, statuses
    assert compiled


@pytest.mark.slow
def test_the_gpu_script_runs_as_a_file_and_contenders_in_processes_of_their_own(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, repo_root / "benchmarks" / "gpu.py", "--help"], check=True, capture_output=True)
    monkeypatch.delitem(gpu.SHARES, "bbt")
    path = tmp_path / "gpu.json"
    flags = ["--dry_run", "--minutes", "30", "--repeats", "1", "--contenders", "bbt-fast-torch-fp32"]
    assert gpu.main([*flags, "--output", str(path)]) == 0
    (part,) = json.loads(path.read_text(encoding="utf-8"))["speed"].values()
    assert part["contenders"]["bbt-fast-torch-fp32"]["status"] == "ok"


def test_on_cuda_a_contenders_memory_is_what_its_first_round_added(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([100, 350, 900])  # before it loads, after its round, after others have loaded too
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: ((1000 - next(taken)) * MIB, 1000 * MIB))
    memory = PeakMemory(torch.device("cuda"))
    memory.sample()
    memory.sample()
    assert memory.mib == 250


def test_a_turn_of_several_rounds_is_their_mean(toy: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Contender):
        calls = 0

        def answer(self, prompts: Tensor, layer: int) -> Tensor:
            Slow.calls += 1
            time.sleep(0.02)
            return torch.zeros(len(prompts), self.workload.examples_count, 2)

        def commit(self, prompt: Tensor, layer: int) -> None:
            raise AssertionError("BBT commits nothing")

    monkeypatch.setitem(ON_END, "cpu", 0.05)
    seconds = Rounds(Slow(toy, make_model(toy.model)))()
    assert Slow.calls <= 3
    assert seconds["total"] * Slow.calls >= 0.05
    assert 0.02 <= seconds["evaluate"] < seconds["total"]
    assert sum(seconds.values()) == pytest.approx(2 * seconds["total"])


def test_a_sample_of_the_candidates_stands_for_all(toy: Workload, local: Callable[..., Any]) -> None:
    worker = local("original", replace(toy, sample=1))
    worker("load")
    seconds = worker("round")
    clock = worker.served.rounds.oracle.clock
    assert clock.unmeasured == pytest.approx(0.75 * (seconds["evaluate"] + seconds["project"]))


def test_the_command_writes_a_record_a_table_and_plots(
    tmp_path: Path, local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "compare_speed", partial(speed.compare_speed, start=local))
    path = tmp_path / "record.json"
    flags = {"model": "toy", "population": 4, "examples": 2, "repeats": 1, "contenders": "original", "threads": 1}
    assert (
        speed.main([word for name, value in {**flags, "output": path}.items() for word in (f"--{name}", str(value))])
        == 0
    )
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record) == {"benchmark", "made", "environment", "workload", "budget", "contenders"}
    assert {"device", "versions", "threads", "commit", "instruction_sets"} <= set(record["environment"])
    assert record["environment"]["threads"] == 1
    report.main([str(path)])
    assert "| original |" in path.with_suffix(".md").read_text(encoding="utf-8")
    for plot in ("speedup", "breakdown"):
        assert (tmp_path / f"record-{plot}.png").stat().st_size > 1000


def test_operations_are_counted_as_pytorch_counts_them(toy: Workload) -> None:
    model = make_model("toy")
    original = Original(toy, model)
    prompts = torch.zeros(toy.population, toy.n_prompt_tokens, model.config.hidden_size)
    with FlopCounterMode(display=False) as counter:
        original.answer(prompts, 0)
    counted = round_flops(Sizes.of(model.config, 2), toy.lengths, (0,), toy.population, original.savings)
    assert counted == counter.get_total_flops()


def test_operations_of_an_engine_are_counted_as_pytorch_counts_them(toy: Workload) -> None:
    model = make_model("toy")
    fast = Fast(toy, model, "torch", "fp32", ablate=["buckets"])
    prompts = torch.zeros(toy.population, toy.n_prompt_tokens, model.config.hidden_size)
    with FlopCounterMode(display=False) as counter:
        fast.answer(prompts, 0)
    sizes = Sizes.of(model.config, 2)
    counted = round_flops(sizes, toy.lengths, (0,), toy.population, fast.savings)
    texts = toy.population * len(toy.lengths)
    unread = texts * 4 * sizes.hidden**2  # the answer's own key and value, which no exported graph makes
    fused = texts * 4 * sizes.hidden * int(toy.lengths.max()) ** 2  # the first layer's attention: PyTorch counts none
    assert counted == counter.get_total_flops() - unread + fused


def test_reuse_halves_the_work_of_a_round_of_many_layers() -> None:
    sizes, lengths = Sizes(64, 256, 24, 4, 1000, 2), torch.tensor([20, 30])
    tuned = tuple(range(24))
    without = round_flops(sizes, lengths, tuned, 20, Savings.on("cuda", ["reuse"]))
    assert round_flops(sizes, lengths, tuned, 20, Savings()) / without == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("task", LENGTHS)
def test_lengths_are_drawn_from_the_table(task: str) -> None:
    assert len(LENGTHS[task]) == len(QUANTILES)
    assert list(LENGTHS[task]) == sorted(LENGTHS[task])
    drawn = draw_lengths(task, 2000, seed=0)
    assert LENGTHS[task][0] <= int(drawn.min())
    assert int(drawn.max()) <= LENGTHS[task][-1]
    middle = LENGTHS[task][QUANTILES.index(0.5)]
    assert float(drawn.float().median()) == pytest.approx(middle, rel=0.1)


def test_the_usual_contenders_exist_on_both_devices() -> None:
    for device in ("cpu", "cuda"):
        for name in contenders.usual(device, ["reuse"], "ort-fp32"):
            contenders.contender(name)


@pytest.mark.parametrize(
    "flags", [["--contenders", "origin"], ["--contenders", "original", "bbt-fast-ort-fp32-without-x"]]
)
def test_an_unknown_contender_is_refused_with_those_there_are(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        speed.main(flags)
    said = capsys.readouterr().err
    assert f"there is no contender '{flags[-1]}'; these are: original, original-parallel," in said


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("README.md", 2),
        ("docs/benchmarks.md", 2),
        ("docs/search.md", 1),
        ("docs/comparison.md", 5),
        ("docs/original.md", 2),
    ],
)
def test_a_page_shows_what_the_records_say(name: str, least: int, repo_root: Path) -> None:
    page = (repo_root / name).read_text(encoding="utf-8")
    records = [json.loads(path.read_text()) for path in (repo_root / "benchmarks" / "results").glob("*.json")]
    shown = [table for table in report.tables(records) if table in page]
    shown.sort(key=page.index)
    assert report.insert(page, shown) == page
    assert len(shown) >= least


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks <!-- benchmarks: begin"):
        report.insert("nothing", [])


def test_a_model_that_the_baselines_cannot_prompt_is_refused(tmp_path: Path) -> None:
    config = DistilBertConfig(n_layers=1, dim=32, hidden_dim=64, n_heads=4, vocab_size=200)
    DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a DistilBERT, whose layers and head the PyTorch baselines do not know"):
        make_model(str(tmp_path))
