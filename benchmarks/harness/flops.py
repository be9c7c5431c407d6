"""Floating-point operations of a round, as a contender executes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bbt_fast.engine import Savings


@dataclass(frozen=True)
class Sizes:
    """What the count needs to know of a model and its texts."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int
    labels: int

    @classmethod
    def of(cls, config: Any, labels: int) -> Sizes:
        """Read them from a `transformers` configuration."""
        return cls(config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size, labels)


def round_flops(sizes: Sizes, lengths: Tensor, tuned: tuple[int, ...], population: int, savings: Savings) -> float:
    """Count a round of one generation per tuned layer; a multiply-add is two.

    Counted are matrix products only: projections, attention scores and sums, feed-forward blocks and the head.

    Args:
        sizes: the model's.
        lengths: [N], tokens per text, prompt included.
        tuned: the layers whose prompts are tuned, one generation each.
        population: P.
        savings: what the contender leaves out.
    """
    seen = lengths if savings.buckets else lengths.new_full(lengths.shape, int(lengths.max()))
    answer = head_flops(sizes, len(lengths), savings.label_head)
    last = last_layer_flops(sizes, seen) if savings.answer_only else layer_flops(sizes, seen)
    total = 0.0
    for layer in tuned:
        first = layer if savings.reuse else 0
        total += population * ((sizes.layers - 1 - first) * layer_flops(sizes, seen) + last + answer)
        if savings.reuse and layer:
            total += layer_flops(sizes, seen)  # the layer below, once, under its new prompt
    return total


def layer_flops(sizes: Sizes, lengths: Tensor) -> float:
    """Count one layer on texts of these lengths."""
    tokens, squares = float(lengths.sum()), float((lengths * lengths).sum())
    per_token = 8 * sizes.hidden**2 + 4 * sizes.hidden * sizes.inner
    return tokens * per_token + squares * 4 * sizes.hidden


def last_layer_flops(sizes: Sizes, lengths: Tensor) -> float:
    """Count the last layer when only the answer position is computed: keys and values for all, the rest for one."""
    tokens, texts = float(lengths.sum()), len(lengths)
    return (
        tokens * 4 * sizes.hidden**2
        + texts * (4 * sizes.hidden**2 + 4 * sizes.hidden * sizes.inner)
        + tokens * 4 * sizes.hidden
    )


def head_flops(sizes: Sizes, texts: int, label_words_only: bool) -> float:
    """Count the language-model head at the answer position."""
    rows = sizes.labels if label_words_only else sizes.vocabulary
    return texts * (2 * sizes.hidden**2 + 2 * sizes.hidden * rows)
