"""Templates: strings with the fields ``{text}`` (or ``{text_a}`` and ``{text_b}``) and ``{mask}``."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...export.families import Kind

MASK: Final = "mask"
ONE_TEXT: Final = ("text",)
TWO_TEXTS: Final = ("text_a", "text_b")


@dataclass(frozen=True)
class Rendered:
    """A template with its fields filled in."""

    text: str
    spans: Mapping[str, tuple[int, int]]
    """Per field, where its value begins and ends in ``text``."""


def parts(template: str) -> list[tuple[str, str | None]]:
    """Split a template into (literal text, name of the field after it or None).

    Raises:
        ValueError: if braces are unpaired, or hold more than a name.
    """
    found = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        if spec or conversion:
            raise ValueError(f"{{{name}}} has more than a name in its braces")
        found.append((literal, name))
    return found


def field_names(template: str) -> list[str]:
    """Return the names in braces, in order."""
    return [name for _, name in parts(template) if name is not None]


def text_names(template: str) -> tuple[str, ...]:
    """Return ``("text",)`` or ``("text_a", "text_b")``, the template's text fields."""
    return ONE_TEXT if ONE_TEXT[0] in field_names(template) else TWO_TEXTS


def problem_of(template: str, kind: Kind) -> str | None:
    """Return the error in a template for a model kind, as the predicate of a sentence, or None."""
    try:
        names = field_names(template)
    except ValueError as error:
        return f"cannot be read: {error}. A brace itself is written {{{{ or }}}}."
    if sorted(name for name in names if name != MASK) not in (list(ONE_TEXT), list(TWO_TEXTS)):
        return "must hold {text} once, or {text_a} and {text_b} once each, and beside {mask} nothing else in braces."
    if kind == "decoder" and (MASK in names or template != template.rstrip()):
        return "must end where the answer begins, without {mask} and without a space."
    if kind != "decoder" and names.count(MASK) != 1:
        return "must hold {mask} exactly once."
    return None


def before_answer(template: str) -> str:
    """Return the literal text just before the answer: before ``{mask}``, or at the end of a template without it."""
    for literal, name in parts(template):
        if name == MASK:
            return literal
    return literal if name is None else ""


def render(template: str, values: Mapping[str, str]) -> Rendered:
    """Fill in a template's fields, including the mask."""
    text, spans = "", {}
    for literal, name in parts(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(values[name]))
            text += values[name]
    return Rendered(text, spans)
