"""API keys from a file, which is read again when it changes: a deleted key is refused from then on."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from bbt_fast.export.errors import UsageError

from .errors import RefusedError

SCHEME = "Bearer "
logger = logging.getLogger(__name__)


class Keys:
    """Authenticates requests."""

    def __init__(self, path: Path | None) -> None:
        """Take a file with a key on each line; # begins a comment. None accepts every client.

        Raises:
            UsageError: if the file is unreadable or holds no key.
        """
        self._path, self._stamp, self._known = path, (0, 0), frozenset[bytes]()
        if path is not None:
            self._read()
            if not self._known:
                raise UsageError(f"--api_keys {path} cannot be read, or holds no key: write one on each line.")

    def owner(self, authorization: str | None, address: str) -> str:
        """Return the client's name: its key's digest, or its address if the server has no keys.

        Raises:
            RefusedError: if the key is missing or not in the file.
        """
        if self._path is None:
            return address
        self._read()
        given = _digest((authorization or "").removeprefix(SCHEME))
        # Digests have equal lengths, and every one is compared to its end, so the time reveals nothing about a key.
        matches = [hmac.compare_digest(given, known) for known in self._known]
        if not authorization or not authorization.startswith(SCHEME) or not any(matches):
            raise RefusedError(401, "key", "give a known key in the header `Authorization: Bearer KEY`.")
        return given.hex()[:12]

    def _read(self) -> None:
        """Read the file if it has changed; if it is missing, refuse every key."""
        assert self._path is not None
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            if self._known:
                logger.warning("%s cannot be read: every key is refused (%s)", self._path, type(error).__name__)
            self._stamp, self._known = (0, 0), frozenset()
            return
        words = (line.partition("#")[0].strip() for line in lines)
        self._stamp, self._known = stamp, frozenset(_digest(word) for word in words if word)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
