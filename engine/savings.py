"""What an engine leaves out because no result needs it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..export.errors import UsageError


@dataclass(frozen=True)
class Savings:
    """What an engine leaves out because no result needs it; each can be switched off to measure its worth."""

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

    @classmethod
    def without(cls, *names: str) -> Savings:
        """Return all savings but these.

        Raises:
            UsageError: if there is none of that name.
        """
        known = [f.name for f in fields(cls)]
        for name in names:
            if name not in known:
                raise UsageError(f"there is no saving {name!r} to ablate; these are: {', '.join(known)}.")
        return cls(**dict.fromkeys(names, False))
