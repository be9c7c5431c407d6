"""The journal of a run: append-only, one line per event; a resumed run replays it.

Every line is a JSON object whose ``sum`` is a digest of the previous line's sum and of its own content, which reveals
any damaged line. Fitness values are Python's float literals, which read back to the same bits. Times are in
metrics.jsonl instead, so two runs of one command write the same journal byte for byte.
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
"""A power cut loses the lines of about this time; a killed process loses none, since each line is unbuffered."""
logger = logging.getLogger(__name__)


class Journal:
    """Reads a journal, then appends to it. It truncates a damaged file, after a copy, and logs a warning."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal.

        Raises:
            ArtifactError: if the file is not readable or writable.
        """
        self.path = path
        self.records: list[Record] = []
        """The records at the time of opening."""
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
        """Write one line; flush to the disk if the last flush is ``SYNC_SECONDS`` ago.

        Raises:
            ArtifactError: if the disk is full or the folder is not writable; the file has no torn line then.
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
        """Flush all lines to the disk and close the file.

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
        """Read the records up to the first damaged line; return their size in bytes."""
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
                "%s: the last line (%d) is torn; the run drops it and repeats its generation.", self.path, line
            )
        else:
            aside = self.path.with_suffix(".damaged.jsonl")
            write_whole(aside, content)
            logger.warning(
                "%s is damaged from line %d on; the run repeats that part, and keeps the old file as %s.",
                self.path, line, aside.name,
            )  # fmt: skip
        write_whole(self.path, content[:good])


def first_record(path: Path) -> Record | None:
    """Return a journal's header, or None if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            return _parse(file.readline(), "")
    except OSError:
        return None


def _dump(record: Record) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False)


def _parse(line: bytes, before: str) -> Record | None:
    """Return the record of a complete line with a matching checksum, or None."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not line.endswith(b"\n"):
            return None
        body = {name: value for name, value in record.items() if name != "sum"}
        return record if record["sum"] == digest(before.encode(), _dump(body).encode()) else None
    except (ValueError, KeyError, RecursionError):
        return None
