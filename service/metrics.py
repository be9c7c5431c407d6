"""The metrics for Prometheus at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from .shelf import Shelf
from .turns import Turns

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self, turns: Turns, shelf: Shelf | None) -> None:
        """Take the objects whose state the gauges report."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter("bbt_fast_requests", "Requests answered", ["route", "status"], registry=self._registry)
        self._seconds = Histogram("bbt_fast_request_seconds", "Time to the answer", ["route"], registry=self._registry)
        self._bytes = Counter("bbt_fast_body_bytes", "Bytes of bodies", ["direction"], registry=self._registry)
        self.candidates = Counter("bbt_fast_candidates", "Prompts answered", registry=self._registry)
        Gauge("bbt_fast_waiting", "Requests that wait or run", registry=self._registry).set_function(
            lambda: turns.waiting
        )
        if shelf is not None:
            held = Gauge("bbt_fast_registered_bytes", "What clients have registered", registry=self._registry)
            held.set_function(lambda: shelf.held_bytes)

    def note(self, route: str, status: int, seconds: float, up: int, down: int) -> None:
        """Count one request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._bytes.labels("up").inc(up)
        self._bytes.labels("down").inc(down)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
