"""The command line's flags, generated from the options: one source for names, types, defaults and help."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...export.errors import UsageError
from ..input.coerce import suggest
from ..input.options import Options

GROUPS = {
    "preset": "task and data",
    "model_name": "model and prompt",
    "algorithm": "search",
    "engine": "engine",
    "eval_every": "run",
}
"""The first option of each group of flags, and the group's title; the options are in the order of ``Options``."""


class Parser(argparse.ArgumentParser):
    """A parser that raises an error of this package instead of printing the usage."""

    def error(self, message: str) -> Any:
        """Raise a UsageError, which suggests a spelling for an unknown flag."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        flags = [spelling for field in fields(Options) for spelling in spellings(field.name)]
        hint = suggest(unknown[1], flags) if unknown and unknown[1] not in flags else ""
        raise UsageError(f"{message}.{hint} `{self.prog} --help` lists the flags.")


def spellings(name: str) -> list[str]:
    """Return --a_b and --a-b."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


@cache
def helps() -> dict[str, str]:
    """Return each option's docstring, which Python does not keep at run time."""
    (body,) = ast.parse(inspect.getsource(Options)).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement in pairwise(body.body):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def add_options(
    parser: argparse.ArgumentParser, wanted: Collection[str] | None = None, meanings: Mapping[str, str] | None = None
) -> None:
    """Add a flag for each option. The namespace holds only the flags that were given, so that presets can set the rest.

    Args:
        parser: gets the flags.
        wanted: only these options.
        meanings: help texts for options that mean something else here than in a run.
    """
    hints, texts = get_type_hints(Options), {**helps(), **(meanings or {})}
    for field in fields(Options):
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        if wanted is None or field.name in wanted:
            group.add_argument(*spellings(field.name), **_argument(field, hints[field.name], texts[field.name]))


def given(args: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """Return those of the named options that were given as flags."""
    return {name: value for name, value in vars(args).items() if name in names}


def checked(args: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """Return those of the named options that were given as flags, converted to their types.

    Raises:
        UsageError: if a value is not valid.
    """
    found = given(args, names)
    options = Options.of(**found)
    return {name: getattr(options, name) for name in found}


def _argument(field: Field[Any], hint: Any, text: str) -> dict[str, Any]:
    default = "" if field.default in (None, MISSING) else f" (default: {field.default})"
    known = {"dest": field.name, "default": argparse.SUPPRESS, "help": (text + default).replace("%", "%%")}
    if hint is bool:
        return known | {"action": argparse.BooleanOptionalAction}
    if field.name == "resume":  # without a folder, the error names the last unfinished run
        known["nargs"] = "?"
    return known | {"metavar": _metavar(hint)}


def _metavar(hint: Any) -> str:
    kinds = [hint, *get_args(hint)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return "{" + ",".join(get_args(kind)) + "}"
        if get_origin(kind) is tuple:
            return "N,N,..." if int in get_args(kind) else "TEXT,TEXT,..."
    return next(word for kind, word in {int: "N", float: "X", str: "TEXT"}.items() if kind in kinds)
