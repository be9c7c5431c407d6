"""Reads users' files, row by row: jsonl, csv, tsv and parquet. Malformed files raise only ``DataError``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...export.errors import DataError


@dataclass(frozen=True)
class Record:
    """One row of a file."""

    place: str
    """The file and the line (for parquet, the row)."""
    values: dict[str, Any]


Names = Callable[[Sequence[str]], Sequence[str] | None]
"""Given a tsv file's first row, returns the columns' names if this row is data, or None if it is the header."""


def read_records(path: Path, names: Names) -> list[Record]:
    """Read a file by its suffix, a key of ``READERS``.

    Args:
        path: the file.
        names: decides whether a tsv file has a header, since those of few-shot folders may have none.

    Raises:
        DataError: if the file is unreadable, malformed (the message names the line) or has no rows.
    """
    records = list(READERS[path.suffix.lower()](path, names))
    if not records:
        raise DataError(f"{path} has no rows.")
    return records


def _lines(path: Path) -> list[str]:
    """Return a text file's lines, which end with LF or CR LF only."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: this is not UTF-8 text. Save the file as UTF-8.") from None
    return text.replace("\r\n", "\n").split("\n")


def _read_jsonl(path: Path, names: Names) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: this is not JSON ({error.msg}, column {error.colno}).") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: this JSON is unreadable ({type(error).__name__}).") from None
        if not isinstance(values, dict):
            raise DataError(f'{place}: this is not an object like {{"text": ..., "label": ...}}.')
        yield Record(place, values)


def _read_csv(path: Path, names: Names) -> Iterator[Record]:
    return _cells(path, csv.reader((f"{line}\n" for line in _lines(path)), strict=True), lambda first: None)


def _read_tsv(path: Path, names: Names) -> Iterator[Record]:
    # In GLUE's files quotation marks are part of the text.
    return _cells(path, csv.reader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE), names)


def _cells(path: Path, reader: Any, names: Names) -> Iterator[Record]:
    """Yield the rows of a csv or tsv file."""
    columns: Sequence[str] | None = None
    line = 0
    try:
        for cells in reader:
            line += 1
            place, line = f"{path}, line {line}", reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = names(cells)
                if columns is None:
                    columns = [cell.strip() for cell in cells]
                    continue
            if len(cells) != len(columns):
                raise DataError(f"{place}: there are {len(cells)} columns, but {len(columns)} at the top of the file.")
            yield Record(place, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: this is not a valid table ({error}).") from None


def _read_parquet(path: Path, names: Names) -> Iterator[Record]:
    # Imported here, since it takes a part of a second.
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
    except (pyarrow.ArrowException, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}.") from None
    for number, values in enumerate(rows, start=1):
        yield Record(f"{path}, row {number}", values)


READERS: Final[dict[str, Callable[[Path, Names], Iterator[Record]]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
