"""``benchmarks/gpu.py --lab``: each engine's variants side by side, so that one run on one card decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bbt_fast.engine.savings import ON_CUDA

from .breakdown import KINDS, shares
from .contenders import WITH, WITHOUT
from .output import markdown

ENGINES = ("torch", "ort")
APART = {"torch": ("fusion",), "ort": ("packing", "fusion")}
"""The savings by which each engine's variants are divided among processes: with and without them other code is compiled
or another graph exported, which takes long, so they do it side by side. All others share a model and its memory."""
BASELINE = "torch-best"
HEADINGS = (
    "variant",
    "Spearman",
    "loss error / spread",
    "ms per generation",
    "evals_per_s",
    "times torch-best",
    *KINDS,
    "attention ran on",
)


def variants(device_type: str) -> list[str]:
    """Return the contenders' names: the strong baseline, then each engine with all, without one, and without any.

    A CPU has what pays on CUDA only on request, and neither fp16 nor fp8 worth timing: it shows that the lab works.
    """
    on_cuda = device_type == "cuda"
    precision, more = ("fp16", ("fp8", "fp16-fast")) if on_cuda else ("fp32", ("fp8",))
    names = [f"{BASELINE}-{precision}"]
    for engine in ENGINES:
        base = f"bbt-fast-{engine}-{precision}"
        for without in ((), *((saving,) for saving in ON_CUDA), ON_CUDA):
            included = () if on_cuda else tuple(saving for saving in ON_CUDA if saving not in without)
            left_out = without if on_cuda else ()
            names.append(base + _joined(WITH, included) + _joined(WITHOUT, left_out))
        included = () if on_cuda else ON_CUDA
        names += [f"bbt-fast-{engine}-{one}{_joined(WITH, included)}" for one in more]
    return names


def _joined(mark: str, savings: Sequence[str]) -> str:
    return mark + "+".join(savings) if savings else ""


def group_of(name: str) -> str:
    """Return which contenders share a process and a model, by their names."""
    base, without = _split(name)
    apart = next((savings for engine, savings in APART.items() if base.startswith(f"bbt-fast-{engine}-")), ())
    return "-".join([base, *(saving for saving in apart if saving in without)])


def _split(name: str) -> tuple[str, frozenset[str]]:
    """Return a variant's engine and precision, and which of CUDA's savings it is without."""
    base, _, without = name.partition(WITHOUT)
    base, mark, included = base.partition(WITH)
    left_out = set(without.split("+")) | (set(ON_CUDA) - set(included.split("+")) if mark else set())
    return base, frozenset(left_out & set(ON_CUDA))


def table(contenders: dict[str, Any]) -> str:
    """Return variants' figures, as a record has them, as a Markdown table."""
    base = next((row for name, row in contenders.items() if name.startswith(BASELINE) and row["status"] == "ok"), None)
    rows = [
        [name, *(_cells(row, base) if row["status"] == "ok" else [f"**{row['status']}**: {_first_line(row)}"])]
        for name, row in contenders.items()
    ]
    return "\n".join(markdown(HEADINGS, f"l{'r' * (len(HEADINGS) - 2)}l", rows))


def _cells(row: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    found, parts = row["agreement"], shares(row) or {}
    return [
        f"{found['spearman']:.4f}",
        f"{found['mean_loss_error'] / found['loss_spread']:.4f}",
        f"{row['generation_ms']:.1f}",
        f"{row['evals_per_s']:.3g}",
        f"{row['evals_per_s'] / base['evals_per_s']:.2f}" if base else "",
        *(f"{parts[kind]:.0%}" if parts else "" for kind in KINDS),
        row["attention_kernel"],
    ]


def _first_line(row: dict[str, Any]) -> str:
    return str(row["reason"]).splitlines()[0][:100].replace("|", "/")


def winners(speed: dict[str, dict[str, Any]]) -> str:
    """Say in one line which variant of each engine is fastest in each comparison, of those that gave right answers."""
    found = []
    for algorithm, record in speed.items():
        for engine in ENGINES:
            times = {
                name: row["generation_ms"]
                for name, row in record["contenders"].items()
                if name.startswith(f"bbt-fast-{engine}-") and row["status"] == "ok"
            }
            best = min(times, key=lambda name: float(times[name]), default=None)
            what = "none ran" if best is None else f"{best} ({times[best]:.1f} ms)"
            found.append(f"{algorithm} {engine}: {what}")
    return "Fastest: " + "; ".join(found) + "."
