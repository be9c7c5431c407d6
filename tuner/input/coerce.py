"""Values from flags, YAML files and Python callers, turned into the types that the options declare."""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from ...export.errors import UsageError

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Turn a value into a declared type.

    Args:
        name: the option's, for the message.
        value: from a flag (text), a YAML file or a Python caller.
        kind: int, float, bool, str, ``Literal[...]``, a ``tuple`` of int, float or str, or one of them with ``None``.

    Raises:
        UsageError: if the value cannot be meant as this type.
    """
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is Literal:
        return _choice(name, value, get_args(kind))
    if get_origin(kind) is tuple:
        return _several(name, value, get_args(kind)[0])
    return _CASTS[kind](name, value)


def _choice(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value in known:
        return str(value)
    raise UsageError(f"{name} is {value!r}, but must be {one_of(known)}.{suggest(str(value), known)}")


def one_of(known: Iterable[str]) -> str:
    """Return "a", or "one of a, b, c"."""
    names = list(known)
    return repr(names[0]) if len(names) == 1 else f"one of {', '.join(names)}"


def _several(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise UsageError(f"{name} is {value!r}, but must be {_SEVERAL[kind]}.")
    return tuple(_CASTS[kind](name, part) for part in parts)


_SEVERAL = {
    int: "whole numbers with commas between them, like 8,13,42",
    float: "numbers with commas between them",
    str: "texts with commas between",
}


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name} is {value!r}, but must be a whole number.") from None


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}, but must be a number.") from None


def _boolean(name: str, value: Any) -> bool:
    known = value if isinstance(value, bool) else BOOLEANS.get(str(value).lower())
    if not isinstance(known, bool):
        raise UsageError(f"{name} is {value!r}, but must be true or false.")
    return known


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise UsageError(f"{name} is {value!r}, but must be text.")
    return os.fspath(value)


_CASTS = {int: _integer, float: _number, bool: _boolean, str: _text}
