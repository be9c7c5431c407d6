"""Conversion of values from flags, YAML files and Python callers to the declared types of the options."""

from __future__ import annotations

import difflib
import math
import os
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ...export.errors import UsageError

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Range:
    """The range of a number, for ``Annotated``."""

    low: float
    high: float = math.inf
    open_low: bool = False
    """Whether ``low`` itself is out of range."""

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        return math.isfinite(number) and above and number <= self.high

    def __str__(self) -> str:
        low = f"above {self.low:.10g}" if self.open_low else f"at least {self.low:.10g}"
        return f"{low} and at most {self.high:.10g}" if self.high < math.inf else low


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(known: Iterable[str]) -> str:
    """Return "a", or "one of a, b, c"."""
    names = list(known)
    return repr(names[0]) if len(names) == 1 else f"one of {', '.join(names)}"


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Convert a value to a declared type.

    Args:
        name: the option's, for the message.
        value: from a flag (text), a YAML file or a Python caller.
        kind: int, float, bool, str, ``Literal[...]``, a number ``Annotated`` with its ``Range``, a ``tuple`` of one of
            them, or any of these with ``None``.

    Raises:
        UsageError: if the value cannot be converted, or is out of range.
    """
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is tuple:
        return _several(name, value, get_args(kind)[0])
    if get_origin(kind) is Literal:
        if value in (known := get_args(kind)):
            return value
        raise UsageError(f"{name} is {value!r}, but must be {one_of(known)}.{suggest(str(value), known)}")
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
        if (number := coerce(name, value, kind)) not in limits:
            raise UsageError(f"{name} is {number}, but must be {limits}.")
        return number
    cast, expected = _CASTS[kind]
    try:
        return cast(value)
    except (TypeError, ValueError, OverflowError, KeyError):
        raise UsageError(f"{name} is {value!r}, but must be {expected}.") from None


def _several(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        raise UsageError(f"{name} is {value!r}, but must be {_SEVERAL[base]}.")
    return tuple(coerce(name, part, kind) for part in parts)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
        raise ValueError(value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else BOOLEANS[str(value).lower()]


def _text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(value)
    return os.fspath(value)


_CASTS: Mapping[type, tuple[Callable[[Any], Any], str]] = {
    int: (_integer, "a whole number"),
    float: (_number, "a number"),
    bool: (_boolean, "true or false"),
    str: (_text, "text"),
}
_SEVERAL = {
    int: "whole numbers separated by commas, such as 8,13,42",
    float: "numbers separated by commas",
    str: "texts separated by commas",
}
