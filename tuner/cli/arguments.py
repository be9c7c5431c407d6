"""The command line's flags, generated from the options: one source for names, types, defaults and help."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...export.errors import UsageError
from ..input.coerce import suggest
from ..input.options import Options

GROUPS = {
    "task and data": (
        "preset", "task_name", "data_dir", "column_mapping", "max_test_examples", "k_shot", "wording", "long_texts",
        "templates", "label_words", "calibrate",
    ),
    "model and prompt": ("model_name", "allow_pickle", "cat_or_add", "n_prompt_tokens", "init_text", "init_from"),
    "search": (
        "algorithm", "alg", "optimizer", "intrinsic_dim", "random_proj", "projection_from", "embeddings", "budget",
        "popsize", "sigma", "alpha", "bound", "loss_type", "keep", "select", "streams", "seed", "seeds",
    ),
    "engine": (
        "engine", "url", "api_key", "inference_framework", "onnx_model_path", "precision", "device", "workers",
        "ray_address", "batch_size", "parallel",
    ),
    "run": (
        "eval_every", "print_every", "max_time", "target_metric", "patience", "plots", "report_to", "output_dir",
        "resume", "push_to_hub",
    ),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are errors of this package: a sentence, not a page of usage."""

    def error(self, message: str) -> Any:
        """Raise instead of printing the usage and leaving."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        flags = [spelling for names in GROUPS.values() for name in names for spelling in spellings(name)]
        hint = suggest(unknown[1], flags) if unknown and unknown[1] not in flags else ""
        raise UsageError(f"{message}.{hint} `{self.prog} --help` lists the flags.")


def spellings(name: str) -> list[str]:
    """Return --a_b and --a-b."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


@cache
def helps() -> dict[str, str]:
    """Return each option's docstring, which Python itself throws away."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(Options))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def add_options(
    parser: argparse.ArgumentParser, wanted: Collection[str] | None = None, meanings: Mapping[str, str] | None = None
) -> None:
    """Add a flag for every option; those not given stay out of the namespace, so that files and presets can speak.

    Args:
        parser: gets the flags.
        wanted: only these options.
        meanings: help texts for options that mean something else here than in a run.
    """
    known = {field.name: field for field in fields(Options)}
    hints = get_type_hints(Options)
    for title, names in GROUPS.items():
        names = tuple(name for name in names if wanted is None or name in wanted)
        if not names:
            continue
        group = parser.add_argument_group(title)
        for name in names:
            group.add_argument(*spellings(name), **_argument(known[name], hints[name], (meanings or {}).get(name)))


def _argument(field: Field[Any], hint: Any, meaning: str | None) -> dict[str, Any]:
    known: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    default = "" if field.default in (None, MISSING) else f" (default: {field.default})"
    known["help"] = ((meaning or helps()[field.name]) + default).replace("%", "%%")
    if hint is bool:
        return known | {"action": argparse.BooleanOptionalAction}
    if field.name == "resume":  # without a folder it is told which there is
        known |= {"nargs": "?"}
    return known | {"metavar": _metavar(hint)}


def _metavar(hint: Any) -> str:
    kinds = [hint, *get_args(hint)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return "{" + ",".join(get_args(kind)) + "}"
        if get_origin(kind) is tuple:
            return "N,N,..." if int in get_args(kind) else "TEXT,TEXT,..."
    return next(word for kind, word in {int: "N", float: "X", str: "TEXT"}.items() if kind in kinds)
