"""metrics.jsonl: a run's curves, one line per generation; a resumed run takes only its clock from here.

Every line ends with its own checksum, so that no damaged figure passes for a measured one.
"""

from __future__ import annotations

import json
import logging
import math
from io import FileIO
from pathlib import Path
from typing import Any

from .files import append_line, digest, unwritable, write_whole

Line = dict[str, Any]
SUM = "sum"
logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends lines, after the undamaged lines of an earlier part of the run."""

    def __init__(self, path: Path) -> None:
        """Open a log.

        Raises:
            ArtifactError: if the file is not writable.
        """
        self.path = path
        try:
            self._known = _whole_lines(path.read_bytes() if path.exists() else b"")
        except OSError as error:
            raise unwritable(path, error) from error
        self._file = self._rewritten()

    def known(self, generation: int) -> Line | None:
        """Return a generation's line from an earlier part of the run, if there is one."""
        return self._known[generation] if generation < len(self._known) else None

    def append(self, line: Line) -> None:
        """Write a generation's line; drop the old lines of this and later generations.

        Raises:
            ArtifactError: if the file is not writable.
        """
        if line["generation"] < len(self._known):
            logger.warning(
                "%s holds generations that the journal has lost: the run repeats them from %d on.",
                self.path, line["generation"],
            )  # fmt: skip
            self._known = self._known[: line["generation"]]
            self.close()
            self._file = self._rewritten()
        finite = {name: _finite(value) for name, value in line.items()}
        append_line(self._file, self.path, _dump(finite), lasting=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rewritten(self) -> FileIO:
        """Write the known lines as a new file, and open it for appending."""
        write_whole(self.path, b"".join(map(_dump, self._known)))
        try:
            return self.path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a log up to the first damaged one; none if there is no such file."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    lines = _whole_lines(content)
    if len(lines) < content.count(b"\n"):
        logger.warning("%s is damaged from line %d on: the curves end there.", path, len(lines) + 1)
    return lines


def _whole_lines(content: bytes) -> list[Line]:
    """Return the lines up to the first one that is damaged or out of order."""
    lines: list[Line] = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
            known = line.pop(SUM) == _sum(line) and line["generation"] == len(lines)
            if not (known and math.isfinite(float(line["seconds"]))):
                break
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            break
        lines.append(line)
    return lines


def _dump(line: Line) -> bytes:
    return json.dumps({**line, SUM: _sum(line)}).encode() + b"\n"


def _sum(line: Line) -> str:
    return digest(json.dumps(line, allow_nan=False).encode())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
