"""A real server on loopback, on a thread of this process.

- serving: function(service) -> context manager that yields its URL and stops it at the end
- tiny_scorer: function(model, **limits) -> Service with a scorer of a model, on PyTorch in fp32
- server: URL of one with the tiny RoBERTa, for a module
- flaky: function(port) -> context manager that yields the URL of a proxy that cuts every connection sooner or later
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from bbt_fast.service.app import Service
from bbt_fast.service.keys import Keys
from bbt_fast.service.limits import Limits
from bbt_fast.service.scorer import Scorer
from bbt_fast.service.server import in_background


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[str]]:
    """The function that serves an application in the background."""
    return in_background


def pump(source: socket.socket, target: socket.socket, limit: int) -> None:
    """Forward so many bytes, then end both sides."""
    with suppress(OSError):
        while limit > 0 and (data := source.recv(min(4096, limit))):
            target.sendall(data)
            limit -= len(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


CUTS = ((9000, 9000), (0, 9000), (9000, 9000), (700, 9000), (9000, 9000), (9000, 60))
"""How many bytes pass up and down before a connection is cut: in its middle, before it, in its head, in the answer."""


@contextmanager
def cut_connections(port: int) -> Iterator[str]:
    """A proxy that cuts every connection sooner or later."""
    sockets: list[socket.socket] = []
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                client, _ = listener.accept()
                up, down = CUTS[len(sockets) // 2 % len(CUTS)]
                upstream = socket.create_connection(("127.0.0.1", port))
                sockets.extend((client, upstream))
                for way in ((client, upstream, up), (upstream, client, down)):
                    pumps.append(threading.Thread(target=pump, args=way))
                    pumps[-1].start()

    pumps: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()
            for one in sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for one_pump in pumps:
                one_pump.join()
            for one in sockets:
                one.close()
    assert len(sockets) > 2 * len(CUTS), "the network was not broken often enough"


@pytest.fixture(scope="session")
def flaky() -> Callable[[int], AbstractContextManager[str]]:
    """The function that starts a proxy with cut connections."""
    return cut_connections


def make_scorer(model: PreTrainedModel, keys: Path | None = None, **limits: Any) -> Service:
    given = Limits(**limits)
    return Service(Scorer(model, "torch", "fp32", "cpu", given), None, None, Keys(keys), given)


@pytest.fixture(scope="session")
def tiny_scorer() -> Callable[..., Service]:
    """The function that makes a service of a tiny model."""
    return make_scorer


@pytest.fixture(scope="module")
def server(roberta: PreTrainedModel) -> Iterator[str]:
    """The URL of a server of the shared tiny model."""
    with in_background(make_scorer(roberta)) as url:
        yield url
