"""Atomic writes: a file is written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from ...export.errors import ArtifactError

CHECKSUM = "checksum"
DIGEST_LENGTH = 16
UNFINISHED = ".tmp"
"""Suffix of temporary files, whose names begin with a dot."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader, or a crash at any instant, sees the old content or the new one.

    Raises:
        ArtifactError: if the disk is full or the folder is not writable.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise unwritable(path, error) from error


def append_line(file: FileIO, path: Path, line: bytes, *, lasting: bool = True) -> None:
    """Append a line to an open file; a failed write leaves no torn line.

    Args:
        file: unbuffered, opened for appending.
        path: its name, for the message.
        line: with its line feed.
        lasting: flush to the disk, so that the line survives a power cut.

    Raises:
        ArtifactError: if the disk is full or not writable.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if lasting:
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise unwritable(path, error) from error


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder that no other process writes."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its own checksum, atomically.

    Raises:
        ArtifactError: if the disk is full or the folder is not writable.
    """
    text = json.dumps({**value, CHECKSUM: digest(_canonical(value))}, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file that ``write_json`` wrote.

    Raises:
        ArtifactError: if the file is unreadable, or its checksum does not match.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or value.pop(CHECKSUM, None) != digest(_canonical(value)):
            raise ValueError("its checksum does not match its contents")
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}.") from error
    return value


def digest(*parts: bytes) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 sum."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:DIGEST_LENGTH]


def sync_folder(folder: Path) -> None:
    """Flush renames and new names in a folder to the disk, on systems that can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unwritable(path: Path, error: OSError) -> ArtifactError:
    """Return the error about a file that could not be written."""
    return ArtifactError(
        f"cannot write {path}: {error.strerror or error}. All finished work is kept; free space or choose another "
        "--output_dir, then run the same command again."
    )


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
