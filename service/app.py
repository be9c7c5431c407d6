"""The HTTP side: routes of the Open Inference Protocol v2 and its extensions, limits, errors, the access log."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bbt_fast.engine.wire import HEADER_LENGTH, JSON, Message, decode, encode
from bbt_fast.export.errors import BbtFastError

from .errors import RefusedError, refusal_of
from .keys import Keys
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .scorer import Answer, Scorer
from .texts import CLASSIFIER, TaskTexts, TextClassifier
from .turns import Turns

LEFT = 499
"""Status in the log if the client disconnected before the answer."""
access = logging.getLogger("bbt_fast.access")
logger = logging.getLogger(__name__)
Handler = Callable[["Call"], Awaitable[Response]]


class Call:
    """A request, its owner, and the number of bytes read from it."""

    def __init__(self, request: Request, limits: Limits) -> None:
        """Take the request."""
        self.request, self._limits, self.owner, self.up = request, limits, "", 0

    async def message(self) -> Message:
        """Read the body.

        Raises:
            RefusedError: if it is too large, compressed, or too slow.
            WireError: if it violates the protocol.
        """
        headers = self.request.headers
        too_large = RefusedError(
            413, "usage", f"the request is too large: it may have {self._limits.max_body_mib} MiB. Split it."
        )
        if headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(
                415, "usage", "the body has a Content-Encoding, but must have none: send it uncompressed."
            )
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._limits.body_bytes:
            raise too_large
        chunks = []
        try:
            async with asyncio.timeout(self._limits.read_timeout):
                async for chunk in self.request.stream():
                    self.up += len(chunk)
                    if self.up > self._limits.body_bytes:
                        raise too_large
                    chunks.append(chunk)
        except TimeoutError:
            raise RefusedError(
                408, "slow", f"the body did not arrive within {self._limits.read_timeout:g} s: send it faster."
            ) from None
        return decode("inputs", b"".join(chunks), headers.get(HEADER_LENGTH))

    @property
    def graph(self) -> str:
        """The model version in the path."""
        return str(self.request.path_params.get("version", ""))


class Service:
    """The ASGI application: a scorer, a classifier, or both."""

    def __init__(
        self, scorer: Scorer | None, texts: TaskTexts | None, classifier: TextClassifier | None, keys: Keys,
        limits: Limits,
    ) -> None:  # fmt: skip
        """Take the two models, either of which may be None."""
        self.scorer, self.texts, self.classifier, self.keys, self.limits = scorer, texts, classifier, keys, limits
        self.turns = Turns(limits)
        self.metrics = Metrics(self.turns, scorer.shelf if scorer else None)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            self._route("/v2/health/live", self._alive, public=True),
            self._route("/v2/health/ready", self._alive, public=True),
            self._route("/v2", self._server),
            self._route("/metrics", self._figures),
        ]
        if self.scorer is not None:
            routes += self._scorer_routes(self.scorer)
        if self.classifier is not None:
            routes += self._classifier_routes(self.classifier)
        return Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._no_such_route}
        )

    def _scorer_routes(self, scorer: Scorer) -> list[Route]:
        async def summary(_: Call) -> Response:
            return JSONResponse(scorer.summary())

        async def metadata(call: Call) -> Response:
            return JSONResponse(await self._turn(call, lambda: scorer.metadata(call.graph)))

        async def ready(call: Call) -> Response:
            if call.graph not in scorer.graphs:
                raise RefusedError(404, "usage", "this version is not loaded; its first request loads it.")
            return Response(status_code=200)

        def posted(name: str, work: Callable[[str, str, Message], Answer]) -> Route:
            async def handler(call: Call) -> Response:
                message = await call.message()
                answer = await self._turn(call, lambda: work(call.owner, call.graph, message))
                if name == "infer":
                    self.metrics.candidates.inc(sum(map(len, answer.tensors.values())))
                return _answered(message, answer, scorer.name, call.graph)

            return self._route(f"{at}/versions/{{version}}/{name}", handler, "POST")

        at = f"/v2/models/{scorer.name}"
        calls = (scorer.examples, scorer.commits, scorer.projections, scorer.spread, scorer.embeddings, scorer.infer)
        named = {call.__name__: call for call in calls} | ({"texts": self.texts} if self.texts else {})
        return [
            self._route(at, summary),
            self._route(f"{at}/ready", self._alive),
            self._route(f"{at}/versions/{{version}}", metadata),
            self._route(f"{at}/versions/{{version}}/ready", ready),
            *(posted(name, work) for name, work in named.items()),
        ]

    def _classifier_routes(self, classifier: TextClassifier) -> list[Route]:
        async def metadata(_: Call) -> Response:
            return JSONResponse(classifier.metadata())

        async def infer(call: Call) -> Response:
            message = await call.message()
            answer = await self._turn(call, lambda: classifier.infer(message))
            return _answered(message, answer, CLASSIFIER, "1")

        routes = []
        for at in (f"/v2/models/{CLASSIFIER}", f"/v2/models/{CLASSIFIER}/versions/1"):
            routes += [
                self._route(at, metadata),
                self._route(f"{at}/ready", self._alive),
                self._route(f"{at}/infer", infer, "POST"),
            ]
        return routes

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.loop = asyncio.get_running_loop()
        running = asyncio.create_task(self.turns.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    def _route(self, path: str, handler: Handler, method: str = "GET", public: bool = False) -> Route:
        """Return a route that turns its handler's errors into answers, counts and logs its calls."""

        async def endpoint(request: Request) -> Response:
            began, call = time.perf_counter(), Call(request, self.limits)
            try:
                if not public:
                    address = request.client.host if request.client else ""
                    call.owner = self.keys.owner(request.headers.get("authorization"), address)
                response = await handler(call)
            except BbtFastError as error:
                response = _refused(refusal_of(error))
            except ClientDisconnect:
                response = Response(status_code=LEFT)
            except Exception as error:
                logger.exception("a request to %s failed", path)
                response = _refused(RefusedError(500, "internal", f"the server failed ({type(error).__name__})."))
            self._note(path, method, call, response, time.perf_counter() - began)
            return response

        return Route(path, endpoint, methods=[method])

    def _note(self, path: str, method: str, call: Call, response: Response, seconds: float) -> None:
        down = len(response.body)
        self.metrics.note(path, response.status_code, seconds, call.up, down)
        entry = {
            "time": round(time.time(), 3), "method": method, "route": path, "graph": call.graph[:40],
            "client": call.owner, "status": response.status_code, "ms": round(1000 * seconds, 2), "up": call.up,
            "down": down,
        }  # fmt: skip
        access.info("%s", json.dumps(entry))

    async def _no_such_route(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = _refused(
            RefusedError(error.status_code, "usage", f"{error.detail}: docs/service.md lists the calls.")
        )
        self.metrics.note("other", error.status_code, 0.0, 0, len(response.body))
        return response

    async def _alive(self, _: Call) -> Response:
        return Response(status_code=200)

    async def _server(self, _: Call) -> Response:
        return JSONResponse(
            {"name": "bbt-fast", "version": version("bbt-fast"), "extensions": ["binary_tensor_data", "bbt_fast"]}
        )

    async def _figures(self, _: Call) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _turn(self, call: Call, work: Callable[[], Any]) -> Any:
        return await self.turns.take(call.owner, work, call.request.is_disconnected)


def _answered(message: Message, answer: Answer, model: str, graph: str) -> Response:
    """Return an answer in the protocol's form, with the requested outputs."""
    asked = [one.get("name") for one in message.head.get("outputs") or () if isinstance(one, dict)]
    missing = [name for name in asked if name not in answer.tensors]
    if missing:
        raise RefusedError(
            400, "usage", f"there is no output {str(missing[0])[:40]!r}; this answer has {list(answer.tensors)}."
        )
    tensors = {name: value for name, value in answer.tensors.items() if not asked or name in asked}
    head = {"model_name": model, "model_version": graph, "parameters": answer.parameters}
    if isinstance(message.head.get("id"), str):
        head["id"] = message.head["id"]
    body, headers = encode("outputs", tensors, head, binary=message.wants_binary)
    return Response(body, headers=headers)


def _refused(refusal: RefusedError) -> Response:
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = json.dumps({"error": str(refusal), "code": refusal.code})
    return Response(body, refusal.status, headers, media_type=JSON)
