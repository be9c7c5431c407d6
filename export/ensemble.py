"""Several prompts as one classifier: the mean of their label log-probabilities."""

from __future__ import annotations

from torch import Tensor


def pooled(logits: Tensor) -> Tensor:
    """Return what K prompts answer together, [N, C], from the label logits of each, [K, N, C].

    Log-probabilities are averaged, so that a prompt whose logits are large for every class counts no more than another.
    One prompt's logits stay as they are.
    """
    return logits[0] if len(logits) == 1 else logits.float().log_softmax(dim=2).mean(dim=0)
