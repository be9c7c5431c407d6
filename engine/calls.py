"""HTTP calls to a server. Every call is idempotent and is retried after network errors."""

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
"""Transient HTTP status codes: the call is retried."""
ERRORS: dict[str, type[BbtFastError]] = {"numerics": NumericsError, "shape": ShapeError, "device": DeviceError}
"""A server's errors by code; every other code is a usage error."""

logger = logging.getLogger(__name__)


class UnknownNameError(DeviceError):
    """The server does not know an example set or a committed state, for example after a restart."""


@dataclass
class Traffic:
    """HTTP bytes sent and received, including headers and failed tries."""

    up: int = 0
    down: int = 0


class Caller:
    """An HTTP client of one server."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        patience: float = 600.0,
        timeout: float = 600.0,
        pause: float = FIRST_PAUSE,
    ) -> None:
        """Open a client.

        Args:
            url: http:// or https://, with a port if it is not the default.
            api_key: the key, if the server requires one.
            patience: how many seconds a call is retried before it fails.
            timeout: how many seconds one answer may take.
            pause: the first pause before a retry, in seconds; each is twice the one before, up to ten seconds.

        Raises:
            UsageError: if the URL is invalid.
        """
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        try:
            # Ignore the environment's proxies, but use its certificate authorities: SSL_CERT_FILE, SSL_CERT_DIR.
            trusted = httpx.create_ssl_context()
            self._client = httpx.Client(base_url=url, headers=headers, timeout=limits, trust_env=False, verify=trusted)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise UsageError(f"--url {url!r} or its key cannot be used ({error}). Correct them.") from None
        if self._client.base_url.scheme not in ("http", "https") or not self._client.base_url.host:
            raise UsageError(f"--url is {url!r}, but it must be a URL such as https://host:8000.")
        if self._client.base_url.userinfo:
            raise UsageError(
                "--url contains a user name or a password. Remove them and give a key file with --api_key."
            )
        self._close = weakref.finalize(self, self._client.close)
        self.url, self._patience, self._first_pause = url, patience, pause

    def get(self, path: str, traffic: Traffic) -> dict[str, Any]:
        """Return a JSON object.

        Raises:
            BbtFastError: if the server refuses, or cannot be reached within the patience.
        """
        response = self._answer("GET", path, b"", {}, traffic)
        try:
            return read_object(response.content)
        except WireError as error:
            raise self._nonsense(error) from None

    def post(self, path: str, tensors: Mapping[str, Array], parameters: Mapping[str, Any], traffic: Traffic) -> Message:
        """Send tensors and return the answer.

        Raises:
            UnknownNameError: if the server does not know a name in the parameters.
            BbtFastError: if the server refuses, or cannot be reached within the patience.
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
        return DeviceError(f"{self.url} violates the protocol ({error}) Check that `bbt-fast serve` runs there.")

    def _answer(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], traffic: Traffic
    ) -> httpx.Response:
        """Repeat a call until the answer is final."""
        ends, pause = time.monotonic() + self._patience, self._first_pause
        while True:
            asked = 0.0
            try:
                response = self._once(method, path, body, headers, traffic)
                if response.status_code not in PASSING:
                    return self._checked(response)
                problem, asked = self._message(response)[0], _seconds(response.headers.get("Retry-After"))
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
                raise UsageError(f"{self.url} cannot be called ({error}). Check --url and the key.") from None
            except httpx.RequestError as error:
                if distrust := _distrust(error):
                    raise UsageError(
                        f"the certificate of {self.url} is not trusted ({distrust.verify_message}). If it is the right "
                        "server, set the environment variable SSL_CERT_FILE to the file of its certificate authority."
                    ) from None
                problem = f"{type(error).__name__}: {error}"
            wait = max(asked, pause * random.uniform(0.5, 1.0))
            if time.monotonic() + wait > ends:
                raise DeviceError(
                    f"{self.url} could not be reached for {self._patience:g} s ({problem}). Check the server and the "
                    "network. Every finished generation is saved: run the same command again to resume."
                ) from None
            logger.warning("%s: retrying in %.1f s (%s)", self.url, wait, problem)
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
        message, code = self._message(response)
        if code == "unknown":
            raise UnknownNameError(message)
        if response.status_code in (401, 403):
            raise UsageError(f"{self.url} refused the key: {message.rstrip('.')}. Give its file with --api_key.")
        if code in ERRORS:
            raise ERRORS[code](message)
        if response.status_code >= 500:
            raise DeviceError(f"{self.url} failed with status {response.status_code}: {message}")
        raise UsageError(f"{self.url} refused the request with status {response.status_code}: {message}")

    def _message(self, response: httpx.Response) -> tuple[str, str | None]:
        """Return a server's error message and its code."""
        try:
            found = read_object(response.content)
        except WireError:
            return response.reason_phrase, None
        code = found.get("code")
        return str(found.get("error", response.reason_phrase)), code if isinstance(code, str) else None


def _distrust(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the certificate error that caused another error, or None; a retry would not help."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After header, at most 60."""
    try:
        seconds = float(text or 0)
    except ValueError:  # it may be a date
        return 0.0
    return min(max(seconds, 0.0), 60.0) if math.isfinite(seconds) else 0.0


def _size(headers: httpx.Headers, first_line: str) -> int:
    """Return the size of an HTTP/1.1 message's head, in bytes."""
    return len(first_line) + 4 + sum(len(name) + len(value) + 4 for name, value in headers.raw)
