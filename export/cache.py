"""Built graphs, kept between runs.

An entry is a folder named by a digest of everything that shapes it. It appears whole or not at all, and its manifest
of SHA-256 sums is checked before anything in it is used; a damaged entry is built again.
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
    """Return where graphs are kept: ``$BBT_FAST_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("BBT_FAST_CACHE") or platformdirs.user_cache_dir("bbt-fast"))


def digest(key: Mapping[str, Any]) -> str:
    """Return the name of the entry for a key, whatever the order of its items."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def entry(key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """Return the folder that holds the files of a key, built if need be.

    Args:
        key: what shapes the files beside this floor's code, as JSON values.
        build: writes the files into an empty folder.

    Raises:
        ArtifactError: if the cache folder cannot be written.
    """
    key = {**key, "code": _code()}
    folder = cache_folder() / digest(key)
    with _writing(folder.parent), _locked(folder):
        for scratch in folder.parent.glob(f"{folder.name}.*/"):
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed: this one has the lock
        if folder.exists():
            fault = _fault(folder, key)
            if fault is None:
                return folder
            logger.warning("the cached graphs in %s are damaged (%s): building them again", folder, fault)
            shutil.rmtree(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as place:
            made = Path(place) / "entry"
            made.mkdir()
            build(made)
            files = {path.name: file_digest(path) for path in sorted(made.iterdir())}
            write_json(made / MANIFEST, {"key": dict(key), "files": files})
            made.rename(folder)
    return folder


@cache
def _code() -> str:
    """Return a digest of this floor's sources: in a checkout they change while the version stays."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """Return the SHA-256 sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all, and on the disk before it has its name."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and on the disk before it has its name."""
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
    """Return what a JSON file holds, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Keep a measurement beside an entry's files, with a digest of itself; where that fails, it is made again."""
    try:
        write_json(path, {**values, CHECKSUM: digest(values)})
    except OSError as error:
        logger.warning("cannot keep %s (%s): it will be measured again", path, error.strerror or error)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what write_record() kept, or None if there is nothing or it is damaged."""
    if not path.exists():
        return None
    found = read_json(path)
    if isinstance(found, dict) and found.pop(CHECKSUM, None) == digest(found):
        return found
    logger.warning("%s is damaged: measuring again", path)
    return None


def _fault(folder: Path, key: Mapping[str, Any]) -> str | None:
    """Say what is wrong with an entry, or None."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return f"{MANIFEST} is missing or unreadable"
    if manifest.get("key") != json.loads(json.dumps(dict(key))):
        return f"{MANIFEST} is another model's"
    for name, expected in manifest["files"].items():
        path = folder / Path(name).name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != expected:
            return f"{name} has changed"
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from building an entry until the end of the block, or of this process."""
    lock = filelock.FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info("waiting for another process that has the graphs in %s", folder)
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
            f"cannot write the graph cache {folder}: {error.strerror or error}. Free some space there, or set "
            "BBT_FAST_CACHE to a folder that can be written."
        ) from error
