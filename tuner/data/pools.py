"""Pools: labelled rows that few-shot examples are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..tasks.task import Task
from .columns import Columns, Row
from .records import Record


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


def pool_of_records(task: Task, records: Sequence[Record], mapping: Mapping[str, str], place: str) -> Pool:
    """Make a pool of records in memory, whose columns are those of the first.

    Args:
        task: whose rows they are.
        records: at least one.
        mapping: the user's names for our columns.
        place: what to call the pool in messages.

    Raises:
        DataError: if a record is not a row of the task; the message names its line.
    """
    columns = Columns(task, list(records[0].values), mapping, records[0].place)
    rows = [columns.row(record) for record in records]
    return Pool(place, [row.label for row in rows], lambda chosen: [rows[i] for i in chosen])
