"""The comparison's command: what it measures, keeps, and does not measure again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from bbt_fast.benchmarks import compare
from bbt_fast.benchmarks.harness import sweeps
from bbt_fast.benchmarks.harness.comparison import table
from bbt_fast.benchmarks.harness.record import device_name
from bbt_fast.benchmarks.methods import schedule
from bbt_fast.benchmarks.methods.run import figures
from bbt_fast.benchmarks.methods.schedule import Job, jobs
from bbt_fast.export.errors import NumericsError, UsageError
from bbt_fast.export.model import load_model
from bbt_fast.tuner.cli.main import main
from bbt_fast.tuner.demo import MODEL_DIR
from bbt_fast.tuner.input.options import Options

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

    monkeypatch.setattr(schedule.compare, "__defaults__", (None, 1, measure))
    return seen


def found(job: Job, setting: Mapping[str, Any], dev: float = 0.5) -> dict[str, Any]:
    """What a step finds, without a model."""
    return {
        "setting": dict(setting), "dev": dev, "dev_loss": 1.0, "test": None if job.setting is not None else dev,
        "seconds": 1.0, "user_mib": 1.0, "server_mib": None, "examples": {"train": 8, "dev": 8, "test": 8},
        "traffic": {"queries": 0, "up_bytes": None, "down_bytes": None}, "notes": {}, "metric": "accuracy",
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_measures_each_method_and_writes_record_table_and_plot(
    tmp_path: Path, asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    compare.main([*GIVEN, "--output", str(tmp_path), "--runs", str(tmp_path / "runs")])
    record = json.loads((tmp_path / "compare-demo-demo-n12.json").read_text(encoding="utf-8"))
    row = record["methods"]["feature-linear"]
    best = max(row["grid"].values(), key=lambda tried: (tried["dev"], -tried["dev_loss"]))
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


def test_a_record_goes_on_on_another_machine_and_its_table_says_where_each_method_was_measured(
    tmp_path: Path, asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    given = [*GIVEN, "--seeds", "8", "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    compare.main([*given, "--methods", "manual-prompt"])
    path = tmp_path / "compare-demo-demo-n12.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert "measured on" not in table(record)
    record["methods"]["manual-prompt"]["seeds"]["8"]["device"] = "a card"
    path.write_text(json.dumps(record), encoding="utf-8")
    compare.main([*given, "--methods", "manual-prompt,in-context", "--engine", "ort", "--precision", "fp32"])
    assert [method for method, *_ in asked] == ["manual-prompt", "in-context"]
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "Compare seconds and memory only between methods that were measured on the same device." in text
    last = {line.split(" | ")[0]: line.split(" | ")[-1] for line in text.splitlines() if line.startswith("|")}
    assert last["| method"] == "measured on |"
    assert last["| manual-prompt"] == "a card |"
    assert last["| in-context"] == f"{device_name('cpu')} |"


def test_what_is_left_is_the_rest_of_a_grid_and_the_seeds_that_are_missing() -> None:
    tried = {"seed": 8, "setting": {}, "dev": 0.5, "dev_loss": 1.0}
    record = {"methods": {"feature-linear": schedule.empty() | {"grid": dict.fromkeys("012", tried)}}}
    left = jobs(["manual-prompt", "feature-linear"], [8, 13], record)
    assert left == [
        Job("manual-prompt", 8, None), Job("manual-prompt", 13, None),
        Job("feature-linear", 8, 3), Job("feature-linear", 8, None), Job("feature-linear", 13, None),
    ]  # fmt: skip


def test_a_step_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    record: dict[str, Any] = {"about": {"model_name": "demo", "task_name": "demo"}, "methods": {}}
    broken = {("feature-linear", 0.1), ("feature-linear", 8), ("manual-prompt", 13)}

    def measure(method: str, options: Options, setting: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        if broken & {(method, setting.get("C") if not how["test"] else options.seed)}:
            raise NumericsError("the loss is\nNaN")
        job = Job(method, options.seed, None if how["test"] else 0)
        return found(job, setting, dev=setting.get("C", 1.0))

    methods = ["feature-mlp", "manual-prompt", "feature-linear"]
    broken |= {("feature-mlp", None)}
    steps = list(schedule.compare(record, Options(device="cpu"), methods, [8, 13], tmp_path, None, 3, measure))
    assert len(steps) == 2 + (4 + 2) + 3  # the seeds of a method none of whose settings can be used are not run
    assert [*record["methods"]] == ["manual-prompt", "feature-linear", "feature-mlp"]  # the table's order
    linear = record["methods"]["feature-linear"]
    assert [*linear["grid"]] == ["0", "2", "3"]
    assert (linear["chosen"], [*linear["seeds"]]) == (3, ["13"])
    why = "NumericsError: the loss is NaN"
    assert linear["failed"] == {"seed 8, setting 2 of 4": why, "seed 8": why}
    text = table(record)
    assert f"manual-prompt failed: seed 13: {why}" in text
    assert "| feature-mlp | - |" in text
    broken.clear()
    again = list(schedule.compare(record, Options(device="cpu"), methods, [8, 13], tmp_path, None, 1, measure))
    assert len(again) == 1 + (1 + 1) + 3 + 2
    assert not any(row["failed"] for row in record["methods"].values())


def test_a_setting_that_failed_and_is_the_best_after_all_has_its_seeds_measured_again(tmp_path: Path) -> None:
    record: dict[str, Any] = {"about": {"model_name": "demo", "task_name": "demo"}, "methods": {}}
    broken, seen = {10.0}, []

    def measure(method: str, options: Options, setting: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        if setting["C"] in broken:
            raise MemoryError
        seen.append((options.seed, how["test"], setting["C"]))
        return found(Job(method, options.seed, None if how["test"] else 0), setting, dev=setting["C"] / 10)

    def run(*seeds: int) -> None:
        seen.clear()
        list(schedule.compare(record, Options(device="cpu"), ["feature-linear"], seeds, tmp_path, None, 1, measure))

    run(8, 13)
    assert [step for step in seen if step[1]] == [(8, True, 1.0), (13, True, 1.0)]
    broken.clear()
    run(13, 8)
    assert seen == [(8, False, 10.0), (13, True, 10.0), (8, True, 10.0)]  # the seed of the grid tries the rest of it
    assert record["methods"]["feature-linear"]["failed"] == {}
    run(13, 8)
    assert not seen


def test_a_comparison_of_which_a_part_failed_prints_its_table_and_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any, **__: Any) -> dict[str, Any]:
        raise MemoryError("none left")

    monkeypatch.setattr(schedule.compare, "__defaults__", (None, 1, measure))
    given = [*GIVEN, "--methods", "manual-prompt", "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert main(["compare", *given]) == 1
    printed = capsys.readouterr()
    assert "manual-prompt failed: seed 8: MemoryError: none left; seed 13" in printed.out
    assert "the same command tries them again" in printed.err
    with pytest.raises(SystemExit, match="1"):
        compare.main(given)


def test_what_no_method_can_do_without_is_missed_before_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--model_name", "demo", "--task_name", "sst2", "--data_dir", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def comparison(k_shot: int, texts: str, name: str = "compare-demo") -> compare.Comparison:
    return compare.Comparison(Options(), {"k_shot": k_shot}, {"test texts": texts}, name, "k_shot")


def test_a_record_of_other_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"about": {"k_shot": 4}, "sources": {"test texts": "a"}}), encoding="utf-8")
    with pytest.raises(UsageError, match="is of another comparison: k_shot is 4 there"):
        compare.opened(path, comparison(16, "a"), ["bbt"])
    with pytest.raises(UsageError, match="is of another comparison: the test texts are others there"):
        compare.opened(path, comparison(4, "b"), ["bbt"])


def test_a_sweep_takes_the_steps_of_an_equal_comparison_of_another_sweep(
    tmp_path: Path, asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    given = [*GIVEN[2:], "--output", str(tmp_path), "--runs", str(tmp_path / "runs"), "--methods", "manual-prompt"]
    compare.main([*given, "--sweep", "k_shot=4"])
    assert len(asked) == 2
    asked.clear()
    compare.main([*given, "--sweep", "n_prompt_tokens=50"])  # its k_shot and prompt are those of the first
    assert not asked
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(tmp_path.glob("compare-*.json"))]
    assert [record["swept"] for record in records] == ["k_shot", "n_prompt_tokens"]
    assert records[0]["methods"] == records[1]["methods"]
    compare.main([*given, "--sweep", "intrinsic_dim=500"])
    assert not asked
    compare.main([*given, "--sweep", "n_prompt_tokens=5"])
    assert len(asked) == 2
    asked.clear()
    compare.main([*given, "--k_shot", "4"])
    compare.main([*given, "--k_shot", "4", "--sweep", "model_name=demo"])
    assert not asked
    assert json.loads((tmp_path / "compare-demo-demo-n12.json").read_text("utf-8"))["swept"] == "task_name"


def test_another_model_of_the_same_name_is_another_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    given = [*GIVEN, "--methods", "manual-prompt", "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    for number, folder in enumerate(("one", "other")):
        shutil.copytree(MODEL_DIR, path := tmp_path / folder / "model")
        model = load_model(str(path))
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(number)
        model.save_pretrained(path)
    compare.main([*given, "--model_name", str(tmp_path / "one" / "model")])
    asked.clear()
    with pytest.raises(SystemExit, match="2"):
        compare.main([*given, "--model_name", str(tmp_path / "other" / "model")])
    assert not asked
    assert "the model's embeddings are others there" in capsys.readouterr().err


def test_a_record_that_another_process_extends_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    given = [*GIVEN, "--methods", "manual-prompt", "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    with filelock.FileLock(tmp_path / ".compare-demo-demo-n12.json.lock"), pytest.raises(SystemExit, match="2"):
        compare.main(given)
    assert not asked
    assert "another process is extending" in capsys.readouterr().err


def test_a_finished_run_with_other_options_is_not_taken_for_the_one_that_is_asked_for(tmp_path: Path) -> None:
    small = Options.of(
        engine="torch", precision="fp32", device="cpu", k_shot=4, max_test_examples=12, n_prompt_tokens=5,
        intrinsic_dim=10, popsize=4, budget=8, plots=False, output_dir=str(tmp_path / "runs" / "seed-42"),
    )  # fmt: skip
    ran = figures("bbt", small, {}, test=True)
    assert figures("bbt", small.changed(engine="ort", precision="auto"), {}, test=True)["notes"] == ran["notes"]
    with pytest.raises(UsageError, match=r"holds another run: budget was 8 and is now 16. Give another --runs"):
        figures("bbt", small.changed(budget=16), {}, test=True)


def test_a_sweep_compares_with_each_value_and_draws_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(method: str, options: Options, setting: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        asked.append((method, options.seed, options.intrinsic_dim))
        return found(Job(method, options.seed, None), setting, dev=options.intrinsic_dim / 1000)

    monkeypatch.setattr(schedule.compare, "__defaults__", (None, 1, measure))
    given = [*GIVEN[2:], "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    compare.main([*given, "--sweep", "intrinsic_dim=50,500"])
    assert asked == [(method, seed, dim) for dim in (50, 500) for method in ("bbt", "bbtv2") for seed in (8, 13)]
    text = (tmp_path / "sweep-demo-demo-n12-intrinsic_dim.md").read_text(encoding="utf-8")
    assert "| intrinsic_dim | 50 | 500 |" in text
    assert "| bbtv2 | 5.0 (0.0) | 50.0 (0.0) |" in text
    assert (tmp_path / "sweep-demo-demo-n12-intrinsic_dim.png").stat().st_size > 1000
    assert text.strip() in capsys.readouterr().out
    asked.clear()
    compare.main([*given, "--sweep", "intrinsic_dim=50,500,20", "--methods", "bbt"])
    assert asked == [("bbt", seed, 20) for seed in (8, 13)]


def test_a_sweep_takes_what_an_option_takes() -> None:
    assert sweeps.parse("intrinsic_dim=50,100") == ("intrinsic_dim", (50, 100))
    assert sweeps.parse("preset=none,original") == ("preset", (None, "original"))
    assert sweeps.parse("random_proj=uniform,normal") == ("random_proj", ("uniform", "normal"))


def test_a_sweep_of_models_is_named_by_its_task() -> None:
    records = [{"about": {"model_name": name, "task_name": "demo"}, "methods": {}} for name in ("small", "large")]
    text = sweeps.table("model_name", ["models/small", "models/large"], records)
    assert "**compare** by model_name: demo;" in text
    assert "| model_name | small | large |" in text


def test_a_search_is_shown_with_its_engine_and_with_the_metric_before_it() -> None:
    job, notes = Job("bbt", 8, None), {"engine": "ort", "precision": "fp32", "zero_shot": 0.71}
    run = found(job, {}) | {"notes": notes, "device": "a card", "versions": {}, "commit": "abc", "step_seconds": 1.0}
    record = {
        "about": {"model_name": "demo", "task_name": "demo"},
        "methods": {"bbt": schedule.empty() | {"seeds": {"8": run}}},
    }
    assert "| ort fp32, untuned 71.0 % |" in table(record)


def measured(test: float, **about: Any) -> dict[str, Any]:
    """A record with one seed of one method."""
    return {
        "swept": "intrinsic_dim" if "intrinsic_dim" in about else "task_name",
        "about": {"model_name": "demo", "n_test": None, **about},
        "methods": {"bbt": {"seeds": {"8": {"test": test}}}},
    }


def test_comparisons_that_differ_in_one_option_have_one_table() -> None:
    tasks = [measured(0.5, task_name="b"), measured(0.7, task_name="a")]
    dims = [measured(dim / 1000, task_name="a", intrinsic_dim=dim) for dim in (100, 1000, 50)]
    over_tasks, over_dims = sweeps.joint([*tasks, *dims])
    assert "| task_name | a | b | mean |" in over_tasks
    assert "| bbt | 70.0 | 50.0 | 60.0 |" in over_tasks
    assert "| intrinsic_dim | 50 | 100 | 1000 |" in over_dims
    assert "| bbt | 5.0 | 10.0 | 100.0 |" in over_dims
    tasks[1]["methods"] = {}
    assert "| bbt | - | 50.0 | - |" in sweeps.joint(tasks)[0]
    other = [measured(0.5, task_name=name, budget=2) for name in "ab"]
    assert "at most 2 evaluations of BBT" in sweeps.joint([*tasks, *other])[1]


def test_a_comparison_on_several_tasks_ends_with_a_table_over_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int, bool, Mapping[str, Any]]]
) -> None:
    given = [*GIVEN, "--methods", "manual-prompt", "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    compare.main([*given, "--task_name", "demo,demo"])
    assert len(asked) == 2
    assert "| task_name | demo | demo | mean |" in capsys.readouterr().out


@pytest.mark.parametrize(("sweep", "said"), [("sigma", "must be an option and its values"), ("sigmo=1", "sigma")])
def test_a_sweep_of_nothing_is_refused(sweep: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--sweep", sweep])
    assert said in capsys.readouterr().err


def test_a_method_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--methods", "bbtv3"])
    assert "there is no method 'bbtv3'. Give all, or some of manual-prompt" in capsys.readouterr().err
