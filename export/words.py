"""Several label words as one class: the logarithm of their mean probability."""

from __future__ import annotations

import math

from torch import Tensor, stack


def class_logits(logits: Tensor, classes: list[list[int]]) -> Tensor:
    """Return the logits of C classes, [..., C], from those of W label words, [..., W].

    A class is as likely as the mean of its words. The mean of their logits instead would let a word that fits no text
    pull its class down, for all texts alike. A class of one word has its logit.

    Args:
        logits: of the words.
        classes: per class, which of the words are its own.
    """
    if all(len(words) == 1 for words in classes):
        return logits
    pooled = [logits[..., words].logsumexp(dim=-1) - math.log(len(words)) for words in classes]
    return stack(pooled, dim=-1)
