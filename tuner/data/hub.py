"""Rows of a data set on the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ...export.errors import DataError
from ..tasks.task import Hub, Task
from .columns import UNLABELLED, Columns, Row
from .pools import Pool
from .records import Record

logger = logging.getLogger(__name__)


def hub_pool(task: Task, hub: Hub, split: str, mapping: Mapping[str, str]) -> Pool:
    """Make a pool of one split; before rows are chosen only its labels are read.

    Args:
        task: whose rows they are.
        hub: where they lie.
        split: its name there.
        mapping: the user's names for our columns.

    Raises:
        DataError: if they cannot be loaded, or are not rows of the task.
    """
    place = f"{hub.id}{f' ({hub.config})' if hub.config else ''}, split {split}"
    data = _load(hub, split, place)
    columns = Columns(task, data.column_names, mapping, place)
    named = _class_names(data, task)

    def record(position: int, values: Mapping[str, Any]) -> Record:
        translated = {name: named[name].get(v, v) if name in named else v for name, v in values.items()}
        return Record(f"{place}, row {position}", translated)

    label_data = data.select_columns(sorted(columns.label_columns))[:]
    label_rows = (dict(zip(label_data, values, strict=True)) for values in zip(*label_data.values(), strict=True))
    labels = [columns.label(record(i, values), allow_unlabelled=True) for i, values in enumerate(label_rows)]
    kept = [i for i, label in enumerate(labels) if label != UNLABELLED]
    if len(kept) < len(labels):
        logger.info("%s: %d rows without a label are left out", place, len(labels) - len(kept))
    if not kept:
        raise DataError(f"{place} has no labelled rows.")

    def rows(chosen: Sequence[int]) -> list[Row]:
        positions = [kept[i] for i in chosen]
        return [columns.row(record(i, values)) for i, values in zip(positions, data.select(positions), strict=True)]

    return Pool(place, [labels[i] for i in kept], rows)


def _load(hub: Hub, split: str, place: str) -> Any:
    """Load a split.

    Raises:
        DataError: if that fails.
    """
    # Takes over a second to import, and local files do without it.
    import datasets

    try:
        return datasets.load_dataset(hub.id, hub.config, split=split)
    except Exception as error:
        # The hub's clients raise dozens of types, from a missing network to a renamed split.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"cannot load {place}: {reason[0]} Check the network, or give the data as files with --data_dir."
        ) from error


def _class_names(data: Any, task: Task) -> dict[str, dict[int, str]]:
    """Return the names behind the numbers of those columns that name the task's own classes.

    A data set may number them otherwise than the task.
    """
    classes = {name: feature.names for name, feature in data.features.items() if hasattr(feature, "names")}
    return {name: dict(enumerate(found)) for name, found in classes.items() if set(found) == set(task.labels)}
