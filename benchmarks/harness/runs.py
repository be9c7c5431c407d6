"""Runs that a benchmark finds finished."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.artifacts.folder import differences
from bbt_fast.tuner.artifacts.result import RESULT, Result, read_result
from bbt_fast.tuner.input.options import Options


def finished_run(options: Options, but: Collection[str]) -> Result | None:
    """Return the result of the finished run in the folder of these options, or None.

    Args:
        options: resolved.
        but: names of options that may differ in that run.

    Raises:
        UsageError: if another option differs.
        ArtifactError: if the run's files are damaged.
    """
    folder = Path(str(options.output_dir))
    if not (folder / RESULT).exists():
        return None
    if different := differences(folder, options, but):
        raise UsageError(f"{folder} holds another run: {'; '.join(different)}. Give another --runs.")
    return read_result(folder)
