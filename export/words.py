"""Combine the label words of a class: the logarithm of their mean probability."""

from __future__ import annotations

import math

from torch import Tensor, stack


def class_logits(logits: Tensor, classes: list[list[int]]) -> Tensor:
    """Return the logits of C classes [..., C] from those of W label words [..., W].

    A class has the mean probability of its words. With the mean of their logits, one word that fits no text would lower
    its class for all texts. If every class has one word, the logits are returned unchanged.

    Args:
        logits: the logits of the words.
        classes: the indices of each class's words.
    """
    if all(len(words) == 1 for words in classes):
        return logits
    pooled = [logits[..., words].logsumexp(dim=-1) - math.log(len(words)) for words in classes]
    return stack(pooled, dim=-1)
