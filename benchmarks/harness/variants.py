"""``benchmarks/gpu.py --lab``: the variants of each engine, and the table that compares them."""

from __future__ import annotations

from typing import Any

from bbt_fast.engine.savings import ON_CUDA

from .breakdown import KINDS, shares
from .contenders import WITH, WITHOUT, parts
from .output import fault, markdown

ENGINES = ("torch", "ort")
APART = {"torch": ("fusion",), "ort": ("packing", "fusion")}
"""The savings that need a process of their own: with and without them an engine compiles other code or exports another
graph, which takes long, so processes do it at the same time. All other variants of an engine share a model."""
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
    """Return the contenders' names: the strong baseline, then each engine with all savings, without one, without any.

    On a CPU these savings are off by default, and fp16 and fp8 are slow: there the list only tests the lab.
    """
    on_cuda = device_type == "cuda"
    precision, more = ("fp16", ("fp8", "fp16-fast")) if on_cuda else ("fp32", ("fp8",))
    names = [f"{BASELINE}-{precision}"]
    for engine in ENGINES:
        cases = [(precision, without) for without in ((), *((saving,) for saving in ON_CUDA), ON_CUDA)]
        for kind, without in [*cases, *((other, ()) for other in more)]:
            mark, savings = (WITHOUT, without) if on_cuda else (WITH, [one for one in ON_CUDA if one not in without])
            names.append(f"bbt-fast-{engine}-{kind}" + (mark + "+".join(savings) if savings else ""))
    return names


def group_of(name: str) -> str:
    """Return the group of contenders that share a process and a model with this one."""
    base, included, ablated = parts(name)
    without = {*ablated, *(set(ON_CUDA) - set(included) if included else ())}
    apart = next((savings for engine, savings in APART.items() if base.startswith(f"bbt-fast-{engine}-")), ())
    return "-".join([base, *(saving for saving in apart if saving in without)])


def table(contenders: dict[str, Any]) -> str:
    """Return the figures of a record's variants as a Markdown table."""
    base = next((row for name, row in contenders.items() if name.startswith(BASELINE) and row["status"] == "ok"), None)
    rows = [[name, *(_cells(row, base) if "evals_per_s" in row else [fault(row)])] for name, row in contenders.items()]
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


def winners(speed: dict[str, dict[str, Any]]) -> str:
    """Name, in one line, the fastest variant with right answers of each engine in each comparison."""
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
