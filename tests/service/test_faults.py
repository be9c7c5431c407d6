"""What goes wrong between two machines: slowness, half requests, certificates, a server that stops, full shelves."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Examples
from bbt_fast.engine.remote import RemoteSession, load_remote
from bbt_fast.export.errors import DeviceError, UsageError
from bbt_fast.service.errors import RefusedError
from bbt_fast.service.limits import MIB, Limits
from bbt_fast.service.shelf import Shelf

N = 5
QUICK = {"patience": 20.0, "timeout": 10.0, "pause": 0.01}
Serving = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def open_session(roberta: PreTrainedModel, make_examples: Callable[..., Examples]) -> Callable[[str], RemoteSession]:
    """A function that opens texts on a server with a URL."""

    def make(url: str) -> RemoteSession:
        return load_remote(url, n_prompt_tokens=N, **QUICK).open(make_examples(roberta, "add", N))

    return make


@pytest.fixture
def prompts(roberta: PreTrainedModel, make_prompts: Callable[..., Tensor]) -> Tensor:
    return make_prompts(roberta, 3, N)


def test_a_server_that_accepts_and_says_nothing_is_an_error_that_says_so() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(DeviceError, match=r"could not be reached for 0.3 s \(ReadTimeout"),
    ):
        load_remote(f"http://127.0.0.1:{mute.getsockname()[1]}", timeout=0.1, patience=0.3, pause=0.05)


def test_a_half_sent_body_and_a_dropped_connection_disturb_nobody(
    server: str, open_session: Callable[[str], RemoteSession], prompts: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_session(server)
    expected = session.evaluate(prompts)
    head = f"POST {session.engine.path('infer')} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with caplog.at_level("INFO", logger="bbt_fast.access"):
        for sent in ("", head[:30], head, head + "{" * 40):
            with socket.create_connection(("127.0.0.1", int(server.rpartition(":")[2]))) as dropped:
                dropped.sendall(sent.encode())
            assert torch.equal(session.evaluate(prompts), expected)
        ends = time.monotonic() + 10
        while statuses(caplog).count(499) < 2 and time.monotonic() < ends:
            time.sleep(0.01)
    assert statuses(caplog).count(499) == 2


def statuses(caplog: pytest.LogCaptureFixture) -> list[int]:
    """What the access log says of each request; other loggers may speak too."""
    return [json.loads(one.message)["status"] for one in caplog.records if one.name == "bbt_fast.access"]


def test_a_client_that_is_told_to_wait_waits_and_is_answered(
    roberta: PreTrainedModel,
    tiny_scorer: Callable[..., Any],
    serving: Serving,
    open_session: Callable[[str], RemoteSession],
    prompts: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One request of a key may be open; four clients have the same key."""
    waits: list[float] = []
    with serving(tiny_scorer(roberta, max_waiting=1)) as url:
        monkeypatch.setattr("bbt_fast.engine.calls._seconds", lambda text: waits.append(float(text or 0)) or 0.0)
        sessions = [open_session(url) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda session: [session.evaluate(prompts) for _ in range(5)], sessions))
        assert all(torch.equal(one, answers[0][0]) for some in answers for one in some)
    assert set(waits) == {1.0}


def test_examples_that_could_not_be_opened_once_are_opened_when_they_are_registered_again(
    roberta: PreTrainedModel,
    tiny_scorer: Callable[..., Any],
    serving: Serving,
    open_session: Callable[[str], RemoteSession],
    prompts: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = tiny_scorer(roberta)
    engine, failures = service.scorer.engine(f"add-{N}-input"), [DeviceError("no memory is left.")]
    opened = engine.open

    def open_at_second_try(examples: Examples) -> Any:
        if failures:
            raise failures.pop()
        return opened(examples)

    monkeypatch.setattr(engine, "open", open_at_second_try)
    with serving(service) as url:
        with pytest.raises(DeviceError, match="no memory is left"):
            open_session(url)
        assert open_session(url).evaluate(prompts).shape[0] == len(prompts)


def refuses(url: str) -> bool:
    """Tell whether a server ceases to accept connections."""
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        try:
            httpx.get(f"{url}/v2/health/ready", trust_env=False, timeout=1)
        except httpx.ConnectError:
            return True
        except httpx.TransportError:  # it hangs, or ends a connection that it had taken
            time.sleep(0.01)
    return False


def test_a_server_that_is_asked_to_stop_finishes_what_runs(
    roberta: PreTrainedModel,
    tiny_scorer: Callable[..., Any],
    serving: Serving,
    open_session: Callable[[str], RemoteSession],
    prompts: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = tiny_scorer(roberta)
    infer, began, go_on = service.scorer.infer, threading.Event(), threading.Event()

    def slowly(*request: Any) -> Any:
        began.set()
        assert go_on.wait(30)
        return infer(*request)

    slowly.__name__ = "infer"
    with ExitStack() as running, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(service.scorer, "infer", slowly)
        url = running.enter_context(serving(service))
        session = open_session(url)
        answer = pool.submit(session.evaluate, prompts)
        assert began.wait(30)
        stopped = pool.submit(running.close)
        assert refuses(url)  # nobody new is let in
        assert not stopped.done()
        go_on.set()
        assert answer.result(30).shape == (3, len(session), 3)
        stopped.result(30)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that nobody signed but itself, and its private key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=test",
    ]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run([*command, *files], cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


def test_tls_with_a_certificate_that_is_trusted_one_that_is_not_and_one_that_is_none(
    certificate: tuple[Path, Path],
    roberta: PreTrainedModel,
    tiny_scorer: Callable[..., Any],
    serving: Serving,
    open_session: Callable[[str], RemoteSession],
    prompts: Tensor,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public, private = map(str, certificate)
    with serving(tiny_scorer(roberta), 0, public, private) as url:
        assert url.startswith("https://")
        with pytest.raises(UsageError, match=r"the certificate of .* is not trusted .* set the environment variable"):
            load_remote(url, n_prompt_tokens=N, **QUICK)
        monkeypatch.setenv("SSL_CERT_FILE", public)
        session = open_session(url)
        assert torch.equal(session.evaluate(prompts), open_session(server).evaluate(prompts))
        session.engine.caller.close()  # or the server waits for its goodbye
    with (
        pytest.raises(UsageError, match="are no certificate and its private key"),
        serving(tiny_scorer(roberta), 0, private, public),
    ):
        pass
    with pytest.raises(UsageError, match="there is no file"), serving(tiny_scorer(roberta), 0, public, "nowhere.pem"):
        pass


def test_a_key_may_register_so_much_and_the_oldest_goes_first() -> None:
    shelf = Shelf(Limits(max_memory_mib=1, max_sets=3))
    with pytest.raises(RefusedError, match=r"would take 1048577 bytes, but a client may have 1048576") as refused:
        shelf.put("ann", ("examples", "large"), None, MIB + 1)
    assert refused.value.status == 413
    for owner in ("ann", "bob"):
        for name in ("a", "b", "c"):
            shelf.put(owner, ("examples", name), name, 10)
    shelf.get("ann", ("examples", "a"))
    shelf.put("ann", ("examples", "d"), "d", 10)  # one thing too many
    shelf.put("bob", ("examples", "d"), "d", MIB - 10)  # too much memory
    for owner, gone, kept in (("ann", "b", "acd"), ("bob", "ab", "cd")):
        assert [shelf.get(owner, ("examples", name)) for name in kept] == list(kept)
        for name in gone:
            with pytest.raises(RefusedError, match=f"unknown examples '{name}'"):
                shelf.get(owner, ("examples", name))
    assert shelf.held_bytes == 30 + MIB
