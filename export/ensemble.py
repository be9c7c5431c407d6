"""Several prompts as one classifier: the mean of their label log-probabilities."""

from __future__ import annotations

from torch import Tensor


def pooled(logits: Tensor) -> Tensor:
    """Average the answers of K prompts: label logits [K, N, C] -> [N, C].

    The mean is over log-probabilities, so a prompt with large logits has no more weight than another. The logits of a
    single prompt are returned unchanged.
    """
    return logits[0] if len(logits) == 1 else logits.float().log_softmax(dim=2).mean(dim=0)
