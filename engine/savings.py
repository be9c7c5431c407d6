"""What an engine leaves out because no result needs it, and how it runs the rest in fewer steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..export.errors import UsageError

ON_CUDA = ("packing", "fusion", "graph")
"""Savings that pay on a GPU only; a CPU has them on request, which shows that they change no result."""


@dataclass(frozen=True)
class Savings:
    """What an engine saves; each can be switched off to measure its worth."""

    reuse: bool = True
    """Run what lies below the tuned layer once, not once per candidate."""
    buckets: bool = True
    """Run examples with others of like length, and compute no padding."""
    answer_only: bool = True
    """Run the last layer's queries and feed-forward block at the answer position only."""
    label_head: bool = True
    """Compute the label words' logits only, not the whole vocabulary's."""
    prefix: bool = True
    """Run a causal model's prompt once per candidate, not once per example."""
    packing: bool = True
    """Run texts as one row of tokens, without padding or masks, where the model's attention allows it."""
    fusion: bool = True
    """Run queries, keys and values as one matrix product, and a sum with the norm that follows it as one kernel."""
    graph: bool = True
    """Queue a generation as one CUDA graph; without CUDA nothing comes of it, even if it is asked for."""

    @classmethod
    def on(cls, device_type: str, without: Iterable[str] = (), including: Iterable[str] = ()) -> Savings:
        """Return the savings that pay on a device.

        Args:
            device_type: "cpu" or "cuda".
            without: savings to switch off.
            including: savings to switch on although they do not pay there.

        Raises:
            UsageError: if there is none of a name.
        """
        without, including = tuple(without), tuple(including)
        known = [f.name for f in fields(cls)]
        for name in (*without, *including):
            if name not in known:
                raise UsageError(f"there is no saving {name!r}; these are: {', '.join(known)}.")
        unpaid = () if device_type == "cuda" else ON_CUDA
        return cls(**{name: name not in without and (name not in unpaid or name in including) for name in known})
