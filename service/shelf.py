"""What clients have registered, by its content's name: the oldest is forgotten where a client has too much."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from .errors import RefusedError, unknown
from .limits import Limits

MOST_OWNERS = 256


class Shelf:
    """Keeps items for owners that see nothing of each other."""

    def __init__(self, limits: Limits) -> None:
        """Take what each owner may have here."""
        self._limits = limits
        self._owners: OrderedDict[str, OrderedDict[tuple[str, ...], tuple[Any, int]]] = OrderedDict()

    def put(self, owner: str, key: tuple[str, ...], item: Any, size: int) -> None:
        """Keep an item of so many bytes.

        Raises:
            RefusedError: if it alone is more than the owner may have.
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
        """Return an item, which thereby becomes the youngest.

        Raises:
            RefusedError: if there is none of that name.
        """
        items = self._owners.get(owner, OrderedDict())
        if key not in items:
            raise unknown(f"{key[0]} {key[-1][:64]!r}")
        items.move_to_end(key)
        return items[key][0]

    @property
    def held_bytes(self) -> int:
        """What all owners have together."""
        return sum(map(_total, self._owners.values()))


def _total(items: OrderedDict[tuple[str, ...], tuple[Any, int]]) -> int:
    return sum(size for _, size in items.values())
