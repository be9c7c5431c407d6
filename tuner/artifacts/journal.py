"""The journal of a run: append-only, one line per event, from which the run can be replayed.

Every line is a JSON object whose ``sum`` is a digest of the line before it and of its own content, so a damaged line is
found wherever it is. Fitness values are written as Python writes floats, which reads back to the same bits; times are
kept elsewhere (metrics.jsonl), so two runs of one command have the same journal byte for byte.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from io import FileIO
from pathlib import Path
from typing import Any

from ...export.errors import ArtifactError
from .files import append_line, digest, unwritable, write_whole

Record = dict[str, Any]
SYNC_SECONDS = 1.0
"""A power cut loses the lines of about this time; a killed process loses none, as each line is the system's at once."""
logger = logging.getLogger(__name__)


class Journal:
    """Reads what a journal holds, then appends to it. What cannot be read is cut off, kept aside, and said."""

    def __init__(self, path: Path) -> None:
        """Open a journal, or start one.

        Raises:
            ArtifactError: if the file cannot be read or written.
        """
        self.path = path
        self.records: list[Record] = []
        """What the file held when it was opened."""
        self._sum = ""
        self._file: FileIO | None = None
        self._synced = -math.inf
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}.") from error
        good = self._read(content)
        if good < len(content):
            self._repair(content, good)
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error

    def append(self, record: Record) -> None:
        """Write one line; see it onto the disk, with those before it, if a second has passed since that was done.

        Raises:
            ArtifactError: if the disk is full or the folder cannot be written; no torn line stays behind.
        """
        assert self._file is not None
        body = _dump(record)
        checksum = digest(self._sum.encode(), body.encode())
        lasting = time.monotonic() >= self._synced + SYNC_SECONDS
        append_line(self._file, self.path, _dump({**record, "sum": checksum}).encode() + b"\n", lasting=lasting)
        self._sum = checksum
        if lasting:
            self._synced = time.monotonic()

    def close(self) -> None:
        """See all lines onto the disk and close the file.

        Raises:
            ArtifactError: if the disk fails.
        """
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            with file:
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _read(self, content: bytes) -> int:
        """Take over the records up to the first damaged line; return how many bytes they fill."""
        good = 0
        for line in content.splitlines(keepends=True):
            record = _parse(line, self._sum)
            if record is None:
                break
            self._sum = record.pop("sum")
            self.records.append(record)
            good += len(line)
        return good

    def _repair(self, content: bytes, good: int) -> None:
        line = len(self.records) + 1
        rest = content[good:]
        if rest.count(b"\n") <= 1:
            logger.warning(
                "%s: the last line (%d) is torn; it is dropped and its generation done again.", self.path, line
            )
        else:
            aside = self.path.with_suffix(".damaged.jsonl")
            write_whole(aside, content)
            logger.warning(
                "%s is damaged from line %d on; that part is done again, and the old file kept as %s.",
                self.path, line, aside.name,
            )  # fmt: skip
        write_whole(self.path, content[:good])


def first_record(path: Path) -> Record | None:
    """Return a journal's header, if there is one and it is whole."""
    try:
        with path.open("rb") as file:
            return _parse(file.readline(), "")
    except OSError:
        return None


def _dump(record: Record) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False)


def _parse(line: bytes, before: str) -> Record | None:
    """Return the record of a whole line whose sum agrees with it and with the line before, or None."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not line.endswith(b"\n"):
            return None
        body = {name: value for name, value in record.items() if name != "sum"}
        return record if record["sum"] == digest(before.encode(), _dump(body).encode()) else None
    except (ValueError, KeyError, RecursionError):
        return None
