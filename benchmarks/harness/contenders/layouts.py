"""The layouts of texts for the stock model: padded, in parts of similar length, or in a row without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from bbt_fast.engine import Examples
from bbt_fast.export.families import family_of

from .stock import FullHead, PromptedEncoder

ROW = "bbt-fast-row"
"""The name of attention over texts in a row in `transformers`."""
PARTS = 4
"""The number of parts of similar length."""


class Padded(nn.Module):
    """Texts in parts, each padded to its longest text; without a mask if all texts of the part have one length."""

    attention = "sdpa"

    def __init__(self, model: PreTrainedModel, deep: bool, examples: Examples, parts: int) -> None:
        """Sort the texts by length into parts, on their device."""
        super().__init__()
        order = examples.lengths.argsort()
        self.order = order.argsort()
        some = [examples.select(rows) for rows in order.tensor_split(min(parts, len(order)))]
        self.parts = [(one, None if bool(one.attention_mask.all()) else one.attention_mask) for one in some]
        self.encoder = PromptedEncoder(model, deep)
        self.heads = nn.ModuleList(FullHead(model, one) for one in some)
        self.name = "padded" if parts == 1 else f"{len(some)} lengths"

    def forward(self, prompts: Tensor) -> Tensor:
        """Answer prompts [K, L or 1, n, H]: logits [K, N, C] float32."""
        candidates, answers = len(prompts), []
        for (part, mask), head in zip(self.parts, self.heads, strict=True):
            ids, repeated = part.input_ids.repeat(candidates, 1), None if mask is None else mask.repeat(candidates, 1)
            hidden = self.encoder(ids, repeated, prompts.repeat_interleave(len(part), dim=0))
            answers.append(head(hidden).reshape(candidates, len(part), -1))
        return torch.cat(answers, dim=1)[:, self.order]


class RowEncoder(PromptedEncoder):
    """The stock encoder over texts in a row, each with its own prompt."""

    def __init__(self, model: PreTrainedModel, deep: bool, starts: Tensor, tokens: int, n_prompt_tokens: int) -> None:
        """Take the texts' first positions [N] and the number of tokens."""
        super().__init__(model, deep)
        begins, n = starts + self.start, n_prompt_tokens
        joined = torch.full((tokens,), n, device=starts.device)  # row n of a prompt is zero
        joined[(begins[:, None] + torch.arange(n, device=starts.device)).flatten()] = torch.arange(
            n, device=starts.device
        ).repeat(len(starts))
        self.joined = joined

    def added(self, hidden: Tensor, prompt: Tensor) -> Tensor:
        """Return the summand of hidden states [K, T, H] for prompts [K, n, H]."""
        return pad(prompt, (0, 0, 0, 1))[:, self.joined]


class InARow(nn.Module):
    """All texts of a candidate in one sequence, without padding and without a mask."""

    attention = ROW
    name = "in a row"

    def __init__(self, model: PreTrainedModel, deep: bool, examples: Examples, n_prompt_tokens: int) -> None:
        """Take the texts, on their device."""
        super().__init__()
        device = examples.input_ids.device
        lengths = examples.lengths.to(device)
        ends = lengths.cumsum(0)
        starts = ends - lengths
        self.ids, self.longest = examples.input_ids[examples.attention_mask.bool()], int(lengths.max())
        whole: Any = model
        first = whole.config.pad_token_id + 1 if "roberta" in whole.config.model_type else 0
        self.positions = torch.arange(len(self.ids), device=device) - starts.repeat_interleave(lengths) + first
        self.ends = ends.to(torch.int32)
        self.encoder = RowEncoder(model, deep, starts, len(self.ids), n_prompt_tokens)
        self.head: Any = whole.lm_head if hasattr(whole, "lm_head") else whole.cls
        self.answers, self.words = starts + examples.answer_position, examples.label_token_ids

    def forward(self, prompts: Tensor) -> Tensor:
        """Answer prompts [K, L or 1, n, H]: logits [K, N, C] float32."""
        candidates, tokens = len(prompts), len(self.ids)
        before = tokens * torch.arange(candidates, device=self.ends.device, dtype=torch.int32)
        hidden = self.encoder(
            self.ids.expand(candidates, -1),
            None,
            prompts,
            position_ids=self.positions.expand(candidates, -1),
            cu_seq_lens_q=pad((before[:, None] + self.ends).flatten(), (1, 0)),
            max_length_q=self.longest,
        )
        logits: Tensor = self.head(hidden[:, self.answers])[..., self.words]
        return logits.float()


def layouts(model: PreTrainedModel, deep: bool, examples: Examples, n_prompt_tokens: int) -> list[Padded | InARow]:
    """Return the possible layouts of these texts for a model."""
    found: list[Padded | InARow] = [Padded(model, deep, examples, parts) for parts in (1, PARTS)]
    fits = model.device.type == "cpu" or model.dtype is not torch.float32  # PyTorch's kernel takes no fp32
    if family_of(model.config).kind == "masked" and fits:
        found.append(InARow(model, deep, examples, n_prompt_tokens))
    return found


def attention_in_a_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attend within each text: heads [K, A, T, D], texts' bounds in ``cu_seq_lens_q``; returns [K, T, A, D].

    On a CPU PyTorch has no kernel for it, so the texts run one by one, as a check of the layout.
    """
    del module
    rows, heads, tokens, width = query.shape
    q, k, v = (x.transpose(1, 2).reshape(rows * tokens, heads, width) for x in (query, key, value))
    bounds, longest = options["cu_seq_lens_q"], options["max_length_q"]
    if query.device.type == "cuda":
        joined: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest)
    else:
        ends: list[int] = bounds.tolist()
        joined = torch.cat([_attend([x[a:b] for x in (q, k, v)]) for a, b in pairwise(ends)])
    return joined.reshape(rows, tokens, heads, width), None


def _attend(text: Sequence[Tensor]) -> Tensor:
    """Attend within a text: [S, A, D] each."""
    query, key, value = (x.transpose(0, 1)[None] for x in text)
    return scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)


AttentionInterface.register(ROW, attention_in_a_row)
