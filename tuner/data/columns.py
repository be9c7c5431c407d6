"""The columns that hold a row's texts and its label, and the meaning of their values.

A task file names a column or gives a pattern:

* ``{question} {answer}``: several columns and the text between them. The items of a list are joined;
  ``{options:choices}`` puts the class's name before each item ("A、first;B、second;"), for multiple-choice tasks.
* ``answer in choices`` (labels only): the class is the index of one column's value in the list of another.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...export.errors import DataError, UsageError
from ..tasks.task import LABEL, Task
from .records import Record

USUAL_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "text": ("text", "sentence"),
    "text_a": ("text_a", "sentence1", "premise", "#1 String"),
    "text_b": ("text_b", "sentence2", "hypothesis", "#2 String"),
    LABEL: ("label", "gold_label", "Quality"),
}
"""Default names of the columns, in this project's files and in GLUE's."""
UNLABELLED: Final = -1
"""The label of rows without one in data sets on the hub."""
CHOICES: Final = "choices"
_PLACE_IN_LIST = re.compile(r"(\S+) in (\S+)")


@dataclass(frozen=True)
class Row:
    """One labelled text, or pair of texts."""

    text_a: str
    text_b: str | None
    label: int
    """Index of its class in the task's labels."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The one or two texts."""
        return (self.text_a,) if self.text_b is None else (self.text_a, self.text_b)


def parse_column_mapping(text: str) -> dict[str, str]:
    """Parse ``text=sentence,label=class`` into {"text": "sentence", "label": "class"}.

    Raises:
        UsageError: if the form is wrong or a name is unknown.
    """
    mapping = {}
    for part in text.split(","):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs):
            raise UsageError(f"column mapping is {text!r}, but must have the form text=sentence,label=class.")
        mapping[ours] = theirs
    check_column_mapping(mapping)
    return mapping


def check_column_mapping(mapping: Mapping[str, str]) -> None:
    """Refuse a mapping from unknown column names.

    Raises:
        UsageError: for an unknown name.
    """
    for name in mapping:
        if name not in USUAL_NAMES:
            raise UsageError(f"column mapping names {name!r}, but must name one of {', '.join(USUAL_NAMES)}.")


class Columns:
    """Reads a task's rows from records.

    Args:
        task: the task.
        available: the columns of the records.
        mapping: the user's names for ``text``, ``text_a``, ``text_b`` and ``label``.
        place: the name of the data in messages.

    Raises:
        DataError: if a column is missing; the message lists the available ones.
    """

    def __init__(self, task: Task, available: Collection[str], mapping: Mapping[str, str], place: str) -> None:
        self.task = task
        self._where: dict[str, str] = {}
        for name in (*task.texts, LABEL):
            own = (task.columns[name],) if name in task.columns else ()
            candidates = (mapping[name],) if name in mapping else (*own, *USUAL_NAMES[name])
            found = next((c for c in candidates if columns_of(c) <= set(available)), None)
            if found is None:
                raise DataError(
                    f"{place}: there is no column {candidates[0]!r} for {name!r}; the columns are "
                    f"{', '.join(map(repr, available))}. Name it with --column_mapping {name}=COLUMN."
                )
            self._where[name] = found

    @property
    def label_columns(self) -> set[str]:
        """The columns that determine the label."""
        return columns_of(self._where[LABEL])

    def row(self, record: Record) -> Row:
        """Read a record's texts, cleaned, and its label.

        Raises:
            DataError: if a text is not a string, or the label is not the task's.
        """
        texts = [self._text(record, name) for name in self.task.texts]
        return Row(texts[0], texts[1] if len(texts) > 1 else None, self.label(record))

    def label(self, record: Record, allow_unlabelled: bool = False) -> int:
        """Read a record's class.

        Args:
            record: the record.
            allow_unlabelled: accept -1 as "not labelled".

        Raises:
            DataError: if it is not a label of the task.
        """
        where = self._where[LABEL]
        if place := _PLACE_IN_LIST.fullmatch(where):
            value, choices = (_value(record, column) for column in place.groups())
            found = choices.index(value) if isinstance(choices, list) and value in choices else None
            found = None if found is None or found >= len(self.task.labels) else found
        else:
            value = _value(record, where)
            found = label_index(value, self.task.labels)
            if found is None and allow_unlabelled and value == UNLABELLED:
                return UNLABELLED
        if found is None:
            raise DataError(
                f"{record.place}: label {value!r} is none of task {self.task.name!r}: {', '.join(self.task.labels)}, "
                f"or 0 to {len(self.task.labels) - 1}."
            )
        return found

    def _text(self, record: Record, name: str) -> str:
        where = self._where[name]
        if "{" in where:
            text = "".join(
                literal + ("" if column is None else self._fill(record, column, spec or ""))
                for literal, column, spec, _ in string.Formatter().parse(where)
            )
        else:
            text = _checked(_value(record, where), record, where)
        return self.task.clean(text)

    def _fill(self, record: Record, column: str, spec: str) -> str:
        """Return a column's value as a part of a pattern."""
        value = _value(record, column)
        if not isinstance(value, list):
            return _checked(value, record, column)
        items = [_checked(item, record, column) for item in value]
        if spec == CHOICES:
            return "".join(f"{label}、{item};" for label, item in zip(self.task.labels, items, strict=False))
        return "".join(items)


def cleaned(task: Task, row: Row) -> Row:
    """Return a row of raw texts, cleaned like a row of data."""
    return Row(task.clean(row.text_a), None if row.text_b is None else task.clean(row.text_b), row.label)


def columns_of(where: str) -> set[str]:
    """Return the columns that a column's name or pattern reads."""
    if "{" in where:
        return {name for _, name, _, _ in string.Formatter().parse(where) if name}
    place = _PLACE_IN_LIST.fullmatch(where)
    return set(place.groups()) if place else {where}


def label_index(value: Any, labels: Sequence[str]) -> int | None:
    """Return the class of a value, which is a label's name or, failing that, its index; None if it is neither."""
    if isinstance(value, str) and value.strip() in labels:
        return labels.index(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    if number != value and not isinstance(value, str):
        return None
    if str(number) in labels:
        return labels.index(str(number))
    return number if 0 <= number < len(labels) else None


def _value(record: Record, column: str) -> Any:
    """Return a column's value; refuse a record that lacks it."""
    if column not in record.values:
        raise DataError(f"{record.place}: there is no {column!r}, which the first row has. Add it to this row.")
    return record.values[column]


def _checked(value: Any, record: Record, column: str) -> str:
    """Return a value if it is a valid Unicode string; refuse any other."""
    if not isinstance(value, str):
        raise DataError(f"{record.place}: {column!r} is {value!r:.60}, but must be a text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{record.place}: {column!r} holds an unpaired surrogate ({error.reason}).") from None
    return value
