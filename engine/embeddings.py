"""Statistics of a model's word embeddings and hidden states for the search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

CLIPPING_ROUNDS = 5
CLIPPING_WIDTH = 3.0
DIGEST_LENGTH = 16


def spread_of(values: Tensor) -> float:
    """Return the standard deviation of all values, computed in double precision."""
    return float(values.double().std(correction=0))


def clipped_spread(values: Tensor) -> float:
    """Return the standard deviation after clipping five times to mean +- 3 deviations (BBTv2, Sun et al. 2022b)."""
    values = values.double()
    for _ in range(CLIPPING_ROUNDS):
        mean, spread = values.mean(), CLIPPING_WIDTH * values.std(correction=0)
        values = values.clamp(mean - spread, mean + spread)
    return spread_of(values)


class LocalEmbeddings:
    """The word embeddings of a model in this process."""

    def __init__(self, table: Tensor) -> None:
        """Take the table [V, E]."""
        self._table = table
        self.width = table.shape[1]
        """E, the length of a vector."""

    @cached_property
    def digest(self) -> str:
        """The digest of the table as float32."""
        content = self._table.detach().cpu().float().contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]

    @cached_property
    def spread(self) -> float:
        """The standard deviation of all values."""
        return spread_of(self._table)

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings of tokens, [len(ids), E] float32 on the CPU."""
        return self._table[torch.tensor(ids, device=self._table.device)].detach().float().cpu()
