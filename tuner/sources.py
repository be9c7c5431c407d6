"""Where a task's labelled rows lie: in a folder of files, on the hub, or in this package (the demo)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..export.errors import DataError, UsageError
from .columns import UNLABELLED, Columns, Row, label_index
from .demo import rows as demo_rows
from .records import READERS, Record, read_records
from .task import LABEL, TASKS_DIR, Hub, Task

logger = logging.getLogger(__name__)

BUILT_IN: Final[Mapping[str, Callable[[str], list[dict[str, Any]]]]] = {"demo": demo_rows}
"""Packaged tasks whose records are made here, per split."""
SPLIT_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train",),
    "dev": ("dev", "validation"),
    "test": ("test",),
}
"""What a split's file may be called."""
_FEW_SHOT_FOLDER = re.compile(r"\d+-\d+")


@dataclass(frozen=True)
class Pool:
    """Labelled rows that examples are drawn from."""

    place: str
    """What to call it in messages."""
    labels: list[int]
    rows: Callable[[Sequence[int]], list[Row]]
    """Returns the rows at these positions; of a data set on the hub only those are read."""

    def all(self) -> list[Row]:
        """Return every row."""
        return self.rows(range(len(self.labels)))


@dataclass(frozen=True)
class Source:
    """A task's pools."""

    train: Pool
    test: Pool
    dev: Pool | None = None
    drawn: bool = False
    """Whether train and dev are few-shot examples already, to be taken as they are."""


def packaged_source(task: Task, mapping: Mapping[str, str]) -> Source:
    """Find a task's rows without a folder of the user's: in this package, or on the hub.

    Raises:
        UsageError: if the task has no data of its own.
        DataError: if the hub does not give them.
    """
    if task.name in BUILT_IN and task.path is not None and task.path.parent == TASKS_DIR:
        train, test = (
            _pool(task, [Record(f"{task.name}, row {i}", row) for i, row in enumerate(BUILT_IN[task.name](split))], {})
            for split in ("train", "test")
        )
        return Source(train, test)
    if task.hub is None:
        raise UsageError(
            f"task {task.name!r} names no data set on the hub: give the folder of its data with --data_dir, or add "
            "`hub` to its file (docs/tasks.md)."
        )
    return Source(_hub_pool(task, task.hub, task.hub.train, mapping), _hub_pool(task, task.hub, task.hub.test, mapping))


def folder_source(task: Task, folder: Path, k_shot: int, seed: int, mapping: Mapping[str, str]) -> Source:
    """Find a task's rows in a folder: train, test and perhaps dev files, or few-shot folders ``<k>-<seed>`` of them.

    Raises:
        DataError: if files are missing or malformed.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.")
    drawn = folder if _FEW_SHOT_FOLDER.fullmatch(folder.name) else folder / f"{k_shot}-{seed}"
    if drawn.is_dir():
        train, dev, test = (_file_pool(task, _existing(drawn, split), mapping) for split in SPLIT_FILES)
        return Source(train, test, dev, drawn=True)
    others = sorted(path.name for path in folder.iterdir() if _FEW_SHOT_FOLDER.fullmatch(path.name))
    if others and _file(folder, "train") is None:
        raise DataError(
            f"{folder} has no few-shot folder {drawn.name}, only {', '.join(others)}: their names are k_shot and seed."
        )
    train, test = (_file_pool(task, _existing(folder, split), mapping) for split in ("train", "test"))
    own_dev = _file(folder, "dev")
    return Source(train, test, None if own_dev is None else _file_pool(task, own_dev, mapping))


def _file(folder: Path, split: str) -> Path | None:
    """Return a split's file, or None.

    Raises:
        DataError: if there are several.
    """
    found = [folder / f"{name}{suffix}" for name in SPLIT_FILES[split] for suffix in READERS]
    found = [path for path in found if path.exists()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} has several files for {split} ({names}). Keep one of them.")
    return found[0] if found else None


def _existing(folder: Path, split: str) -> Path:
    """Return a split's file.

    Raises:
        DataError: if there is none.
    """
    path = _file(folder, split)
    if path is None:
        names = " or ".join(f"{SPLIT_FILES[split][0]}{suffix}" for suffix in READERS)
        raise DataError(f"{folder} has no {names}.")
    return path


def _file_pool(task: Task, path: Path, mapping: Mapping[str, str]) -> Pool:
    """Read a whole file."""

    def names(first: Sequence[str]) -> Sequence[str] | None:
        # Few-shot folders of BBT-RGB have no header: the texts, then the label.
        ours = (*task.texts, LABEL)
        bare = len(first) == len(ours) and label_index(first[-1], task.labels) is not None
        return ours if bare and not mapping else None

    return _pool(task, read_records(path, names), mapping, str(path))


def _pool(task: Task, records: Sequence[Record], mapping: Mapping[str, str], place: str = "") -> Pool:
    """Make a pool of records in memory, whose columns are those of the first."""
    columns = Columns(task, list(records[0].values), mapping, records[0].place)
    rows = [columns.row(record) for record in records]
    return Pool(place or task.name, [row.label for row in rows], lambda chosen: [rows[i] for i in chosen])


def _hub_pool(task: Task, hub: Hub, split: str, mapping: Mapping[str, str]) -> Pool:
    """Make a pool of a data set on the hub; only its labels are read before rows are chosen."""
    # Takes over a second to import, and local files do without it.
    import datasets

    place = f"{hub.id}{f' ({hub.config})' if hub.config else ''}, split {split}"
    try:
        data = datasets.load_dataset(hub.id, hub.config, split=split)
    except Exception as error:
        # The hub's clients raise dozens of types, from a missing network to a renamed split.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"cannot load {place}: {reason[0]} Check the network, or give the data as files with --data_dir."
        ) from error
    columns = Columns(task, data.column_names, mapping, place)
    names = {name: list(feature.names) for name, feature in data.features.items() if hasattr(feature, "names")}

    def record(position: int, values: Mapping[str, Any]) -> Record:
        """Name the class where the data set does: its numbers need not be ours."""
        named = {
            name: names[name][value] if set(names.get(name, ())) == set(task.labels) and value != UNLABELLED else value
            for name, value in values.items()
        }
        return Record(f"{place}, row {position}", named)

    only_labels = data.select_columns(sorted(columns.label_columns))
    labels = [columns.label(record(i, values), allow_unlabelled=True) for i, values in enumerate(only_labels)]
    kept = [i for i, label in enumerate(labels) if label != UNLABELLED]
    if len(kept) < len(labels):
        logger.info("%s: %d rows without a label are left out", place, len(labels) - len(kept))
    if not kept:
        raise DataError(f"{place} has no labelled rows.")

    def rows(chosen: Sequence[int]) -> list[Row]:
        positions = [kept[i] for i in chosen]
        return [columns.row(record(i, values)) for i, values in zip(positions, data.select(positions), strict=True)]

    return Pool(place, [labels[i] for i in kept], rows)
