"""Whole runs on samples of the papers' data sets with a small real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bbt_fast.tuner.tasks.task import load_task
from bbt_fast.tuner.tune import tune

NAMES = ["sst2", "dbpedia_14", "mrpc", "trec"]
"""One text and two, two classes and many; the tests of the data and of the encoding read all the samples."""
EVALUATIONS, POPSIZE = 10, 5
K_SHOT = 1
N_TEST = 16


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_on_real_data_is_whole(name: str, tmp_path: Path, shared_file: Callable[..., Path]) -> None:
    task = load_task(name)
    result = tune(
        task_name=name,
        data_dir=str(shared_file("data", name)),
        model_name=str(shared_file("models", "minilm-mlm")),
        engine="ort",
        precision="fp32",
        k_shot=K_SHOT,
        n_prompt_tokens=20,
        popsize=POPSIZE,
        budget=EVALUATIONS,
        max_test_examples=N_TEST,
        plots=False,
        output_dir=str(tmp_path / name),
    )
    n_train = K_SHOT * len(task.labels)
    assert (result.task, result.metric, result.evaluations) == (task.name, task.metric, EVALUATIONS)
    assert {split: result.examples[split] for split in ("train", "dev", "test")} == {
        "train": n_train, "dev": n_train, "test": N_TEST,
    }  # fmt: skip
    if task.metric == "accuracy":
        assert (result.tuned.train * n_train) == pytest.approx(round(result.tuned.train * n_train))
    assert 0 <= result.tuned.test <= 1
    assert (tmp_path / name / "result.json").exists()
