"""A stock model's answers to templated texts: the label words' logits at the answer's position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bbt_fast.benchmarks.methods.method import Case
from bbt_fast.export.examples import Examples
from bbt_fast.export.layers import take

TOKENS = 2**13
"""Tokens of a batch outside training, with padding: enough to keep a GPU busy."""


def inputs_of(examples: Examples) -> dict[str, Tensor]:
    """Return the arguments of a stock model's forward()."""
    inputs = {"input_ids": examples.input_ids, "attention_mask": examples.attention_mask}
    if examples.decoder_input_ids is not None:
        inputs["decoder_input_ids"] = examples.decoder_input_ids
    return inputs


def label_logits(model: Any, examples: Examples) -> Tensor:
    """Return the label words' logits at the answer's position, [N, C]; gradients flow.

    The head runs at that position only: at all positions it costs as much as the layers of a small model.

    Args:
        model: a `transformers` model with a language-model head, or one that wraps it.
        examples: on its device.
    """
    position = examples.answer_position
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (take(args[0], position, 1),))
    try:
        logits: Tensor = model(**inputs_of(examples)).logits
    finally:
        hook.remove()
    return logits[:, 0, examples.label_token_ids]


def answer_of(case: Case, part: str, model: Any = None) -> Tensor:
    """Return the label words' logits for all texts of a part, [N, C], from the case's model or one that wraps it."""
    answering = case.model if model is None else model
    return in_batches(case.examples(part), lambda some: label_logits(answering, some.to(case.device)))


def in_batches(examples: Examples, answer: Callable[[Examples], Tensor], tokens: int = TOKENS) -> Tensor:
    """Return the answers [N, ...] to any number of examples, without gradients, in batches of similar lengths."""
    order = torch.argsort(examples.lengths, stable=True)
    sizes = _sizes(examples.lengths[order].tolist(), tokens)
    with torch.no_grad():
        found = torch.cat([answer(examples.select(rows)).cpu() for rows in torch.split(order, sizes)])
    return found[torch.argsort(order)]


def _sizes(lengths: list[int], tokens: int) -> list[int]:
    """Return the size of each batch of texts of ascending lengths: at least one, and as many as fit."""
    sizes = [0]
    for length in lengths:
        if sizes[-1] and (sizes[-1] + 1) * length > tokens:
            sizes.append(0)
        sizes[-1] += 1
    return sizes
