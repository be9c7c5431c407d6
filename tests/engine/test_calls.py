"""The client's calls: which answers are errors, which are asked for again, and which a broken proxy may give."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest

from bbt_fast.engine.calls import Caller, Traffic, UnknownNameError, _seconds
from bbt_fast.export.errors import BbtFastError, DeviceError, NumericsError, ShapeError, UsageError

URL = "http://scorer:8000"
PAGE = b"<html><body>Sign in first</body></html>"


def said(error: Any, code: Any) -> bytes:
    """The body of a server's refusal."""
    return json.dumps({"error": error, "code": code}).encode()


@pytest.fixture
def caller_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Caller]:
    """A function that makes a client whose server gives these responses, one after the other."""

    def make(*responses: httpx.Response, **options: float) -> Caller:
        caller, left = Caller(URL, "key", **options), list(responses)
        transport = httpx.MockTransport(lambda request: left.pop(0))
        monkeypatch.setattr(caller._client, "_transport", transport)
        return caller

    return make


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between calls, in seconds; nobody waits for them."""
    found: list[float] = []
    monkeypatch.setattr("bbt_fast.engine.calls.time.sleep", found.append)
    return found


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (401, said("give a known key.", "key"), UsageError, r"scorer:8000 refused the key: give a known key\. Give"),
        (403, PAGE, UsageError, r"refused the key: Forbidden\. Give its file with --api_key"),
        (404, said("unknown examples 'a'.", "unknown"), UnknownNameError, "^unknown examples 'a'"),
        (404, PAGE, UsageError, "scorer:8000 refused the request with status 404: Not Found"),
        (302, b"", UsageError, "refused the request with status 302: Found"),
        (400, said("prompts have 3 tokens.", "shape"), ShapeError, "^prompts have 3 tokens"),
        (422, said("logits are NaN.", "numerics"), NumericsError, "^logits are NaN"),
        (400, said("task is wrong.", "usage"), UsageError, "refused the request with status 400: task is wrong"),
        (400, said("task is wrong.", ["shape"]), UsageError, "refused the request with status 400: task is wrong"),
        (500, said("no memory is left.", "device"), DeviceError, "^no memory is left"),
        (500, said("the server failed.", "internal"), DeviceError, "failed with status 500: the server failed"),
        (500, PAGE, DeviceError, "scorer:8000 failed with status 500: Internal Server Error"),
        (500, b"[1]", DeviceError, "failed with status 500: Internal Server Error"),
        (200, PAGE, DeviceError, r"violates the protocol \(the body is not valid JSON .* Check that `bbt-fast serve`"),
        (200, b"[1]", DeviceError, r"violates the protocol \(the body must be a JSON object"),
    ],
)
def test_an_answer_that_is_final_is_an_error_of_its_kind(
    status: int,
    body: bytes,
    kind: type[BbtFastError],
    message: str,
    caller_of: Callable[..., Caller],
    waits: list[float],
) -> None:
    asking = {
        "get": lambda: caller_of(httpx.Response(status, content=body)).get("/v2", Traffic()),
        "post": lambda: caller_of(httpx.Response(status, content=body)).post("/v2", {}, {}, Traffic()),
    }
    for ask in asking.values():
        with pytest.raises(BbtFastError, match=message) as raised:
            ask()
        assert type(raised.value) is kind
    assert not waits


@pytest.mark.parametrize(
    ("response", "least"),
    [
        (httpx.Response(503, headers={"Retry-After": "7"}), 7.0),
        (httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, content=PAGE), 0.0),
        (httpx.Response(429, headers={"Retry-After": "1"}, content=said("busy.", "busy")), 1.0),
        (httpx.Response(408), 0.0),
        (httpx.Response(502, content=PAGE), 0.0),
        (httpx.Response(504, content=PAGE), 0.0),
    ],
)
def test_an_answer_that_may_pass_is_asked_for_again_after_the_time_that_the_server_names(
    response: httpx.Response, least: float, caller_of: Callable[..., Caller], waits: list[float]
) -> None:
    caller, traffic = caller_of(response, httpx.Response(200, content=b'{"a": 1}'), pause=0.01), Traffic()
    assert caller.get("/v2", traffic) == {"a": 1}
    (wait,) = waits
    assert least <= wait <= max(least, 0.01)
    alone = Traffic()
    caller_of(httpx.Response(200, content=b'{"a": 1}')).get("/v2", alone)
    assert traffic.up == 2 * alone.up


def test_a_damaged_body_is_asked_for_again(caller_of: Callable[..., Caller], waits: list[float]) -> None:
    damaged = httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=iter([b"not gzip"]))
    assert caller_of(damaged, httpx.Response(200, content=b"{}")).get("/v2", Traffic()) == {}
    assert len(waits) == 1


def test_a_server_that_wants_more_time_than_there_is_patience_is_an_error_at_once(
    caller_of: Callable[..., Caller], waits: list[float]
) -> None:
    busy = httpx.Response(503, headers={"Retry-After": "30"}, content=said("no turn came in time.", "busy"))
    with pytest.raises(DeviceError, match=r"could not be reached for 5 s \(no turn came in time\.\)\. Check the serv"):
        caller_of(busy, patience=5.0).get("/v2", Traffic())
    assert not waits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0.0), ("", 0.0), ("5", 5.0), ("0.5", 0.5), ("3600", 60.0), ("-1", 0.0), ("inf", 0.0), ("nan", 0.0),
        ("-inf", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("soon", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_of_seconds_up_to_a_minute(text: str | None, seconds: float) -> None:
    assert _seconds(text) == seconds
