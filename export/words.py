"""Label words: the vocabulary rows of each class, and the logits of classes from those of words."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, stack, tensor


@dataclass(frozen=True)
class LabelWords:
    """The label words of C classes."""

    classes: tuple[tuple[int, ...], ...]
    """Per class, the vocabulary rows of its words."""
    bias: tuple[float, ...] = ()
    """A bias for each word's logit, class after class; empty for none."""

    @property
    def rows(self) -> list[int]:
        """The vocabulary rows of all words, [W], class after class."""
        return [row for words in self.classes for row in words]

    @property
    def places(self) -> list[list[int]]:
        """The indices of each class's words among all W."""
        ends = list(itertools.accumulate(map(len, self.classes)))
        return [list(range(end - len(words), end)) for end, words in zip(ends, self.classes, strict=True)]

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of ``Examples`` for these words."""
        of_words = [c for c, words in enumerate(self.classes) for _ in words]
        return {
            "label_token_ids": tensor(self.rows),
            "label_classes": tensor(of_words) if len(of_words) > len(self.classes) else None,
            "label_bias": tensor(self.bias) if self.bias else None,
        }


def class_logits(logits: Tensor, classes: list[list[int]], bias: Tensor | None = None) -> Tensor:
    """Return the logits of C classes, [..., C], from those of W label words, [..., W].

    A class has the mean probability of its words. With the mean of their logits, one word that fits no text would lower
    its class for all texts. If every class has one word, the logits are returned unchanged.

    Args:
        logits: the logits of the words.
        classes: the indices of each class's words.
        bias: [W], added to the logits of the words.
    """
    if bias is not None:
        logits = logits + bias
    if all(len(words) == 1 for words in classes):
        return logits
    pooled = [logits[..., words].logsumexp(dim=-1) - math.log(len(words)) for words in classes]
    return stack(pooled, dim=-1)
