"""Floating-point operations of a round, as a contender executes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bbt_fast.engine import Savings
from bbt_fast.export.families import family_of


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model and of its label words."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    labels: int
    causal: bool = False

    @classmethod
    def of(cls, config: Any, labels: int) -> Sizes:
        """Read them from a `transformers` configuration."""
        inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
        layers, causal = config.num_hidden_layers, family_of(config).kind == "decoder"
        return cls(config.hidden_size, inner, layers, config.num_attention_heads, config.vocab_size, labels, causal)


def round_flops(
    sizes: Sizes, lengths: Tensor, tuned: tuple[int, ...], population: int, savings: Savings, prefix: int = 0
) -> float:
    """Count a round of one generation per tuned layer; a multiply-add is two.

    Only matrix products count: projections, attention scores and sums, feed-forward blocks and the head.

    Args:
        sizes: the model's.
        lengths: [N], tokens per text, prompt included.
        tuned: the layers whose prompts are tuned, one generation each.
        population: P.
        savings: the contender's savings.
        prefix: the number of positions up to the prompt's end; a causal model runs them once for all texts.
    """
    seen = lengths if savings.buckets else lengths.new_full(lengths.shape, int(lengths.max()))
    before = prefix if sizes.causal and savings.prefix else 0
    answer = head_flops(sizes, len(lengths), savings.label_head)
    last = last_layer_flops(sizes, seen, before) if savings.answer_only else layer_flops(sizes, seen, before)
    total = 0.0
    for layer in tuned:
        first = layer if savings.reuse else 0
        total += population * ((sizes.layers - 1 - first) * layer_flops(sizes, seen, before) + last + answer)
        if savings.reuse and layer:
            total += layer_flops(sizes, seen, before)  # the layer below, once, under its new prompt
    return total


def layer_flops(sizes: Sizes, lengths: Tensor, before: int = 0) -> float:
    """Count one layer on texts of these lengths, whose first ``before`` positions run only once."""
    tokens = float((lengths - before).sum()) + before
    squares = float(((lengths - before) * lengths).sum()) + before**2
    per_token = 8 * sizes.hidden**2 + 4 * sizes.hidden * sizes.inner
    return tokens * per_token + squares * 4 * sizes.hidden


def last_layer_flops(sizes: Sizes, lengths: Tensor, before: int = 0) -> float:
    """Count the last layer at the answer position only.

    In a masked model each head attends to the hidden states themselves, and the key and value matrices apply to one
    query. A causal model computes keys and values at all positions.
    """
    seen, texts = float(lengths.sum()), len(lengths)
    tokens = float((lengths - before).sum()) + before
    answer = texts * (4 * sizes.hidden**2 + 4 * sizes.hidden * sizes.inner)
    if sizes.causal:
        return answer + tokens * 4 * sizes.hidden**2 + seen * 4 * sizes.hidden
    return answer + texts * 4 * sizes.hidden**2 + seen * 4 * sizes.hidden * sizes.heads


def head_flops(sizes: Sizes, texts: int, label_words_only: bool) -> float:
    """Count the language-model head at the answer position."""
    rows = sizes.labels if label_words_only else sizes.vocabulary
    return texts * (2 * sizes.hidden**2 + 2 * sizes.hidden * rows)
