"""Every file of a run's folder and of a cache entry is damaged in turn: repaired with a warning, or refused by name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bbt_fast import tune
from bbt_fast.engine import load_engine
from bbt_fast.export.cache import cache_folder
from bbt_fast.export.errors import BbtFastError
from bbt_fast.export.traces import FILE as TRACE
from bbt_fast.tuner.artifacts.folder import CONFIG, JOURNAL, LOCK, METRICS, PROMPT
from bbt_fast.tuner.artifacts.prompt import read_prompt
from bbt_fast.tuner.artifacts.result import RESULT, read_result

Damages = dict[str, Callable[[Path], Any]]
NEEDED = (CONFIG, JOURNAL, METRICS, PROMPT, RESULT)
"""What a run reads again; whatever else is in its folder is made from these."""


def cases(folder: Path, place: Path, damages: Damages) -> Iterator[tuple[Path, str, str]]:
    """Copy a folder once for each of its files and each damage, and yield the copy, the file and the damage's name."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != LOCK and path.name != LOCK]
    for name in sorted(str(path.relative_to(folder)) for path in found):
        for number, (damage, do) in enumerate(damages.items()):
            copy = place / f"{name.replace('/', '-')}-{number}"
            shutil.copytree(folder, copy)
            do(copy / name)
            if (copy / name).exists() and (copy / name).read_bytes() == (folder / name).read_bytes():
                continue
            yield copy, name, damage


def harmless(folder: Path, copy: Path, name: str) -> bool:
    """Say whether a damage is none: an earlier moment of the same run, or other bytes for the same value."""
    if name not in NEEDED:
        return True
    if not (copy / name).exists():
        return False
    before, after = (folder / name).read_bytes(), (copy / name).read_bytes()
    if name == METRICS:  # a kill between journal and curves costs their last line
        kept = before[: before.rindex(b"\n", 0, -1) + 1]
        return after.startswith(kept)
    if name == JOURNAL and after.endswith(b"\n") and before.startswith(after):
        return True
    return name != PROMPT and parsed(before) == parsed(after)


def parsed(content: bytes) -> list[Any] | None:
    """Return the values of a file of JSON objects, or None if it is none."""
    try:
        return [json.loads(part) for part in (content.splitlines() if content.count(b"\n{") else [content])]
    except ValueError:
        return None


def refused(work: Callable[[], Any]) -> str | None:
    """Return the message of an error of ours, or None if all went well; any other error is a fault."""
    try:
        work()
    except BbtFastError as error:
        return str(error)
    return None


def check(
    folder: Path, copy: Path, name: str, go_on: Callable[[Path], Any], figures: Callable[[Path], Any], caplog: Any
) -> str:
    """Go on with a damaged run; return "refused", "repaired" or "harmless", and fail if it is anything else."""
    caplog.clear()
    nothing = harmless(folder, copy, name)
    refusal = refused(lambda: go_on(copy))
    if refusal is not None:
        assert Path(name).name in refusal, f"a message that does not name the file: {refusal}"
        assert not nothing
        return "refused"
    assert figures(copy) == figures(folder)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert nothing or any(Path(name).name in message for message in said), f"repaired without a word ({said})"
    return "harmless" if nothing else "repaired"


