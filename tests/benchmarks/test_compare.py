"""The comparison's command: what it measures, keeps, and does not measure again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bbt_fast.benchmarks import compare
from bbt_fast.benchmarks.compare import Job, jobs
from bbt_fast.benchmarks.methods.run import figures
from bbt_fast.export.errors import UsageError

GIVEN = [
    "--methods", "manual-prompt,feature-linear", "--seeds", "8,13", "--n_test", "12", "--k_shot", "4",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool, Mapping[str, Any]]]:
    """What was measured: method, seed, whether it was tested, setting. It runs here, and not in processes."""
    seen: list[tuple[str, int, bool, Mapping[str, Any]]] = []

    def measure(method: str, options: Any, setting: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        seen.append((method, options.seed, how["test"], setting))
        return figures(method, options, setting, **how)

    monkeypatch.setattr(compare.compare, "__defaults__", (None, measure))
    return seen


@pytest.mark.slow
def test_the_command_measures_each_method_and_writes_record_table_and_plot(
    tmp_path: Path, asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    compare.main([*GIVEN, "--output", str(tmp_path), "--runs", str(tmp_path / "runs")])
    record = json.loads((tmp_path / "compare-demo-demo-n12.json").read_text(encoding="utf-8"))
    row = record["methods"]["feature-linear"]
    best = max(row["grid"], key=lambda tried: (tried["dev"], -tried["dev_loss"]))
    assert [run["setting"] for run in row["seeds"].values()] == 2 * [best["setting"]]
    tested = [(method, seed) for method, seed, test, _ in asked if test]
    assert tested == [(m, s) for m in ("manual-prompt", "feature-linear") for s in (8, 13)]
    assert {seed for _, seed, test, _ in asked if not test} == {8}
    text = (tmp_path / "compare-demo-demo-n12.md").read_text(encoding="utf-8")
    mean = sum(run["test"] for run in row["seeds"].values()) / 2
    assert f"| feature-linear | {100 * mean:.1f} (" in text
    assert (tmp_path / "compare-demo-demo-n12.png").stat().st_size > 1000


def test_a_comparison_goes_on_where_it_was_and_measures_nothing_twice(
    tmp_path: Path, asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    given = [*GIVEN, "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    compare.main([*given, "--methods", "manual-prompt", "--seeds", "8"])
    path = tmp_path / "compare-demo-demo-n12.json"
    before = json.loads(path.read_text(encoding="utf-8"))["methods"]["manual-prompt"]["seeds"]["8"]
    asked.clear()
    compare.main([*given, "--methods", "manual-prompt"])
    assert [(method, seed) for method, seed, *_ in asked] == [("manual-prompt", 13)]
    assert json.loads(path.read_text(encoding="utf-8"))["methods"]["manual-prompt"]["seeds"]["8"] == before
    with pytest.raises(SystemExit, match="2"):
        compare.main([*given, "--methods", "manual-prompt", "--k_shot", "8"])


def test_what_is_left_is_the_rest_of_a_grid_and_the_seeds_that_are_missing() -> None:
    tried = {"setting": {}, "dev": 0.5, "dev_loss": 1.0}
    record = {"methods": {"feature-linear": {"grid": 3 * [tried], "chosen": None, "seeds": {}}}}
    left = jobs(["manual-prompt", "feature-linear"], [8, 13], record)
    assert left == [
        Job("manual-prompt", 8, None), Job("manual-prompt", 13, None),
        Job("feature-linear", 8, 3), Job("feature-linear", 8, None), Job("feature-linear", 13, None),
    ]  # fmt: skip


def test_a_record_of_other_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"about": {"k_shot": 4}}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"is of another comparison: k_shot is 4 there"):
        compare.opened(path, {"k_shot": 16})


def test_a_method_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--methods", "bbtv3"])
    assert "there is no method 'bbtv3'; they are manual-prompt" in capsys.readouterr().err
