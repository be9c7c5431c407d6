"""Combines the models, the HTTP application and uvicorn."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from bbt_fast.export.errors import BbtFastError, DeviceError, UsageError
from bbt_fast.export.model import load_model
from bbt_fast.tuner.demo import MODEL_DIR
from bbt_fast.tuner.tasks.presets import DEMO
from bbt_fast.tuner.use.classifier import load

from .app import Service
from .keys import Keys
from .limits import Limits
from .scorer import Scorer
from .texts import TaskTexts, TextClassifier

HEADERS_BYTES = 64 * 1024
GRACE_SECONDS = 60
LOOPBACK = "127.0.0.1"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The models to serve, and their engine."""

    model_name: str | None
    """The scorer's: a hub id or a folder; "demo" is the packaged model."""
    run: str | None = None
    """The classifier's: a run's folder, or the hub id of a shared prompt."""
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    allow_pickle: bool = False


def build(models: Models, keys: Path | None, limits: Limits) -> Service:
    """Load the models and the keys.

    Raises:
        UsageError: if there is no model to serve, or a model or the keys are unreadable.
        BbtFastError: if a model cannot be loaded.
    """
    known = Keys(keys)
    scorer, texts, classifier = None, None, None
    if models.model_name is not None:
        source = str(MODEL_DIR) if models.model_name == DEMO else models.model_name
        loaded = load_model(source, models.allow_pickle)
        scorer = Scorer(loaded, models.engine, models.precision, models.device, limits)
        texts = TaskTexts(scorer, models.model_name, limits)
    if models.run is not None:
        found = load(
            models.run,
            engine=models.engine,
            precision=models.precision,
            device=models.device,
            allow_pickle=models.allow_pickle,
        )
        classifier = TextClassifier(found, limits)
    if scorer is None and classifier is None:
        raise UsageError("nothing to serve: give --model_name for a scorer, --run for a classifier, or both.")
    return Service(scorer, texts, classifier, known, limits)


class Server(uvicorn.Server):
    """A server that says where it listens."""

    @property
    def url(self) -> str:
        """The address of the started server, with the port that port 0 found."""
        scheme, host = "https" if self.config.is_ssl else "http", self.config.host
        port = self.servers[0].sockets[0].getsockname()[1]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then log the address."""
        await super().startup(sockets)
        logger.info("serving at %s; Ctrl-C ends it", self.url)


def configure(
    service: Service, host: str, port: int, certificate: str | None = None, private_key: str | None = None
) -> Server:
    """Return a server that is ready to run.

    Args:
        service: the service.
        host: the address to listen on.
        port: 0 for any free port.
        certificate: a PEM file, for TLS.
        private_key: its key, a PEM file.

    Raises:
        UsageError: if a file for TLS is missing.
    """
    for file in filter(None, (certificate, private_key)):
        if not Path(file).is_file():
            raise UsageError(f"there is no file {file}: give the path of a PEM file.")
    return Server(
        uvicorn.Config(
            service.app(),
            host=host,
            port=port,
            http="h11",
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=service.limits.max_connections,
            h11_max_incomplete_event_size=HEADERS_BYTES,
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=certificate,
            ssl_keyfile=private_key,
        )
    )


def serve(server: uvicorn.Server) -> None:
    """Serve until SIGINT or SIGTERM, then finish the running requests.

    Raises:
        UsageError: if the files for TLS are invalid.
        DeviceError: if the server cannot listen on the address.
    """
    try:
        server.run()
    except ssl.SSLError as error:
        files = f"{server.config.ssl_certfile} and {server.config.ssl_keyfile}"
        raise UsageError(f"{files} are no certificate and its private key, in PEM ({error}).") from None
    except KeyboardInterrupt:  # uvicorn raises it again after it has stopped in order
        if server.force_exit:  # a second Ctrl-C
            raise
    except SystemExit:  # uvicorn exits if it cannot bind
        config = server.config
        raise DeviceError(f"cannot listen on {config.host}:{config.port}: is it taken? Give another --port.") from None


@contextmanager
def in_background(
    service: Service, port: int = 0, certificate: str | None = None, private_key: str | None = None
) -> Iterator[str]:
    """Serve on loopback, on a thread of this process, until the end of the block.

    Args:
        service: the service.
        port: 0 for any free port.
        certificate: a PEM file, for TLS.
        private_key: its key, a PEM file.

    Yields:
        The URL.

    Raises:
        UsageError: if the files for TLS are missing or invalid.
        DeviceError: if the port is taken.
    """
    server = configure(service, LOOPBACK, port, certificate, private_key)
    failures: list[BbtFastError] = []

    def run() -> None:
        try:
            serve(server)
        except BbtFastError as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise failures[0]
            time.sleep(0.005)
        yield server.url
    finally:
        server.should_exit = True
        thread.join()
