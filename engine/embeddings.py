"""What a search needs to know of a model's word embeddings and hidden states: how far their values spread."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

CLIPPING_ROUNDS = 5
CLIPPING_WIDTH = 3.0
DIGEST_LENGTH = 16


def spread_of(values: Tensor) -> float:
    """Return the standard deviation of all values, in double precision."""
    return float(values.double().std(correction=0))


def clipped_spread(values: Tensor) -> float:
    """Return the standard deviation after five rounds of clipping to mean +- 3 of it (BBTv2, Sun et al. 2022b)."""
    values = values.double()
    for _ in range(CLIPPING_ROUNDS):
        mean, spread = values.mean(), CLIPPING_WIDTH * values.std(correction=0)
        values = values.clamp(mean - spread, mean + spread)
    return spread_of(values)


class Embeddings(Protocol):
    """The word embeddings of a model that may be elsewhere."""

    @property
    def digest(self) -> str:
        """A digest of all of them."""
        ...

    @property
    def spread(self) -> float:
        """Their standard deviation."""
        ...

    @property
    def width(self) -> int:
        """E, the length of one."""
        ...

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Return those of tokens, [len(ids), E] float32 on the CPU."""
        ...


class LocalEmbeddings:
    """The word embeddings of a model that is here."""

    def __init__(self, table: Tensor) -> None:
        """Take [V, E]."""
        self._table = table

    @cached_property
    def digest(self) -> str:
        """A digest of all of them, as float32."""
        content = self._table.detach().cpu().float().contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]

    @cached_property
    def spread(self) -> float:
        """Their standard deviation."""
        return spread_of(self._table)

    @property
    def width(self) -> int:
        """E, the length of one."""
        return self._table.shape[1]

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Return those of tokens, [len(ids), E] float32 on the CPU."""
        return self._table[torch.tensor(ids, device=self._table.device)].detach().float().cpu()
