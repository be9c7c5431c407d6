"""The table of a search's options: a small one of the demo, and its arithmetic."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import filelock
import pytest

import bbt_fast
from bbt_fast.benchmarks import search
from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.artifacts.result import RESULT
from bbt_fast.tuner.run.seeds import child_name


@pytest.mark.slow
def test_the_command_tunes_every_variant_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    given = [
        "--budget", "20", "--max_test_examples", "20", "--engine", "torch", "--device", "cpu", "--seeds", "8", "13",
        "--variants", "bbt", "bbt+mean+ce-smooth", "bbt+snes", "--output", str(path), "--runs", str(tmp_path / "runs"),
    ]  # fmt: skip
    tune, asked = bbt_fast.tune, []

    def cut(options: bbt_fast.Options) -> bbt_fast.Result:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(options)
        return tune(options)

    monkeypatch.setattr(bbt_fast, "tune", cut)
    with pytest.raises(KeyboardInterrupt):
        search.main(given)
    search.main([*given, "--report"])
    (cell,) = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["variant"] != "bbt"]
    assert (cell["variant"], set(cell["seeds"])) == ("bbt+mean+ce-smooth", {"8"})
    capsys.readouterr()
    asked.clear()
    monkeypatch.setattr(bbt_fast, "tune", lambda options: asked.append(options) or tune(options))
    search.main(given)
    assert [(one.seed, one.keep, one.loss_type, one.optimizer) for one in asked] == [
        (13, "mean", "ce-smooth", "cma"), (8, "best", None, "snes"), (13, "best", None, "snes"),
    ]  # fmt: skip
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [(cell["variant"], cell["task"], set(cell["seeds"])) for cell in record["cells"]] == [
        (variant, "demo", {"8", "13"}) for variant in ("bbt", "bbt+mean+ce-smooth", "bbt+snes")
    ]
    table = path.with_suffix(".md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == table
    tests = [[run["test"] for run in cell["seeds"].values()] for cell in record["cells"]]
    before = statistics.fmean(run["zero_shot"] for run in record["cells"][0]["seeds"].values())
    assert f"| bbt | {100 * before:.1f} -> {100 * statistics.fmean(tests[0]):.1f} (" in table
    assert f"| {100 * (statistics.fmean(tests[2]) - statistics.fmean(tests[0])):+.1f} | 2 | " in table


def test_a_run_that_another_process_makes_is_waited_for_and_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [bbt_fast.Options(seed=seed, output_dir=str(tmp_path / child_name(seed))) for seed in (8, 13)]
    tuned, other = [], filelock.FileLock(tmp_path / ".seed-8.lock")

    def tune(options: bbt_fast.Options) -> None:
        tuned.append(options.seed)
        search.folder_of(options).mkdir()
        (search.folder_of(options) / RESULT).touch()

    def end_of_the_other(seconds: float) -> None:
        search.folder_of(runs[0]).mkdir()
        (search.folder_of(runs[0]) / RESULT).touch()
        other.release()

    monkeypatch.setattr(bbt_fast, "tune", tune)
    monkeypatch.setattr(search.time, "sleep", end_of_the_other)
    with other:
        search.make(runs)
    assert tuned == [13]


def test_a_run_with_other_options_is_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"engine": "torch", "precision": "fp32", "device": "cpu", "k_shot": 4, "n_prompt_tokens": 5}
    folder = tmp_path / "runs" / "demo-demo" / "bbt-20" / child_name(8)
    bbt_fast.tune(**small, popsize=4, budget=20, seed=8, max_test_examples=12, plots=False, output_dir=folder)
    monkeypatch.setattr(bbt_fast, "tune", None)
    given = ["--variants", "bbtv2", "bbt", "--seeds", "8", "--budget", "20", "--runs", str(tmp_path / "runs")]
    with pytest.raises(UsageError, match=r"holds another run: .*max_test_examples was 12 and is now None"):
        search.main(given)


def test_a_baseline_without_runs_leaves_its_column_empty() -> None:
    def cell(variant: str, task: str) -> dict[str, Any]:
        run = {"test": 0.5, "zero_shot": 0.5}
        return {"variant": variant, "task": task, "test_examples": 9, "ensemble": None, "seeds": {"8": run}}

    cells = [cell("bbtv2", "trec"), cell("bbtv2+mean", "trec"), cell("bbt", "sst2")]
    about = {
        "model": "demo",
        "budget": 20,
        "device": "old",
        "commit": "abc",
        "variants": ["bbt", "bbtv2", "bbtv2+mean"],
    }
    text = search.table(about | {"cells": cells})
    assert "trec 9, sst2 9" in text
    assert "| more than bbt | pairs | p |" in text
    assert "| bbtv2+mean | 50.0 -> 50.0 |  |  |  |  |  |" in text


def test_earlier_records_fill_the_cells_that_have_no_run_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cell(variant: str, task: str, test: float) -> dict[str, Any]:
        run = {"test": test, "zero_shot": 0.5}
        return {"variant": variant, "task": task, "test_examples": 9, "ensemble": None, "seeds": {"8": run}}

    about = {"benchmark": "search", "model": "demo", "budget": 20, "device": "old", "commit": "abc"}
    first, second, other = (tmp_path / f"{name}.json" for name in ("first", "second", "other"))
    first.write_text(
        json.dumps(about | {"cells": [cell("bbt+openvino-fp32", "subj", 0.6), cell("bbtv2", "subj", 0.9)]})
    )
    second.write_text(json.dumps(about | {"cells": [cell("bbt", "sst2", 0.7), cell("bbt", "subj", 0.1)]}))
    other.write_text(json.dumps(about | {"budget": 40, "cells": []}))
    given = ["--report", "--budget", "20", "--tasks", "sst2", "subj", "--variants", "bbt", "--seeds", "8"]
    given += ["--runs", str(tmp_path), "--output", str(tmp_path / "all.json"), "--beside"]
    search.main([*given, str(first), str(second)])
    assert "| bbt | 50.0 -> 70.0 | 50.0 -> 60.0 | 65.0 |" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"other\.json has budget 40: give --beside records of"):
        search.main([*given, str(other)])


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run below .* is finished: leave --report out"):
        search.main(["--report", "--runs", str(tmp_path)])


@pytest.mark.parametrize("differences", [[0.1, 0.2, -0.05, 0.3, 0.1], [0.0, 0.0], [1.0]])
def test_p_is_the_share_of_flips_that_differ_as_much(differences: list[float]) -> None:
    flips = itertools.product((-1, 1), repeat=len(differences))
    seen = abs(sum(differences)) - 1e-12
    sums = [abs(sum(sign * d for sign, d in zip(flip, differences, strict=True))) for flip in flips]
    assert search.paired_p(differences) == pytest.approx(statistics.fmean(total >= seen for total in sums))


def test_p_of_many_pairs_is_sampled_the_same_way_each_time() -> None:
    assert search.paired_p([0.1] * 20) == pytest.approx(1 / search.FLIPS, abs=3e-5)
    assert search.paired_p([0.1, -0.1] * 10) == 1.0
    assert search.paired_p([0.3, -0.1] * 10) == search.paired_p([0.3, -0.1] * 10)


def test_a_variant_of_unknown_parts_is_refused_before_any_run() -> None:
    for variant in search.VARIANTS:
        bbt_fast.Options.of(**search.changes_of(variant))
    with pytest.raises(UsageError, match=r"variant 'bbt\+men' has 'men' where one of mean, ce-smooth, .* must be"):
        search.main(["--variants", "bbt", "bbt+men"])
    with pytest.raises(UsageError, match="has 'bt' where one of bbt, bbtv2 must be"):
        search.changes_of("bt")


def test_a_variant_can_name_its_engine_and_precision() -> None:
    changes = {"algorithm": "bbt", "keep": "mean", "engine": "torch", "precision": "fp16-fast"}
    assert search.changes_of("bbt+mean+torch-fp16-fast") == changes


def test_transfer_begins_with_the_plain_runs_of_all_other_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bbt_fast.Options] = []

    def tune(options: bbt_fast.Options) -> None:
        asked.append(options)
        search.folder_of(options).mkdir(parents=True)
        (search.folder_of(options) / RESULT).touch()

    def stop(runs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bbt_fast, "tune", tune)
    monkeypatch.setattr(search, "cells_of", stop)
    given = ["--variants", "bbtv2+transfer", "bbtv2", "bbt", "--seeds", "8", "13", "--runs", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        search.main([*given, "--tasks", "sst2", "subj", "trec"])
    assert all(one.projection_from is None for one in asked[:12])
    for late in asked[12:]:
        earlier = [one for one in asked[:12] if one.algorithm == "bbtv2" and one.task_name != late.task_name]
        assert late.projection_from == tuple(str(one.output_dir) for one in earlier)
        assert len(earlier) == 4
    assert len(asked) == 18
    with pytest.raises(UsageError, match="'bbtv2\\+transfer' takes prompts of other tasks: give two --tasks or more"):
        search.main([*given, "--tasks", "sst2"])
