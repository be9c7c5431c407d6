"""YAML files whose errors name the line.

The file is composed into nodes, never constructed: no tag can create an object, and words such as ``No`` and ``Yes``,
which YAML 1.1 turns into booleans, stay words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml

from ...export.errors import DataError, UsageError
from .coerce import Range, coerce

DOCUMENT = "the file"


class Value:
    """One value of a YAML file, with its line. A method that reads it raises a DataError if it is of another kind."""

    def __init__(self, node: yaml.Node, path: Path, what: str) -> None:
        self._node = node
        self._path = path
        self._what = what

    def error(self, problem: str) -> DataError:
        """Return an error that names this value and its line."""
        return self._error(f"{self._what} {problem}")

    def _error(self, message: str) -> DataError:
        return DataError(f"{self._path}, line {self._node.start_mark.line + 1}: {message}")

    @property
    def is_text(self) -> bool:
        """Whether this is a single word, number or string."""
        return isinstance(self._node, yaml.ScalarNode)

    @property
    def is_mapping(self) -> bool:
        """Whether this is a mapping."""
        return isinstance(self._node, yaml.MappingNode)

    def any_text(self) -> str:
        """Return a string, which may be empty."""
        if not isinstance(self._node, yaml.ScalarNode):
            raise self.error("must be one string.")
        return str(self._node.value)

    def text(self) -> str:
        """Return a string that is not empty."""
        if not self.any_text().strip():
            raise self.error("is empty.")
        return self.any_text()

    def one_of(self, names: Iterable[str]) -> str:
        """Return a string that is one of these names."""
        names = tuple(names)
        if self.text() not in names:
            raise self.error(f"is {self.text()!r}; it must be one of {', '.join(names)}.")
        return self.text()

    def of(self, kind: Any) -> Any:
        """Return a string or a list of strings, converted to a type that ``coerce`` knows."""
        try:
            return coerce(self._what, self.text() if self.is_text else self.texts(), kind)
        except UsageError as error:
            raise self._error(str(error)) from None

    def number(self) -> float:
        """Return a finite number above zero."""
        return float(self.of(Annotated[float, Range(0, open_low=True)]))

    def count(self) -> int:
        """Return a whole number above zero."""
        if not self.number().is_integer():
            raise self.error(f"is {self.text()}, but must be a whole number.")
        return int(self.number())

    def flag(self) -> bool:
        """Return true or false."""
        return self.one_of(("true", "false")) == "true"

    def items(self) -> Iterator[Value]:
        """Yield the values of a list that is not empty."""
        if not isinstance(self._node, yaml.SequenceNode):
            raise self.error("must be a list.")
        if not self._node.value:
            raise self.error("is an empty list.")
        for i, node in enumerate(self._node.value):
            yield Value(node, self._path, f"{self._what}[{i}]")

    def texts(self) -> tuple[str, ...]:
        """Return a list of strings, none of them twice."""
        found: list[str] = []
        for item in self.items():
            if item.text() in found:
                raise item.error(f"is {item.text()!r}, which the list already holds.")
            found.append(item.text())
        return tuple(found)

    def fields(self, known: Iterable[str] | None = None, required: Iterable[str] = ()) -> dict[str, Value]:
        """Return a mapping's values by their keys.

        Args:
            known: the keys that may occur; None allows any.
            required: the keys that must occur.

        Raises:
            DataError: for an unknown, missing or repeated key, or if it is not a mapping.
        """
        if not isinstance(self._node, yaml.MappingNode):
            raise self.error("must be a mapping (lines of `key: value`).")
        names = None if known is None else tuple(known)
        found: dict[str, Value] = {}
        for key_node, node in self._node.value:
            key = Value(key_node, self._path, "a key").text()
            here = Value(key_node, self._path, self._what)
            if names is not None and key not in names:
                raise here.error(f"has an unknown key {key!r}; the keys are {', '.join(names)}.")
            if key in found:
                raise here.error(f"has the key {key!r} twice.")
            found[key] = Value(node, self._path, key if self._what == DOCUMENT else f"{self._what}.{key}")
        for key in required:
            if key not in found:
                raise self.error(f"lacks the key {key!r}.")
        return found


def value_of(content: Any, path: Path, what: str) -> Value:
    """Return a part of a JSON file as a value of a YAML file that errors call ``what``."""
    node: Any = yaml.compose(json.dumps(content, ensure_ascii=False), Loader=yaml.SafeLoader)
    return Value(node, path, what)


def read_yaml(path: Path) -> Value:
    """Read a YAML file of one document.

    Raises:
        DataError: if the file cannot be read or is not YAML; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: this is not UTF-8 text. Save the file as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{where}: this is not YAML: {error.problem or error.context}.") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise DataError(f"{path}, line {line}: YAML allows no character {error.character:#06x}.") from None
    except (RecursionError, yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path} is not YAML that can be read: {type(error).__name__}.") from None
    if node is None:
        raise DataError(f"{path} is empty.")
    return Value(node, path, DOCUMENT)
