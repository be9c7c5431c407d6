"""The graph cache on disk.

An entry is a folder named by the digest of its key. Entries are created atomically. A manifest of SHA-256 sums is
verified before each use, and a damaged entry is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from .errors import ArtifactError

MANIFEST = "manifest.json"
CHECKSUM = "checksum"

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the cache folder: ``$BBT_FAST_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("BBT_FAST_CACHE") or platformdirs.user_cache_dir("bbt-fast"))


def digest(key: Mapping[str, Any]) -> str:
    """Return the entry name of a key; the order of its items does not matter."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def entry(key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """Return the folder with the files of a key; build it if it is missing.

    Args:
        key: everything that determines the files, as JSON values; the code of ``export/`` is added here.
        build: writes the files into an empty folder.

    Raises:
        ArtifactError: if the cache folder cannot be written.
    """
    key = {**key, "code": code_digest(Path(__file__).parent)}
    folder = cache_folder() / digest(key)
    with _writing(folder.parent), _locked(folder):
        for leftover in folder.parent.glob(f"{folder.name}.*/"):
            shutil.rmtree(leftover, ignore_errors=True)  # left by a killed process: this one holds the lock
        if folder.exists():
            fault = _fault(folder, key)
            if fault is None:
                return folder
            logger.warning("the cached graphs in %s are damaged (%s): rebuilding them", folder, fault)
            shutil.rmtree(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as place:
            scratch = Path(place) / "entry"
            scratch.mkdir()
            build(scratch)
            files = {path.name: file_digest(path) for path in sorted(scratch.iterdir())}
            write_json(scratch / MANIFEST, {"key": key, "files": files})
            scratch.rename(folder)
    return folder


@cache
def code_digest(place: Path) -> str:
    """Return a digest of a source file or of all in a folder: in a checkout they change while the version does not."""
    sources = sorted(place.glob("*.py")) if place.is_dir() else [place]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """Return the SHA-256 sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically and flush it to disk."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and flush it to disk."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Save a measurement beside an entry's files, with a checksum. A failure only means that it is measured again."""
    try:
        write_json(path, {**values, CHECKSUM: digest(values)})
    except OSError as error:
        logger.warning("cannot write %s (%s): the next run will measure again", path, error.strerror or error)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a measurement of write_record(), or None if it is missing or damaged."""
    if not path.exists():
        return None
    found = read_json(path)
    if isinstance(found, dict) and found.pop(CHECKSUM, None) == digest(found):
        return found
    logger.warning("%s is damaged: measuring again", path)
    return None


def _fault(folder: Path, key: dict[str, Any]) -> str | None:
    """Return what is wrong with an entry, or None."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return f"{MANIFEST} is missing or unreadable"
    if manifest.get("key") != json.loads(json.dumps(key)):
        return f"{MANIFEST} belongs to another key"
    for name, expected in manifest["files"].items():
        path = folder / Path(name).name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != expected:
            return f"{name} has changed"
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock an entry against other processes within this block."""
    lock = filelock.FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info("waiting for another process that is building the graphs in %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ArtifactError(
            f"cannot write the graph cache {folder}: {error.strerror or error}. Free disk space there, or set "
            "BBT_FAST_CACHE to a writable folder."
        ) from error
