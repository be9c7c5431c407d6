"""The savings: optimizations that do not change results, each with a switch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..export.errors import UsageError

ON_CUDA = ("packing", "fusion", "graph")
"""Savings that pay on a GPU only. On a CPU they are available on request, for tests that results do not change."""


@dataclass(frozen=True)
class Savings:
    """The savings of an engine; each can be switched off to measure its effect."""

    reuse: bool = True
    """Run the layers below the tuned one once, not once per candidate."""
    buckets: bool = True
    """Group examples of similar length, so that little padding is computed."""
    answer_only: bool = True
    """Run the last layer's queries and feed-forward block at the answer position only."""
    label_head: bool = True
    """Compute the logits of the label words only, not of the whole vocabulary."""
    prefix: bool = True
    """Run a causal model's prompt once per candidate, not once per example."""
    packing: bool = True
    """Run packed texts, without padding or masks, if the model's attention allows it."""
    fusion: bool = True
    """Run queries, keys and values as one matrix product, and a sum with its norm as one kernel."""
    graph: bool = True
    """Queue a generation as one CUDA graph; no effect without CUDA."""

    @classmethod
    def on(cls, device_type: str, without: Iterable[str] = (), including: Iterable[str] = ()) -> Savings:
        """Return the savings that pay on a device.

        Args:
            device_type: "cpu" or "cuda".
            without: savings to switch off.
            including: savings to switch on although they do not pay there.

        Raises:
            UsageError: if a name is unknown.
        """
        without, including = tuple(without), tuple(including)
        known = [f.name for f in fields(cls)]
        for name in (*without, *including):
            if name not in known:
                raise UsageError(f"there is no saving {name!r}. Choose from: {', '.join(known)}.")
        unpaid = () if device_type == "cuda" else ON_CUDA
        return cls(**{name: name not in without and (name not in unpaid or name in including) for name in known})
