"""``bbt-fast tokens``: which tokens of the vocabulary the vectors of tuned prompts lie near."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .quiet import hide_progress_bars

DESCRIPTION = "Name the tokens nearest to each position of a tuned prompt, and what several runs have in common."
TOP = 3
MOST_SHARED = 20


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--run", nargs="+", required=True, metavar="DIR", help="a run's folder, or a folder of runs")
    parser.add_argument("--top", type=int, default=TOP, metavar="N", help=f"tokens to name each time (default: {TOP})")


def run(args: argparse.Namespace) -> str:
    """Return what is near the prompts.

    Args:
        args: ``run``, the folders, and ``top``.

    Raises:
        BbtFastError: if a folder holds no run or no prompt, its model cannot be loaded, or the runs do not go together.
    """
    from ...export.errors import UsageError
    from ..artifacts.prompt import read_prompt
    from ..report.curves import find_runs
    from ..report.tokens import agreement

    if args.top < 1:
        raise UsageError(f"--top is {args.top}, but must be at least 1.")
    views = find_runs([Path(folder) for folder in args.run])
    hide_progress_bars()
    looks = Looks()
    prompts = [read_prompt(view.path)[0][0] for view in views]
    found = [looks.at(view.options, prompt, args.top) for view, prompt in zip(views, prompts, strict=True)]
    sections = [looks.section(view, positions) for view, positions in zip(views, found, strict=True)]
    kinds = {(v.options.model_name, v.options.cat_or_add, v.options.n_prompt_tokens) for v in views}
    if len(views) > 1 and len(kinds) == 1:
        sections.append(looks.together(agreement(prompts, found), len(views)))
    elif len(views) > 1:
        sections.append(["The runs differ in model, mode or prompt length; their prompts are not compared."])
    return "\n\n".join("\n".join(section) for section in sections)


class Looks:
    """Looks at the prompts of runs; a model that several have is loaded once."""

    def __init__(self) -> None:
        """Begin with no model."""
        self._setups: dict[Any, Any] = {}
        self._tokenizer: Any = None

    def at(self, options: Any, prompt: Any, top: int) -> list[Any]:
        """Return the positions of a run's prompt [n, H]."""
        import torch

        from ...export.model import StagedModel
        from ..data.encoding import placeholder_ids
        from ..report.tokens import look_at
        from ..run.setup import CUTS, Setup
        from ..tasks.task import load_task

        key = options.model_name
        if key not in self._setups:
            self._setups[key] = Setup(options, load_task(options.task_name))
        setup = self._setups[key]
        self._tokenizer = setup.tokenizer
        n = len(prompt)
        staged = StagedModel(setup.model, options.cat_or_add, n, CUTS[options.algorithm])
        ids = placeholder_ids(setup.tokenizer, n) if options.cat_or_add == "add" else []
        plain = torch.ones(len(staged.word_embeddings), dtype=torch.bool)
        known = set(setup.tokenizer.get_vocab().values()) - set(setup.tokenizer.all_special_ids)
        plain[[i for i in range(len(plain)) if i not in known]] = False
        return look_at(staged, prompt, ids, plain, top)

    def section(self, view: Any, positions: Sequence[Any]) -> list[str]:
        """Return the lines about one run."""
        from ..report.summary import aligned_left

        o = view.options
        title = f"{view.path}: {o.task_name}, {o.model_name}, {o.algorithm} in {o.cat_or_add} mode, seed {o.seed}"
        added = o.cat_or_add == "add"
        rows = [["position", "placeholder", "enters near", "moved towards"] if added else ["position", "near"]]
        for i, at in enumerate(positions):
            near, towards = self._names(at.nearest), self._names(at.towards)
            rows.append([str(i), self._name(at.placeholder), near, towards] if added else [str(i), near])
        lines = [title, "", *aligned_left(rows)]
        if added:
            stay = sum(at.nearest[0].token == at.placeholder for at in positions)
            lines += ["", f"At {stay} of {len(positions)} positions the placeholder is still the nearest token."]
        if o.algorithm == "bbtv2":
            lines.append(
                "Deeper prompts enter hidden states, where no token has a place; this is the one at the input."
            )
        return lines

    def together(self, common: Any, runs: int) -> list[str]:
        """Return the lines about what several runs have in common."""
        shared = ", ".join(f"{self._name(token)} ({count})" for token, count in common.tokens[:MOST_SHARED])
        more = len(common.tokens) - MOST_SHARED
        return [
            f"The {runs} runs together",
            "",
            f"mean cosine of two runs' prompts at the same position: {common.cosine:.3f}",
            f"same token named at the same position by two runs: {common.in_place} times",
            f"tokens named by several runs (how many): {shared or 'none'}" + (f" and {more} more" if more > 0 else ""),
        ]

    def _names(self, near: Sequence[Any]) -> str:
        return ", ".join(f"{self._name(one.token)} {one.cosine:.2f}" for one in near)

    def _name(self, token: int) -> str:
        return repr(self._tokenizer.decode([token]))
