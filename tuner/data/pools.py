"""Pools: the labelled rows from which few-shot examples are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..tasks.task import Task
from .columns import Columns, Row
from .records import Record


@dataclass(frozen=True)
class Pool:
    """Labelled rows."""

    place: str
    """Its name in messages."""
    labels: list[int]
    rows: Callable[[Sequence[int]], list[Row]]
    """Returns the rows at these positions; it reads no others of a data set on the hub."""

    def all(self) -> list[Row]:
        """Return every row."""
        return self.rows(range(len(self.labels)))


def pool_of_records(task: Task, records: Sequence[Record], mapping: Mapping[str, str], place: str) -> Pool:
    """Return a pool of records in memory; the first record determines the columns.

    Args:
        task: the task.
        records: at least one.
        mapping: the user's names for the columns.
        place: the pool's name in messages.

    Raises:
        DataError: if a record is invalid for the task; the message names its line.
    """
    columns = Columns(task, list(records[0].values), mapping, records[0].place)
    rows = [columns.row(record) for record in records]
    return Pool(place, [row.label for row in rows], lambda chosen: [rows[i] for i in chosen])
