"""The folder of a run: what may be given to resume it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.artifacts.folder import RunFolder, resumed
from bbt_fast.tuner.input.options import Options
from bbt_fast.tuner.tasks.presets import resolve
from bbt_fast.tuner.tasks.task import Preset

NAMES = {"model_name": "./m", "data_dir": "data", "task_name": "my.yaml", "projection_from": ("one", "two")}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """The options of a run that was started with relative names and is not finished."""
    monkeypatch.chdir(tmp_path)
    for name in ("m", "data", "one", "two", "r"):
        Path(name).mkdir()
    options = resolve(Options(**NAMES), Preset())
    RunFolder(Path("r")).begin(options)
    return options


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_with_the_names_of_files_that_it_was_started_with(name, begun):
    for value in (NAMES[name], getattr(begun, name)):
        assert resumed(Path("r"), Options(**{name: value}), {name}) == begun.changed(output_dir="r")


def test_a_run_is_not_resumed_with_another_file(begun):
    Path("other").mkdir()
    for value in ("other", "nowhere"):
        with pytest.raises(UsageError, match=rf"data_dir is '.*{value}', but the run in r was started with '.*/data'"):
            resumed(Path("r"), Options(data_dir=value), {"data_dir"})
