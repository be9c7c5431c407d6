"""``bbt-fast tokens``: which tokens of the vocabulary the vectors of tuned prompts lie near."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...export.errors import UsageError
from .quiet import hide_progress_bars

if TYPE_CHECKING:
    from torch import Tensor

    from ..report.curves import RunView
    from ..report.tokens import Agreement, Near, Position
    from ..run.setup import Setup

DESCRIPTION = "Name the tokens nearest to each position of a tuned prompt, and what several runs have in common."
TOP = 3
MOST_SHARED = 20


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--run", nargs="+", required=True, metavar="DIR", help="a run's folder, or a folder of runs")
    parser.add_argument("--top", type=int, default=TOP, metavar="N", help=f"tokens to name each time (default: {TOP})")


def run(args: argparse.Namespace) -> str:
    """Return what is near the prompts."""
    from ..artifacts.prompt import read_prompt
    from ..report.curves import find_runs
    from ..report.tokens import agreement
    from ..run.setup import Setup
    from ..tasks.task import load_task

    if args.top < 1:
        raise UsageError(f"--top is {args.top}, but must be at least 1.")
    views = find_runs([Path(folder) for folder in args.run])
    hide_progress_bars()
    setups: dict[str | None, Setup] = {}  # loads each model once
    prompts, found, sections = [], [], []
    for view in views:
        options = view.options
        setup = setups.setdefault(options.model_name, Setup(options, load_task(options.task_name)))
        prompts.append(read_prompt(view.path)[0][0])
        found.append(_positions(setup, view, prompts[-1], args.top))
        sections.append(_section(view, found[-1], _namer(setup)))
    kinds = {(v.options.model_name, v.options.cat_or_add, v.options.n_prompt_tokens) for v in views}
    if len(views) > 1 and len(kinds) == 1:
        sections.append(_together(agreement(prompts, found), len(views), _namer(setup)))
    elif len(views) > 1:
        sections.append(["The runs differ in model, mode or prompt length; their prompts are not compared."])
    return "\n\n".join("\n".join(section) for section in sections)


def _positions(setup: Setup, view: RunView, prompt: Tensor, top: int) -> list[Position]:
    """Return the positions of a run's prompt [n, H]."""
    import torch

    from ...export.model import StagedModel
    from ..data.encoding import placeholder_ids
    from ..report.tokens import look_at
    from ..run.setup import CUTS

    mode, tokenizer = view.options.cat_or_add, setup.tokenizer
    staged = StagedModel(setup.model, mode, len(prompt), CUTS[view.options.algorithm])
    placeholders = placeholder_ids(tokenizer, len(prompt)) if mode == "add" else []
    special, known = set(tokenizer.all_special_ids), set(tokenizer.get_vocab().values())
    plain = torch.tensor([i in known and i not in special for i in range(len(staged.word_embeddings))])
    return look_at(staged, prompt, placeholders, plain, top)


def _namer(setup: Setup) -> Callable[[Any], str]:
    return lambda token: repr(setup.tokenizer.decode([token]))


def _section(view: RunView, positions: Sequence[Position], name: Callable[[Any], str]) -> list[str]:
    """Return the lines about one run."""
    from ..report.summary import aligned_left

    def names(tokens: Sequence[Near]) -> str:
        return ", ".join(f"{name(near.token)} {near.cosine:.2f}" for near in tokens)

    o = view.options
    title = f"{view.path}: {o.task_name}, {o.model_name}, {o.algorithm} in {o.cat_or_add} mode, seed {o.seed}"
    if o.cat_or_add == "add":
        rows = [["position", "placeholder", "enters near", "moved towards"]]
        rows += [[str(i), name(p.placeholder), names(p.nearest), names(p.towards)] for i, p in enumerate(positions)]
        stay = sum(p.nearest[0].token == p.placeholder for p in positions)
        notes = ["", f"At {stay} of {len(positions)} positions the placeholder is still the nearest token."]
    else:
        rows = [["position", "near"], *([str(i), names(p.nearest)] for i, p in enumerate(positions))]
        notes = []
    if o.algorithm == "bbtv2":
        notes.append("Deeper prompts enter hidden states, where no token has a place; this is the one at the input.")
    return [title, "", *aligned_left(rows), *notes]


def _together(common: Agreement, runs: int, name: Callable[[Any], str]) -> list[str]:
    """Return the lines about what several runs have in common."""
    shared = ", ".join(f"{name(token)} ({count})" for token, count in common.tokens[:MOST_SHARED])
    more = len(common.tokens) - MOST_SHARED
    return [
        f"The {runs} runs together",
        "",
        f"mean cosine of two runs' prompts at the same position: {common.cosine:.3f}",
        f"same token named at the same position by two runs: {common.in_place} times",
        f"tokens named by several runs (how many): {shared or 'none'}" + (f" and {more} more" if more > 0 else ""),
    ]
