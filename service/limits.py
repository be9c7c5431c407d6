"""What one client may take of a server."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Each is a flag of `bbt-fast serve`."""

    max_body_mib: int = 64
    """largest request, in MiB"""
    max_waiting: int = 8
    """requests of one key that wait or run at a time; more get status 429"""
    max_connections: int = 128
    """open connections of all clients; more get status 503"""
    max_sets: int = 64
    """example sets, committed states and projections that a key may have registered; the oldest are forgotten"""
    max_memory_mib: int = 1024
    """memory that a key's example sets, committed states and projections may take; the oldest are forgotten"""
    max_candidates: int = 1024
    """prompts in one request"""
    max_graphs: int = 4
    """graphs (mode, prompt tokens, cuts) that are loaded for all clients together"""
    max_texts: int = 1024
    """texts in one request"""
    read_timeout: float = 30.0
    """seconds in which a request's body must be here"""
    turn_timeout: float = 300.0
    """seconds that a request may wait for its turn; then it gets status 503"""

    @property
    def body_bytes(self) -> int:
        """The largest request."""
        return self.max_body_mib * MIB

    @property
    def memory_bytes(self) -> int:
        """What a key may hold."""
        return self.max_memory_mib * MIB
