"""In-context learning (Brown et al. 2020): training examples with their label words precede the text.

Each text gets as many as the model has room for, at most ``demonstrations``. The seed draws their order, in which the
classes alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bbt_fast.benchmarks.methods.method import Case, Fitted
from bbt_fast.benchmarks.methods.prompting import in_batches, label_logits
from bbt_fast.export.examples import Examples
from bbt_fast.export.families import family_of
from bbt_fast.tuner.data.encoding import longest_sequence, pad_id
from bbt_fast.tuner.data.splits import Row

SEPARATOR = {"decoder": "\n", "masked": " ", "seq2seq": " "}
"""Between demonstrations, by the model's kind: BERT's tokenizers drop a newline."""


def fit(case: Case) -> Fitted:
    """Draw the demonstrations and put them before every text."""
    tokenizer, start = case.encoder.tokenizer, family_of(case.model).prompt_start
    longest = longest_sequence(case.model.config, tokenizer)
    drawn = alternating(case.rows("train"), case.options.seed)[: case.setting["demonstrations"]]
    contexts = _contexts(case, drawn)
    used: list[int] = []

    def answer(part: str) -> Tensor:
        encoded = case.examples(part)
        rooms = [longest - int(length) for length in encoded.lengths]
        chosen = [max(n for n, ids in enumerate(contexts) if len(ids) <= max(0, room)) for room in rooms]
        used[:] = chosen
        examples = before_texts(encoded, [contexts[n] for n in chosen], start, pad_id(tokenizer))
        return in_batches(examples, lambda some: label_logits(case.model, some.to(case.device)))

    dev = answer("dev")
    notes = {"demonstrations_drawn": len(drawn), "demonstrations_in_dev": sum(used) / len(used)}
    return Fitted(lambda part: dev if part == "dev" else answer(part), "server", notes=notes)


def alternating(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return all rows in an order that the seed draws and in which the classes alternate."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    turn: dict[int, int] = {}
    placed = []
    for place, number in enumerate(order):
        label = rows[number].label
        turn[label] = turn.get(label, -1) + 1
        placed.append((turn[label], place, rows[number]))
    return [row for _, _, row in sorted(placed, key=lambda item: item[:2])]


def before_texts(examples: Examples, contexts: Sequence[Sequence[int]], start: int, pad: int) -> Examples:
    """Insert tokens into each text, where a prompt would be.

    Args:
        examples: N texts.
        contexts: the tokens of each.
        start: their first position; 1 keeps the first special token in its place.
        pad: the id of the padding token.
    """
    rows = []
    for ids, length, context in zip(examples.input_ids, examples.lengths.tolist(), contexts, strict=True):
        rows.append(torch.cat([ids[:start], torch.tensor(context, dtype=ids.dtype), ids[start:length]]))
    added = torch.tensor([len(context) for context in contexts])
    moved = examples.answer_position if examples.decoder_input_ids is not None else examples.answer_position + added
    return replace(
        examples,
        input_ids=pad_sequence(rows, batch_first=True, padding_value=pad),
        attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        answer_position=moved,
    )


def _contexts(case: Case, drawn: Sequence[Row]) -> list[list[int]]:
    """Return the tokens of the first 0, 1, 2, ... demonstrations."""
    encoder, kind = case.encoder, case.encoder.kind
    words = encoder.tokenizer.batch_decode([[words[0]] for words in encoder.label_words.classes])
    text = ""
    found: list[list[int]] = [[]]
    for row in drawn:
        word = words[row.label]
        text += encoder.answered(row, word.strip()) + (word if kind == "decoder" else "") + SEPARATOR[kind]
        found.append(list(encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))
    return found
