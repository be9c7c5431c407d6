"""metrics.jsonl: a run's curves, one line per generation; nothing is resumed from it but the clock."""

from __future__ import annotations

import json
import math
from io import FileIO
from pathlib import Path
from typing import Any

from .files import unwritable, write_whole

Line = dict[str, Any]


class MetricsLog:
    """Appends lines; those that an earlier part of the run wrote are kept as far as they are whole and in order."""

    def __init__(self, path: Path) -> None:
        """Open a log.

        Raises:
            ArtifactError: if the file cannot be written.
        """
        self.path = path
        try:
            self._known = _whole_lines(path.read_bytes() if path.exists() else b"")
            write_whole(path, b"".join(_dump(line) for line in self._known))
            self._file: FileIO = path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error

    def known(self, generation: int) -> Line | None:
        """Return the line that an earlier part of the run wrote for a generation."""
        return self._known[generation] if generation < len(self._known) else None

    def append(self, line: Line) -> None:
        """Write a generation's line.

        Raises:
            ArtifactError: if the file cannot be written.
        """
        try:
            self._file.write(_dump({name: _finite(value) for name, value in line.items()}))
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a log as far as they are whole and in order; none if there is no such file."""
    try:
        return _whole_lines(path.read_bytes())
    except OSError:
        return []


def _whole_lines(content: bytes) -> list[Line]:
    """Return the lines up to the first that is damaged or out of order."""
    lines: list[Line] = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
            seconds = float(line["seconds"])
            if line["generation"] != len(lines) or not math.isfinite(seconds):
                break
            _dump(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        lines.append(line)
    return lines


def _dump(line: Line) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
