"""The registrations of clients, named by their content; beyond a client's limits the oldest are dropped."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from .errors import RefusedError, unknown
from .limits import Limits

MOST_OWNERS = 256


class Shelf:
    """Stores items per owner; no owner sees another's."""

    def __init__(self, limits: Limits) -> None:
        """Take the limits of each owner."""
        self._limits = limits
        self._owners: OrderedDict[str, OrderedDict[tuple[str, ...], tuple[Any, int]]] = OrderedDict()

    def put(self, owner: str, key: tuple[str, ...], item: Any, size: int) -> None:
        """Store an item of a size in bytes; None takes the size of an item that is still being made.

        Raises:
            RefusedError: if it alone exceeds the owner's memory.
        """
        if size > self._limits.memory_bytes:
            raise RefusedError(
                413,
                "memory",
                f"{key[0]} would take {size} bytes, but a client may have {self._limits.memory_bytes} here.",
            )
        items = self._owners.setdefault(owner, OrderedDict())
        self._owners.move_to_end(owner)
        items.pop(key, None)
        items[key] = (item, size)
        while len(items) > self._limits.max_sets or _total(items) > self._limits.memory_bytes:
            items.popitem(last=False)
        if len(self._owners) > MOST_OWNERS:
            self._owners.popitem(last=False)

    def get(self, owner: str, key: tuple[str, ...]) -> Any:
        """Return an item and mark it as the most recently used.

        Raises:
            RefusedError: if the name is unknown, or its item was not made.
        """
        items = self._owners.get(owner, OrderedDict())
        if key not in items or items[key][0] is None:
            raise unknown(f"{key[0]} {key[-1][:64]!r}")
        items.move_to_end(key)
        return items[key][0]

    @property
    def held_bytes(self) -> int:
        """The memory of all owners' items."""
        return sum(map(_total, self._owners.values()))


def _total(items: OrderedDict[tuple[str, ...], tuple[Any, int]]) -> int:
    return sum(size for _, size in items.values())
