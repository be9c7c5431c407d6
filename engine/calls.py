"""Calls to a server over HTTP that survive what a network does: every one may be repeated, and is."""

from __future__ import annotations

import logging
import math
import random
import ssl
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2 as httpx

from ..export.errors import BbtFastError, DeviceError, NumericsError, ShapeError, UsageError
from .wire import HEADER_LENGTH, Array, Message, WireError, decode, encode, read_object

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
PASSING: Final = (408, 429, 502, 503, 504)
"""What a server says that another try may mend."""
ERRORS: dict[str, type[BbtFastError]] = {"numerics": NumericsError, "shape": ShapeError, "device": DeviceError}
"""A server's errors by their code; every other is a mistake of the user's."""

logger = logging.getLogger(__name__)


class UnknownNameError(DeviceError):
    """The server does not know an example set or a committed state, as after it was started again."""


@dataclass
class Traffic:
    """HTTP bytes, headers included, of everything that was sent and received, also in vain."""

    up: int = 0
    down: int = 0


class Caller:
    """Asks one server."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        patience: float = 600.0,
        timeout: float = 600.0,
        pause: float = FIRST_PAUSE,
    ) -> None:
        """Take where the server is.

        Args:
            url: http:// or https://, with a port if it is not the usual one.
            api_key: what the server knows us by, if it asks.
            patience: how many seconds a call is tried again before it fails.
            timeout: how many seconds the server may take for an answer.
            pause: the first pause, in seconds; each is twice the one before, up to ten seconds.

        Raises:
            UsageError: if this is no URL.
        """
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        try:
            # No proxies from the environment, but its certificate authorities: SSL_CERT_FILE, SSL_CERT_DIR.
            trusted = httpx.create_ssl_context()
            self._client = httpx.Client(base_url=url, headers=headers, timeout=limits, trust_env=False, verify=trusted)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise UsageError(f"--url {url!r} or its key cannot be used ({error}).") from None
        if self._client.base_url.scheme not in ("http", "https") or not self._client.base_url.host:
            raise UsageError(f"--url is {url!r}, but must be such as https://host:8000.")
        if self._client.base_url.userinfo:
            raise UsageError("--url holds a name or a password: leave them out, and give a key's file with --api_key.")
        self._close = weakref.finalize(self, self._client.close)
        self.url, self._patience, self._first_pause = url, patience, pause

    def get(self, path: str, traffic: Traffic) -> dict[str, Any]:
        """Return a JSON object.

        Raises:
            BbtFastError: if the server refuses, or cannot be reached as long as patience lasts.
        """
        response = self._answer("GET", path, b"", {}, traffic)
        try:
            return read_object(response.content)
        except WireError as error:
            raise self._nonsense(error) from None

    def post(self, path: str, tensors: Mapping[str, Array], parameters: Mapping[str, Any], traffic: Traffic) -> Message:
        """Send tensors and return what comes back.

        Raises:
            UnknownNameError: if the server does not know a name among the parameters.
            BbtFastError: if it refuses, or cannot be reached as long as patience lasts.
        """
        head = {"parameters": {**parameters, "binary_data_output": True}}
        response = self._answer("POST", path, *encode("inputs", tensors, head), traffic)
        try:
            return decode("outputs", response.content, response.headers.get(HEADER_LENGTH))
        except WireError as error:
            raise self._nonsense(error) from None

    def close(self) -> None:
        """Close the connection."""
        self._close()

    def _nonsense(self, error: WireError) -> DeviceError:
        return DeviceError(f"{self.url} answered what is not of the protocol ({error}) Is it `bbt-fast serve`?")

    def _answer(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], traffic: Traffic
    ) -> httpx.Response:
        """Ask until there is an answer that is final."""
        ends, pause = time.monotonic() + self._patience, self._first_pause
        while True:
            asked = 0.0
            try:
                response = self._once(method, path, body, headers, traffic)
                if response.status_code not in PASSING:
                    return self._checked(response)
                problem, asked = self._said(response)[0], _seconds(response.headers.get("Retry-After"))
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
                raise UsageError(f"{self.url} cannot be asked ({error}): check --url and the key.") from None
            except httpx.TransportError as error:
                if distrust := _distrust(error):
                    raise UsageError(
                        f"{self.url} shows a certificate that is not trusted here ({distrust.verify_message}). If it "
                        "is the right server, set the environment variable SSL_CERT_FILE to its authority's file."
                    ) from None
                problem = f"{type(error).__name__}: {error}"
            wait = max(asked, pause * random.uniform(0.5, 1.0))
            if time.monotonic() + wait > ends:
                raise DeviceError(
                    f"{self.url} could not be reached for {self._patience:g} s ({problem}). Check the server and the "
                    "network; the same command, started again, continues from the last generation."
                ) from None
            logger.warning("%s: trying again in %.1f s (%s)", self.url, wait, problem)
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _once(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], traffic: Traffic
    ) -> httpx.Response:
        request = self._client.build_request(method, path, content=body, headers=dict(headers))
        traffic.up += _size(request.headers, f"{method} {request.url.raw_path.decode()} HTTP/1.1") + len(body)
        response = self._client.send(request)
        traffic.down += _size(response.headers, f"HTTP/1.1 {response.status_code} {response.reason_phrase}")
        traffic.down += response.num_bytes_downloaded
        return response

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code == httpx.codes.OK:
            return response
        said, code = self._said(response)
        if code == "unknown":
            raise UnknownNameError(said)
        if response.status_code in (401, 403):
            raise UsageError(f"{self.url} refused the key: {said} Give its file with --api_key.")
        if code in ERRORS:
            raise ERRORS[code](said)
        if response.status_code >= 500:
            raise DeviceError(f"{self.url} failed with status {response.status_code}: {said}")
        raise UsageError(f"{self.url} refused the request with status {response.status_code}: {said}")

    def _said(self, response: httpx.Response) -> tuple[str, str | None]:
        """Return a server's error message and its code."""
        try:
            found = read_object(response.content)
        except WireError:
            return response.reason_phrase, None
        return str(found.get("error", response.reason_phrase)), found.get("code")


def _distrust(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the error of a certificate that led to another, if one did; trying again does not mend it."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _seconds(text: str | None) -> float:
    """Return what a Retry-After header asks for, within reason."""
    try:
        seconds = float(text or 0)
    except ValueError:  # a date
        return 0.0
    return min(max(seconds, 0.0), 60.0) if math.isfinite(seconds) else 0.0


def _size(headers: httpx.Headers, first_line: str) -> int:
    """Return how many bytes the head of an HTTP/1.1 message has."""
    return len(first_line) + 4 + sum(len(name) + len(value) + 4 for name, value in headers.raw)
