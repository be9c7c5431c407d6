"""The seed fixes everything: the same command twice writes the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bbt_fast.tuner.cli.main import main
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.run.setup import Setup
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import load_task


def flags(options: dict[str, Any]) -> list[str]:
    """Options as flags of the command line."""
    given = [(name, value) for name, value in options.items() if name != "plots"]
    return ["--no-plots", *(part for name, value in given for part in (f"--{name}", str(value)))]


@pytest.mark.parametrize(
    ("engine", "algorithm"),
    [
        ("torch", "bbt"),
        ("torch", "bbtv2"),
        *(pytest.param("ort", each, marks=pytest.mark.slow) for each in ("bbt", "bbtv2")),
    ],
)
def test_the_same_command_twice_writes_the_same_journal(
    algorithm: str, engine: str, options: Callable[..., Any], figures: Callable[[Path], Any], tmp_path: Path
) -> None:
    command = flags(options(algorithm=algorithm, engine=engine))
    for name in ("a", "b"):
        assert main([*command, "--output_dir", str(tmp_path / name)]) == 0
    assert figures(tmp_path / "a") == figures(tmp_path / "b")


def test_runs_of_one_process_share_a_tokenizer_of_the_same_content(
    model: str, options: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    task = load_task("demo")

    def tokenizer() -> object:
        return Setup(resolve(Options(**options(model_name=str(folder))), task.preset), task).tokenizer

    first = tokenizer()
    assert tokenizer() is first
    words = folder / "tokenizer.json"
    words.write_text(words.read_text().replace("<mask>", "<gap>"))
    assert tokenizer() is not first


def test_another_seed_writes_another_journal(options: Callable[..., Any], tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert main([*flags(options()), "--seed", seed, "--output_dir", str(tmp_path / seed)]) == 0
    fitness = [
        [json.loads(line).get("fitness") for line in (tmp_path / seed / "journal.jsonl").read_text().splitlines()]
        for seed in ("1", "2")
    ]
    assert fitness[0] != fitness[1]


HARD = {
    "PYTHONHASHSEED": "1",
    "LC_ALL": "C",
    "TZ": "Asia/Kathmandu",
    "COLUMNS": "20",
    "HOME": "/proc/nobody",
}
"""Another order of hashes, locale and time zone, a narrow terminal, a home that nobody can write."""

EACH = """
import json, sys
from bbt_fast.tuner.cli.main import main
sys.exit(any(main(flags) for flags in json.loads(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_fresh_process_and_its_surroundings_change_nothing_and_an_export_names_no_package_that_no_model_needs(
    options: Callable[..., Any], figures: Callable[[Path], Any], tmp_path: Path
) -> None:
    place = tmp_path / "a folder \u00e9 \u4e2d"
    place.mkdir()
    asked = options()
    asked["model_name"] = shutil.copytree(asked["model_name"], place / "m\u00f6del")
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    environment |= HARD | {"BBT_FAST_CACHE": "c\u00e4che"}
    runs = [[*flags(asked | {"engine": engine}), "--output_dir", f"r\u00fcn {engine}"] for engine in ("torch", "ort")]
    deep = flags(options(algorithm="bbtv2"))
    runs.append([*deep, "--output_dir", "deep"])
    command = [sys.executable, "-c", EACH, json.dumps(runs, default=str)]
    before = os.umask(0o077)
    try:
        done = subprocess.run(command, cwd=place, env=environment, check=False, capture_output=True, text=True)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert "Skipping" not in done.stderr
    for engine in ("torch", "ort"):
        assert main([*flags(options(engine=engine)), "--output_dir", str(tmp_path / engine)]) == 0
        assert answers(place / f"r\u00fcn {engine}") == pytest.approx(answers(tmp_path / engine), abs=1e-5)
    assert main([*deep, "--output_dir", str(tmp_path / "deep")]) == 0  # whose order of hashes is drawn
    assert figures(place / "deep") == figures(tmp_path / "deep")


def answers(folder: Path) -> list[float]:
    """Return all fitness values and development scores of a journal."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [number for line in lines[1:] for number in line.get("fitness", line.get("score"))]
