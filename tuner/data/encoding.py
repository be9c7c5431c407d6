"""From texts to token ids: templates, prompt and answer positions, label words, and truncation of long texts."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ...export.errors import DataError, UsageError
from ...export.examples import Examples
from ...export.families import Kind, positions
from ...export.words import LabelWords
from ..tasks.label_words import label_word_ids
from ..tasks.task import Task
from ..tasks.template import MASK, Rendered, render
from .splits import Row

logger = logging.getLogger(__name__)

FIRST_PLACEHOLDER: Final = 1000
"""The first of the consecutive tokens that the original implementation uses as placeholders."""
SENTINEL: Final = "<extra_id_0>"
"""T5's counterpart of a mask token; its decoder answers after it."""
NO_TOKEN: Final = -1
SAMPLE: Final = "text"
"""A text that marks the positions of texts in ``TextEncoder.frame``."""
ROWS_AT_ONCE: Final = 1024
DEFAULT_MAX_LENGTH: Final = 512
NO_LIMIT: Final = 10**6
"""Tokenizers without a limit state a larger one than this."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """N texts, ready for an engine, and their classes."""

    examples: Examples
    labels: Tensor
    """[N] int64."""
    truncated: int
    """The number of truncated texts."""

    def relabelled(self, words: LabelWords) -> Encoded:
        """Return the same texts with other label words."""
        return replace(self, examples=replace(self.examples, **words.fields))


@dataclass(frozen=True)
class _Tokens:
    """One example, before padding."""

    ids: list[int]
    answer_position: int
    was_cut: bool


class TextEncoder:
    """Encodes a task's rows for one model.

    In add mode n placeholder tokens fill the positions prompt_start .. prompt_start + n - 1: tokens 1000 .. 1000 + n -
    1 as in the original or, if not all of these are plain tokens, tokens spread evenly over the vocabulary. In cat mode
    there are none; the engine inserts the prompt.

    Truncation shortens the texts at their ends, the longer one of two first. Template, prompt and mask stay whole. If a
    text spells one of the tokenizer's special tokens ("<mask>"), a space after that token's first character keeps it
    from being read as part of the template.

    Args:
        tokenizer: the model's, a fast one.
        task: the task.
        kind: the model's kind.
        mode: "add" or "cat".
        n_prompt_tokens: n.
        prompt_start: position of the first prompt token in add mode.
        max_length: the longest sequence that the model takes, prompt included (see ``longest_sequence``).
        label_bias: a bias for the logit of each label word.

    Raises:
        UsageError: if the task does not fit the tokenizer; the message says why.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        kind: Kind,
        mode: Literal["add", "cat"],
        n_prompt_tokens: int,
        prompt_start: int,
        max_length: int,
        label_bias: Sequence[float] = (),
    ) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} does not report the offsets of its tokens. Take a model with a fast "
                "tokenizer (a tokenizer.json)."
            )
        self.max_text_length = max_length - n_prompt_tokens
        if self.max_text_length < 1:
            raise UsageError(
                f"a prompt of {n_prompt_tokens} tokens leaves no room for a text: this model takes {max_length} tokens "
                "in all. Give fewer --n_prompt_tokens, such as 50."
            )
        self.tokenizer = tokenizer
        self.task = task
        self.kind = kind
        self.mask_token = _mask_token(tokenizer, kind)
        self.mask_id: int = tokenizer.get_vocab().get(self.mask_token, NO_TOKEN)
        self.label_words = LabelWords(label_word_ids(tokenizer, task, kind), tuple(label_bias))
        self.placeholder_ids = placeholder_ids(tokenizer, n_prompt_tokens) if mode == "add" else []
        self.prompt_start = prompt_start
        self._template = task.template(kind)
        special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        self.special_tokens = [token for token in special if len(token) > 1]
        """The tokens that no text may spell, longest first."""
        self._special = re.compile("|".join(map(re.escape, self.special_tokens)) or r"(?!)")

    @property
    def uses_sentinel(self) -> bool:
        """Whether the answer comes from a T5-style decoder, after its first sentinel token."""
        return self.mask_token == SENTINEL

    def encode(self, rows: Sequence[Row], *, templates: int = 1, quiet: bool = False) -> Encoded:
        """Encode rows; count the truncated texts.

        Args:
            rows: the rows.
            templates: encode every row with this many of the task's templates, all rows with one before the next.
            quiet: do not log the number of truncated texts.

        Raises:
            UsageError: if template and prompt alone exceed the model's length, or the task has fewer templates.
            DataError: if there are no rows.
        """
        if not rows:
            raise DataError(f"task {self.task.name!r} has no rows to encode.")
        wordings = self.task.wordings(self.kind, templates)
        tokens = [one for template in wordings for one in self._tokens(rows, template)]
        truncated = sum(one.was_cut for one in tokens)
        if truncated and not quiet:
            logger.warning(
                "%d of %d texts are longer than the %d tokens that fit beside the prompt; their ends were cut off",
                truncated, len(tokens), self.max_text_length,
            )  # fmt: skip
        ids = [torch.tensor(one.ids) for one in tokens]
        examples = Examples(
            input_ids=pad_sequence(ids, batch_first=True, padding_value=pad_id(self.tokenizer)),
            attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            answer_position=torch.tensor([one.answer_position for one in tokens]),
            decoder_input_ids=self._decoder_input_ids(len(tokens)),
            **self.label_words.fields,
        )
        return Encoded(examples, torch.tensor([row.label for row in rows] * len(wordings)), truncated)

    def token_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return the tokens of each row, including placeholders, without padding."""
        return [one.ids for one in self._tokens(rows, self._template)]

    def fits(self, rows: Sequence[Row]) -> list[bool]:
        """Return for each row whether it needs no truncation."""
        return [not one.was_cut for one in self._tokens(rows, self._template)]

    def answered(self, row: Row, answer: str) -> str:
        """Return the template filled with a row's texts and, instead of the mask, an answer."""
        return self._render(row, self._template, answer).text

    def frame(self) -> list[list[int] | str]:
        """Return the tokens around the texts, including placeholders, and each text's name at its position.

        Raises:
            UsageError: if the prompt begins within a text.
        """
        texts = self.task.texts
        rendered = self._render(Row(SAMPLE, SAMPLE if len(texts) > 1 else None, 0), self._template)
        ids, offsets = self._plain_tokens([rendered])[0]
        found: list[list[int] | str] = [[]]
        for token, offset in zip(ids, offsets, strict=True):
            name = next((n for n in texts if _inside(rendered.text, offset, rendered.spans[n])), None)
            last = found[-1]
            if name is None:
                found.append([token]) if isinstance(last, str) else last.append(token)
            elif last != name:
                found.append(name)
        first = found[0]
        if isinstance(first, str) or len(first) < self.prompt_start:
            raise UsageError(f"the prompt of task {self.task.name!r} begins within a text for this model.")
        first[self.prompt_start : self.prompt_start] = self.placeholder_ids
        return found

    def _decoder_input_ids(self, n_rows: int) -> Tensor | None:
        """Return T5's two first decoder tokens, [N, 2]; None leaves them to the model."""
        if not self.uses_sentinel:
            return None
        start = [pad_id(self.tokenizer), self.mask_id]
        return torch.tensor(start).expand(n_rows, -1).contiguous()

    def _tokens(self, rows: Sequence[Row], template: str) -> Iterator[_Tokens]:
        """Yield the tokens of each row."""
        for start in range(0, len(rows), ROWS_AT_ONCE):
            rendered = [self._render(row, template) for row in rows[start : start + ROWS_AT_ONCE]]
            for one, (ids, offsets) in zip(rendered, self._plain_tokens(rendered), strict=True):
                over = len(ids) - self.max_text_length
                if over > 0:
                    cut = self._cut(one, offsets, over)
                    ids = [token for position, token in enumerate(ids) if position not in cut]
                ids[self.prompt_start : self.prompt_start] = self.placeholder_ids
                yield _Tokens(ids, self._answer_position(ids), over > 0)

    def _plain_tokens(self, rendered: Sequence[Rendered]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Return, per filled-in template, its tokens and their offsets, without the prompt."""
        batch = self.tokenizer(
            [one.text for one in rendered],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        found = []
        for i in range(len(rendered)):
            ids = list(batch["input_ids"][i])
            if self.kind == "decoder":
                # Drop a final special token, which would come between text and answer.
                while ids and batch["special_tokens_mask"][i][len(ids) - 1]:
                    ids.pop()
            found.append((ids, batch["offset_mapping"][i][: len(ids)]))
        return found

    def _render(self, row: Row, template: str, answer: str | None = None) -> Rendered:
        """Fill in a template, with an answer or else the mask token."""
        values = {name: self._plain(text) for name, text in zip(self.task.texts, row.texts, strict=True)}
        return render(template, {**values, MASK: self.mask_token if answer is None else answer})

    def _plain(self, text: str) -> str:
        """Return a text that spells no special token."""
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _answer_position(self, ids: list[int]) -> int:
        """Return the position of the answer."""
        if self.kind == "decoder":
            return len(ids) - 1
        if self.uses_sentinel:
            return 1
        return ids.index(self.mask_id)

    def _cut(self, rendered: Rendered, offsets: list[tuple[int, int]], over: int) -> set[int]:
        """Choose the positions to drop: from the texts' ends, the longer one of two first.

        Args:
            rendered: the filled-in template.
            offsets: per token, its begin and end in the rendered text; (0, 0) for added special tokens.
            over: the number of excess tokens.
        """
        spans = [rendered.spans[name] for name in self.task.texts]
        texts = [[i for i, offset in enumerate(offsets) if _inside(rendered.text, offset, span)] for span in spans]
        if over > sum(map(len, texts)):
            raise UsageError(
                f"the template of task {self.task.name!r} takes more than the {self.max_text_length} tokens that this "
                "model has room for beside the prompt. Shorten the template or lower --n_prompt_tokens."
            )
        # Of two that have become equally long, shorten the originally shorter one, as "longest_first" of tokenizers.
        texts.sort(key=len)
        cut = set()
        for _ in range(over):
            cut.add(max(texts, key=len).pop())
        return cut


def longest_sequence(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of tokens that a model takes, by its position embeddings and its tokenizer.

    Args:
        config: the model's `transformers` configuration.
        tokenizer: the model's.
    """
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < NO_LIMIT else []
    if (most := positions(config)) < math.inf:
        limits.append(int(most))
    return min(limits, default=DEFAULT_MAX_LENGTH)


def placeholder_ids(tokenizer: PreTrainedTokenizerBase, n_prompt_tokens: int) -> list[int]:
    """Return n plain tokens: 1000 .. 1000 + n - 1, or else n spread evenly over the vocabulary's plain tokens."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    plain = np.array(sorted(set(tokenizer.get_vocab().values()) - special))
    original = range(FIRST_PLACEHOLDER, FIRST_PLACEHOLDER + n_prompt_tokens)
    if np.isin(original, plain).all():
        return list(original)
    chosen: list[int] = plain[np.linspace(0, len(plain) - 1, n_prompt_tokens).astype(int)].tolist()
    return chosen


def _mask_token(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> str:
    """Return the token that marks the answer in a template; "" for a decoder."""
    if kind == "decoder":
        return ""
    if tokenizer.mask_token is not None:
        return str(tokenizer.mask_token)
    if kind == "seq2seq" and SENTINEL in tokenizer.get_vocab():
        return SENTINEL
    raise UsageError(
        f"{type(tokenizer).__name__} has no mask token, at which {kind} models answer. Take a model that was trained "
        "with one, or name the token in the tokenizer's files."
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token; if there is none, 0, since the attention mask hides it."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _inside(text: str, offset: tuple[int, int], span: tuple[int, int]) -> bool:
    """Return whether a token's characters, without surrounding white space, lie within a span."""
    if offset[0] == offset[1]:  # a single space, which byte-level tokenizers trim
        return span[0] < offset[0] < span[1]
    token = text[offset[0] : offset[1]]
    start = offset[0] + len(token) - len(token.lstrip())
    end = offset[1] - len(token) + len(token.rstrip())
    if start >= end:
        start, end = offset
    return span[0] <= start < end <= span[1]
