"""The command line's output at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifacts.result import Result
from ..run.seeds import FIGURES, SeedsResult


def summary(result: Result | SeedsResult) -> str:
    """Return a few lines about a run, or a table about the runs of several seeds."""
    return _of_seeds(result) if isinstance(result, SeedsResult) else _of_run(result)


def _of_run(result: Result) -> str:
    zero, tuned, seconds = result.zero_shot, result.tuned, result.seconds
    rows = [
        [result.metric, "zero-shot", "tuned"],
        ["train", "", _percent(tuned.train)],
        ["dev", _percent(zero.dev), _percent(tuned.dev)],
        ["test", _percent(zero.test), _percent(tuned.test)],
    ]
    early = "" if result.stopped_by == "budget" else f" (ended by --{result.stopped_by})"
    return "\n".join(
        [
            _title(result) + f", seed {result.seed}",
            "",
            *aligned(rows),
            "",
            f"{result.evaluations} evaluations in {seconds.tune:.1f} s, {result.evals_per_s:.1f} a second{early}; "
            f"{seconds.export:.1f} s for graphs, {seconds.test:.1f} s for the test",
            f"run: {result.output_dir} (start another from its prompt with --init_from {result.output_dir})",
        ]
    )


def _of_seeds(result: SeedsResult) -> str:
    rows = [["seed", *FIGURES]]
    rows += [[str(one.seed), *(_percent(figure(one)) for figure in FIGURES.values())] for one in result.results]
    spreads = result.spreads.values()
    rows += [["mean", *(_percent(s.mean) for s in spreads)], ["std", *(_percent(s.std) for s in spreads)]]
    lines = [f"{_title(result.results[0])}, {result.results[0].metric}", "", *aligned(rows), ""]
    if result.ensemble is not None:
        lines.append(f"ensemble of the {len(result.results)} prompts on test: {_percent(result.ensemble)}")
    return "\n".join([*lines, f"runs: {result.output_dir}"])


def _title(result: Result) -> str:
    return (
        f"{result.task}, {result.model}: {result.algorithm} in {result.mode} mode, {result.engine} "
        f"{result.precision} on {result.device}"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def aligned_left(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with left-aligned columns."""
    return [line.rstrip() for line in aligned(rows, others="<")]


def aligned(rows: Sequence[Sequence[str]], others: str = ">") -> list[str]:
    """Return rows as lines: the first column left-aligned, the others by default right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<"] + [others] * (len(widths) - 1)
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)) for row in rows
    ]
