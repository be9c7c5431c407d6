"""Refusals of requests: a status, a code for programs, and a message for people."""

from __future__ import annotations

from bbt_fast.export.errors import BbtFastError, DataError, NumericsError, ShapeError, UsageError


class RefusedError(BbtFastError):
    """A request that the server refuses."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        """Take the HTTP status, the code, the message, and the seconds to wait before a retry."""
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


REFUSALS: tuple[tuple[type[BbtFastError], int, str], ...] = (
    (ShapeError, 400, "shape"),
    (NumericsError, 422, "numerics"),
    (UsageError, 400, "usage"),
    (DataError, 400, "usage"),
    (BbtFastError, 500, "device"),
)
"""The status and the code of the package's errors; the first match applies."""


def refusal_of(error: BbtFastError) -> RefusedError:
    """Return the refusal that the client receives."""
    if isinstance(error, RefusedError):
        return error
    status, code = next((status, code) for kind, status, code in REFUSALS if isinstance(error, kind))
    return RefusedError(status, code, str(error))


def unknown(what: str) -> RefusedError:
    """Refuse a name that no request registered, or that the server has dropped."""
    return RefusedError(404, "unknown", f"unknown {what}: register it (again).")
