"""The tokens near a prompt's vectors: the nearest in the vocabulary at each position, by cosine.

In add mode the input of the model at a position is the embedded placeholder token, after the whole embedding block
(positions, LayerNorm), plus the prompt's vector. It is compared with all other tokens, embedded at the same position:
``nearest`` compares the input itself, ``towards`` the direction from the placeholder. In cat mode a prompt has neither
placeholder nor position: it is compared with the word embeddings, from which ``--init_text`` also starts.

Only the prompt at the input is compared. Deeper prompts enter hidden states, where tokens have no fixed vectors.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...export.examples import Examples
from ...export.model import StagedModel

VALUES_AT_ONCE = 2**24
"""Values in a chunk of embedded tokens, 64 MiB."""


@dataclass(frozen=True)
class Near:
    """A token near a vector."""

    token: int
    cosine: float


@dataclass(frozen=True)
class Position:
    """One position of a prompt."""

    placeholder: int | None
    """The placeholder token; None in cat mode."""
    nearest: tuple[Near, ...]
    """The tokens near the input vector, nearest first."""
    towards: tuple[Near, ...]
    """The tokens in the prompt's direction from the placeholder, nearest first; empty in cat mode."""


def look_at(
    staged: StagedModel, prompt: Tensor, placeholders: Sequence[int], plain: Tensor, top: int
) -> list[Position]:
    """Find the tokens near a prompt's vectors.

    Args:
        staged: the model, with the cuts of the run.
        prompt: the prompt at the input, [n, H].
        placeholders: n token ids in add mode, none in cat mode.
        plain: [V] bool, whether a token is not special.
        top: number of tokens to return per position.
    """
    scores = [torch.zeros(len(plain), len(prompt)) for _ in ("nearest", "towards")]
    first = None
    with torch.inference_mode():
        if placeholders:
            own = torch.arange(len(placeholders))
            first = _embedded(staged, torch.tensor(placeholders), len(placeholders))[own, own]
        entering = prompt if first is None else first + prompt
        for rows, table in _tables(staged, len(plain), len(prompt), bool(placeholders)):
            scores[0][rows] = cosine_similarity(table, entering, dim=-1)
            if first is not None:
                scores[1][rows] = cosine_similarity(table - first, prompt.expand_as(table), dim=-1)
    scores[0][~plain] = scores[1][~plain] = -torch.inf
    nearest, towards = (_best(score, top) for score in scores)
    return [
        Position(
            placeholders[i] if placeholders else None,
            nearest[i],
            tuple(near for near in towards[i] if near.token != placeholders[i]) if placeholders else (),
        )
        for i in range(len(prompt))
    ]


@dataclass(frozen=True)
class Agreement:
    """The agreement between the prompts of several runs."""

    cosine: float
    """Mean cosine of the prompts' vectors over pairs of runs and positions."""
    tokens: list[tuple[int, int]]
    """(token, number of runs) for tokens near several runs' prompts at any positions; the most frequent first."""
    in_place: int
    """Number of times that two runs share a token at the same position."""


def agreement(prompts: Sequence[Tensor], found: Sequence[Sequence[Position]]) -> Agreement:
    """Compare the prompts [n, H] of several runs on one model, and the tokens near them."""
    pairs = list(itertools.combinations(range(len(prompts)), 2))
    cosines = [float(cosine_similarity(prompts[a], prompts[b], dim=-1).mean()) for a, b in pairs]
    named = [[{near.token for near in (at.towards or at.nearest)} for at in positions] for positions in found]
    runs = Counter(token for positions in named for token in set().union(*positions))
    several = [(token, count) for token, count in runs.items() if count > 1]
    shared = sorted(several, key=lambda item: (-item[1], item[0]))
    in_place = sum(len(one & other) for a, b in pairs for one, other in zip(named[a], named[b], strict=True))
    return Agreement(sum(cosines) / len(cosines), shared, in_place)


def _tables(staged: StagedModel, size: int, n: int, in_place: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield the vocabulary in chunks: its rows, and each token embedded at each position, [rows, n or 1, H]."""
    words = staged.word_embeddings.detach().float().cpu()
    plain = not in_place and words.shape[1] == staged.hidden_size
    step = max(1, VALUES_AT_ONCE // (staged.hidden_size * (1 if plain else n)))
    for begin in range(0, size, step):
        rows = slice(begin, min(begin + step, size))
        yield rows, words[rows, None] if plain else _embedded(staged, torch.arange(rows.start, rows.stop), n)


def _embedded(staged: StagedModel, ids: Tensor, n: int) -> Tensor:
    """Return tokens [B] embedded at every position of the prompt, [B, n, H]."""
    start = staged.family.prompt_start
    rows = ids[:, None].expand(-1, start + n).contiguous()
    reads = torch.zeros(len(ids), 2, dtype=torch.long) if staged.family.kind == "seq2seq" else None
    at = torch.zeros(len(ids), dtype=torch.long)
    encoded = staged.encode(Examples(rows, torch.ones_like(rows), at, torch.tensor([0]), reads))
    return encoded.hidden[0, :, start : start + n].float().cpu()


def _best(scores: Tensor, top: int) -> list[tuple[Near, ...]]:
    """Return the best tokens of each position from scores [V, n]."""
    values, tokens = scores.topk(min(top, len(scores)), dim=0)
    columns: Any = zip(tokens.T.tolist(), values.T.tolist(), strict=True)
    return [tuple(Near(token, value) for token, value in zip(*column, strict=True)) for column in columns]
