"""The limits on one client's use of a server."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from bbt_fast.export.errors import UsageError

MIB = 2**20


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Limits:
    """The limits; each is a flag of `bbt-fast serve`.

    Raises:
        UsageError: if a limit is not above 0.
    """

    max_body_mib: int = _limit(64, "largest request, in MiB")
    max_waiting: int = _limit(8, "waiting and running requests of one key; more get status 429")
    max_connections: int = _limit(128, "open connections of all clients; more get status 503")
    max_sets: int = _limit(64, "example sets, committed states and projections of a key; the server drops the oldest")
    max_memory_mib: int = _limit(1024, "memory of these in MiB; the server drops the oldest")
    max_candidates: int = _limit(1024, "prompts in one request")
    max_graphs: int = _limit(4, "loaded graphs (mode, prompt tokens, cuts), for all keys together")
    max_texts: int = _limit(1024, "texts in one request")
    read_timeout: float = _limit(30.0, "seconds within which a request's body must arrive")
    turn_timeout: float = _limit(300.0, "seconds that a request waits for its turn at most; then it gets status 503")

    def __post_init__(self) -> None:
        """Check that all limits are positive."""
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise UsageError(
                    f"{one.name} is {getattr(self, one.name)}, but must be above 0: give a positive number."
                )

    @property
    def body_bytes(self) -> int:
        """The size of the largest request."""
        return self.max_body_mib * MIB

    @property
    def memory_bytes(self) -> int:
        """The memory of one key's registrations."""
        return self.max_memory_mib * MIB