@pytest.mark.parametrize("algorithm", ["bbt", pytest.param("bbtv2", marks=pytest.mark.slow)])
def test_a_damaged_file_of_an_interrupted_run_is_repaired_or_refused(
    algorithm: str,
    tmp_path: Path,
    make_options: Callable[..., Any],
    start: Callable[..., Any],
    damages: Callable[[int], Damages],
    figures: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = make_options(algorithm)
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    start(whole, options)
    shutil.copytree(whole, interrupted)
    (interrupted / RESULT).unlink()
    found = {}
    for copy, name, damage in cases(interrupted, tmp_path / "copies", damages(6)):
        found[name, damage] = check(whole, copy, name, lambda copy: start(copy, options), figures, caplog)
    assert {outcome for (name, _), outcome in found.items() if name == CONFIG} <= {"refused", "harmless"}
    assert {outcome for (name, _), outcome in found.items() if name != CONFIG} <= {"repaired", "harmless"}
    for name in (CONFIG, JOURNAL, METRICS, PROMPT):
        assert set(found.values()) & {found[name, "emptied"], found[name, "removed"]} <= {"refused", "repaired"}


def test_a_damaged_file_of_a_finished_run_is_repaired_or_refused(
    tmp_path: Path,
    make_options: Callable[..., Any],
    start: Callable[..., Any],
    damages: Callable[[int], Damages],
    figures: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options, whole = make_options(), tmp_path / "whole"
    start(whole, options)

    for copy, name, damage in cases(whole, tmp_path / "copies", damages(6)):
        if name == RESULT:  # which makes it unfinished
            caplog.clear()
            start(copy, options)
            assert figures(copy) == figures(whole)
            assert damage == "removed" or f"{RESULT} is missing or damaged" in caplog.text
            continue
        assert read_result(copy).tuned == read_result(whole).tuned
        assert RESULT in str(refused(lambda copy=copy: start(copy, options)))
        if name == PROMPT:
            refusal = refused(lambda copy=copy: read_prompt(copy))
            assert PROMPT in refusal if refusal else torch.equal(read_prompt(copy)[0], read_prompt(whole)[0])


@pytest.mark.slow
def test_a_damaged_run_is_repaired_or_refused_by_the_command_that_goes_on_with_it(
    tmp_path: Path,
    options: Callable[..., dict[str, Any]],
    damages: Callable[[int], Damages],
    figures: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    tune(**options(algorithm="bbtv2", budget=24), output_dir=str(whole))
    shutil.copytree(whole, interrupted)
    (interrupted / RESULT).unlink()
    # Where in a file the damage is, and the algorithm, the tests above vary.
    for copy, name, damage in cases(interrupted, tmp_path / "copies", damages(1)):
        if name != CONFIG and damage in ("emptied", "removed"):  # as those tests do it
            continue
        check(whole, copy, name, lambda copy: tune(resume=str(copy)), figures, caplog)


@pytest.mark.slow
def test_a_damaged_cache_entry_is_built_again_and_answers_the_same(
    tmp_path: Path,
    traces: Callable[[Path], None],
    damages: Callable[[int], Damages],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    options: Callable[..., dict[str, Any]],
    figures: Callable[[Path], Any],
) -> None:
    whole = tmp_path / "whole"
    monkeypatch.setenv("BBT_FAST_CACHE", str(whole))
    asked = options(engine="ort", budget=8)
    traces(whole)
    tune(**asked, output_dir=str(tmp_path / "run"))
    for trace in [path.parent for path in cache_folder().glob(f"*/{TRACE}")]:
        shutil.rmtree(trace)
    (entry,) = (path for path in cache_folder().iterdir() if path.is_dir())
    assert len(list(entry.iterdir())) == 3, "a graph, its manifest and the parity gate's figures"
    for number, (copy, name, damage) in enumerate(cases(whole, tmp_path / "copies", damages(2))):
        traces(copy)
        monkeypatch.setenv("BBT_FAST_CACHE", str(copy))
        caplog.clear()
        again = tmp_path / f"run-{number}"
        tune(**asked, output_dir=str(again))
        assert figures(again) == figures(tmp_path / "run")
        assert damage == "removed" or f"{Path(name).name}" in caplog.text


@pytest.mark.slow
def test_the_parity_gate_s_figures_are_measured_again_if_their_file_is_damaged(
    tmp_path: Path,
    roberta: Any,
    damages: Callable[[int], Damages],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path / "cache"))
    asked: dict[str, Any] = {"n_prompt_tokens": 3, "precision": "fp32", "device": "cpu"}
    expected = load_engine("ort", roberta, **asked).parity
    (record,) = (tmp_path / "cache").glob("*/parity-*.json")
    content = record.read_bytes()
    for name, damage in damages(2).items():
        caplog.clear()
        damage(record)
        assert load_engine("ort", roberta, **asked).parity == expected
        assert name == "removed" or f"{record} is damaged: measuring again" in caplog.text
        assert record.read_bytes() == content
