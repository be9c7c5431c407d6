"""Which examples run together, and what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..export.model import Encoded
from .runner import Runner


@dataclass
class Bucket:
    """Examples that run together, and the activations that enter the layer being tuned."""

    rows: Tensor
    """[M] int64: which of the session's examples these are."""
    encoded: Encoded
    run: Runner
    run_prefix: Runner | None = None
    """Runs the positions up to the prompt's end, if they are run apart from the texts."""
    layer: int = 0
    """The layer that ``hidden`` enters."""
    hidden: Tensor | None = None
    """[1, M, S, H]: the activations below ``layer`` for the committed prompts; None stands for the embedded text."""

    @property
    def entering(self) -> Tensor:
        """What enters ``layer``: [1, M, S, H]."""
        return self.encoded.hidden if self.hidden is None else self.hidden

    def rewind(self) -> None:
        """Forget the activations above the input."""
        self.layer, self.hidden = 0, None


@dataclass(frozen=True, eq=False)
class Part:
    """Some candidates on a bucket's examples: what one call answers."""

    bucket: Bucket
    candidates: slice
    tokens: int

    def __len__(self) -> int:
        """Return how many candidates there are."""
        size: int = self.candidates.stop - self.candidates.start
        return size


def bucket_rows(lengths: Tensor, overhead: int, most: int) -> list[Tensor]:
    """Split examples into buckets of like length, so that little padding is computed.

    The boundaries are the cheapest there are: a bucket costs its examples times its longest length, plus an overhead
    for having one more batch.

    Args:
        lengths: [N] int64, tokens per example.
        overhead: what a further bucket costs, in tokens; 0 gives every length a bucket of its own.
        most: examples times tokens a bucket may have; larger ones are split.

    Returns:
        For each bucket the rows in it ([M] int64), shortest first; each row is in exactly one.
    """
    order = torch.argsort(lengths, stable=True)
    values, counts = torch.unique_consecutive(lengths[order], return_counts=True)
    ends = counts.cumsum(0)
    starts = ends - counts
    best: list[tuple[int, int]] = [(0, 0)]
    """For each number of distinct lengths: the least cost of bucketing those, and where its last bucket begins."""
    for end in range(1, len(values) + 1):
        longest = int(values[end - 1])
        best.append(
            min(
                (best[begin][0] + overhead + longest * int(ends[end - 1] - starts[begin]), begin)
                for begin in range(end)
            )
        )
    buckets: list[Tensor] = []
    end = len(values)
    while end > 0:
        begin = best[end][1]
        rows = order[int(starts[begin]) : int(ends[end - 1])]
        buckets[:0] = torch.split(rows, max(1, most // int(values[end - 1])))
        end = begin
    return buckets


def pack_rows(lengths: Tensor, most: int) -> list[Tensor]:
    """Split examples into rows of tokens.

    Args:
        lengths: [N] int64, tokens per example.
        most: tokens a row may have, at least the longest example's.

    Returns:
        For each row the examples in it ([M] int64, M > 1 where N > 1), shortest first; each is in exactly one.
    """
    order = torch.argsort(lengths, stable=True)
    count = -(-int(lengths.sum()) // most)
    number = (lengths[order].cumsum(0) - 1) * count // int(lengths.sum())
    rows = [order[number == one] for one in range(count)]
    rows = [row for row in rows if len(row)]
    return rows if all(len(row) > 1 for row in rows) else [order]
