"""Several seeds together: mean, standard deviation, and the ensemble of their prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bbt_fast.tuner.artifacts.answers import Answers
from bbt_fast.tuner.artifacts.economics import Memory, Queries
from bbt_fast.tuner.artifacts.result import Result, Seconds, Tuned, ZeroShot
from bbt_fast.tuner.report.summary import summary
from bbt_fast.tuner.run.seeds import SeedsResult, ensemble_metric, ensemble_of

RESULT = Result(
    model="m", task="t", engine="ort", algorithm="bbt", mode="add", precision="fp32", device="cpu", seed=8, budget=100,
    evaluations=100, metric="accuracy", zero_shot=ZeroShot(0.5, 0.4), tuned=Tuned(0.9, 0.8, 0.6),
    seconds=Seconds(1.0, 4.0, 2.0), evals_per_s=25.0, optimizer_overhead=0.01, stopped_by="budget", examples={},
    classes=["a", "b"], confusion=[[3, 1], [2, 4]], queries=Queries(100, 1, 40, 24, 96, 16),
    memory=Memory(1.0, 2.0, 3.0),
    parity={}, versions={}, output_dir=Path("r"),
)  # fmt: skip


def seeds_result(*tests: float) -> SeedsResult:
    """The result of seeds with these test metrics."""
    results = tuple(replace(RESULT, seed=i, tuned=Tuned(0.9, 0.8, test)) for i, test in enumerate(tests))
    return SeedsResult(results, None, Path("r"))


def test_mean_and_sample_standard_deviation():
    spread = seeds_result(0.6, 0.7, 0.8).spreads["test"]
    assert (spread.mean, spread.std) == pytest.approx((0.7, 0.1))
    assert seeds_result(0.6, 0.7, 0.8).spreads["zero-shot test"].std == 0
    assert seeds_result(0.6).spreads["test"].std == 0


def test_the_table_has_a_row_for_each_seed_and_two_for_all():
    lines = summary(seeds_result(0.6, 0.7)).splitlines()
    assert lines[2].split("  ")[0] == "seed"
    assert [line.split()[0] for line in lines[3:7]] == ["0", "1", "mean", "std"]
    assert [line.split()[-2] for line in lines[3:7]] == ["60.0", "70.0", "65.0", "7.1"]
    assert len({len(line) for line in lines[2:7]}) == 1
    assert "ensemble" not in summary(seeds_result(0.6))


def test_a_run_that_a_limit_ended_says_so():
    assert "(ended by --max_time)" in summary(replace(RESULT, stopped_by="max_time"))
    assert "ended" not in summary(RESULT)


def test_the_ensemble_averages_log_probabilities_not_logits_or_votes():
    # Two prompts mildly for class 0, one strongly for class 1; the offsets must not count.
    logits = torch.tensor([[[1.0, 0.0]], [[101.0, 100.0]], [[-50.0, -45.0]]])
    assert ensemble_metric(logits, torch.tensor([1]), "accuracy") == 1.0
    log_probabilities = logits.log_softmax(2).mean(0)
    assert int(log_probabilities.argmax()) == 1
    assert ensemble_metric(logits[:2], torch.tensor([0]), "accuracy") == 1.0


def test_the_ensemble_is_scored_by_the_tasks_metric():
    logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    labels = torch.tensor([1, 0, 1])
    assert ensemble_metric(logits, labels, "accuracy") == pytest.approx(1 / 3)
    assert ensemble_metric(logits, labels, "f1") == pytest.approx(1 / 2)


def finished(folder: Path, *logits: list[list[float]], sets: tuple[str, ...]) -> list[Result]:
    """Runs that left these answers on two examples of the classes 0 and 1."""
    results = []
    for number, (values, examples) in enumerate(zip(logits, sets, strict=True)):
        (folder / str(number)).mkdir()
        Answers(torch.tensor(values), torch.tensor([0, 1]), examples).write(folder / str(number))
        results.append(replace(RESULT, output_dir=folder / str(number)))
    return results


SURE, UNSURE = [[3.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [1.0, 0.0]]


def test_the_ensemble_is_made_of_what_the_runs_left(tmp_path):
    assert ensemble_of(finished(tmp_path, UNSURE, SURE, sets=("a", "a"))) == 1.0
    assert "ensemble of the 2 prompts on test: 100.0 %" in summary(replace(seeds_result(0.6, 0.7), ensemble=1.0))


def test_without_all_answers_or_on_different_sets_there_is_no_ensemble(tmp_path, caplog):
    results = finished(tmp_path, UNSURE, SURE, sets=("a", "b"))
    assert ensemble_of(results) is None
    assert "different test sets" in caplog.text
    (tmp_path / "1" / "test_logits.safetensors").unlink()
    assert ensemble_of(results) is None
    assert "test_logits.safetensors is missing or damaged" in caplog.text
