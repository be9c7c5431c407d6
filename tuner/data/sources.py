"""The sources of a task's labelled rows: a folder of files, the hub, or this package (the demo)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...export.errors import DataError, UsageError
from ..demo import rows as demo_rows
from ..tasks.task import LABEL, TASKS_DIR, Task
from .columns import label_index
from .hub import hub_pool
from .pools import Pool, pool_of_records
from .records import READERS, Record, read_records

BUILT_IN: Final[Mapping[str, Callable[[str], list[dict[str, Any]]]]] = {"demo": demo_rows}
"""Packaged tasks with generated records, as functions of the split."""
SPLIT_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train",),
    "dev": ("dev", "validation"),
    "test": ("test",),
}
"""The names that a split's file may have."""
_FEW_SHOT_FOLDER = re.compile(r"\d+-\d+")


@dataclass(frozen=True)
class Source:
    """A task's pools."""

    train: Pool
    test: Pool
    dev: Pool | None = None
    drawn: bool = False
    """Whether train and dev are few-shot examples already, which no seed draws again."""


def packaged_source(task: Task, mapping: Mapping[str, str]) -> Source:
    """Return a task's own rows, from this package or from the hub.

    Raises:
        UsageError: if the task has no data of its own.
        DataError: if loading from the hub fails.
    """
    train, test = (_packaged_pool(task, split, mapping) for split in ("train", "test"))
    return Source(train, test)


def test_pool(task: Task, folder: Path | None, k_shot: int, seed: int, mapping: Mapping[str, str]) -> Pool:
    """Return only a task's test rows, from the source of ``packaged_source`` (without a folder) or ``folder_source``.

    Raises:
        UsageError: if the task has no data of its own.
        DataError: if they are missing or malformed.
    """
    if folder is None:
        return _packaged_pool(task, "test", mapping)
    drawn = folder / f"{k_shot}-{seed}"
    return _file_pool(task, _existing(drawn if drawn.is_dir() else folder, "test"), mapping)


def _packaged_pool(task: Task, split: str, mapping: Mapping[str, str]) -> Pool:
    if task.name in BUILT_IN and task.path is not None and task.path.parent == TASKS_DIR:
        place = f"the {task.name}'s {split} split"
        records = [Record(f"{place}, row {i}", row) for i, row in enumerate(BUILT_IN[task.name](split))]
        return pool_of_records(task, records, mapping, place)
    if task.hub is None:
        raise UsageError(
            f"task {task.name!r} names no data set on the hub: give the folder of its data with --data_dir, or add "
            "`hub` to its file (docs/tasks.md)."
        )
    return hub_pool(task, task.hub, {"train": task.hub.train, "test": task.hub.test}[split], mapping)


def folder_source(task: Task, folder: Path, k_shot: int, seed: int, mapping: Mapping[str, str]) -> Source:
    """Return a task's rows in a folder: train, test and optional dev files, or few-shot folders ``<k>-<seed>`` of them.

    Raises:
        DataError: if files are missing or malformed.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read the folder {folder}: {reason}.") from None
    drawn = folder if _FEW_SHOT_FOLDER.fullmatch(folder.name) else folder / f"{k_shot}-{seed}"
    if drawn.is_dir():
        train, dev, test = (_file_pool(task, _existing(drawn, split), mapping) for split in SPLIT_FILES)
        return Source(train, test, dev, drawn=True)
    others = [name for name in names if _FEW_SHOT_FOLDER.fullmatch(name)]
    if others and _file(folder, "train") is None:
        raise DataError(
            f"{folder} has no few-shot folder {drawn.name}, only {', '.join(others)}: their names are k_shot and seed."
        )
    train, test = (_file_pool(task, _existing(folder, split), mapping) for split in ("train", "test"))
    own_dev = _file(folder, "dev")
    return Source(train, test, None if own_dev is None else _file_pool(task, own_dev, mapping))


def _file(folder: Path, split: str) -> Path | None:
    """Return a split's file, or None; refuse several files for one split."""
    found = [folder / f"{name}{suffix}" for name in SPLIT_FILES[split] for suffix in READERS]
    found = [path for path in found if path.exists()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} has several files for {split} ({names}). Keep one of them.")
    return found[0] if found else None


def _existing(folder: Path, split: str) -> Path:
    """Return a split's file; refuse a folder without one."""
    path = _file(folder, split)
    if path is None:
        names = " or ".join(f"{SPLIT_FILES[split][0]}{suffix}" for suffix in READERS)
        raise DataError(f"{folder} has no {names}.")
    return path


def _file_pool(task: Task, path: Path, mapping: Mapping[str, str]) -> Pool:
    """Read a whole file."""

    def names(first: Sequence[str]) -> Sequence[str] | None:
        # The few-shot folders of BBT-RGB have no header; their columns are the texts, then the label.
        ours = (*task.texts, LABEL)
        bare = len(first) == len(ours) and label_index(first[-1], task.labels) is not None
        return ours if bare and not mapping else None

    return pool_of_records(task, read_records(path, names), mapping, str(path))
