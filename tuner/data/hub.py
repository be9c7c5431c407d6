"""Rows of a data set on the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ...export.errors import DataError
from ...export.loading import reason
from ..tasks.task import Hub, Task
from .columns import UNLABELLED, Columns, Row
from .pools import Pool
from .records import Record

logger = logging.getLogger(__name__)


def hub_pool(task: Task, hub: Hub, split: str, mapping: Mapping[str, str]) -> Pool:
    """Return the pool of one split; it reads all labels, but only the chosen rows.

    Args:
        task: the task.
        hub: its data set.
        split: a split of the data set.
        mapping: the user's names for the columns.

    Raises:
        DataError: if loading fails, or a row is invalid for the task.
    """
    place = f"{hub.id}{f' ({hub.config})' if hub.config else ''}, split {split}"
    # Imported here: it takes over a second, and local files do not need it.
    import datasets

    try:
        data: Any = datasets.load_dataset(hub.id, hub.config, split=split)
    except Exception as error:  # the hub's clients raise dozens of types
        raise DataError(
            f"cannot load {place} ({reason(error)}). Check the network, or give the data as files with --data_dir."
        ) from error
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


def _class_names(data: Any, task: Task) -> dict[str, dict[int, str]]:
    """Return, for each column whose class names are the task's, the names by their numbers in the data set.

    The task may number them differently.
    """
    classes = {name: feature.names for name, feature in data.features.items() if hasattr(feature, "names")}
    return {name: dict(enumerate(found)) for name, found in classes.items() if set(found) == set(task.labels)}
