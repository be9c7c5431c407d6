"""Group examples that run together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..export.model import Encoded
from .runner import Runner


@dataclass
class Bucket:
    """Examples that run together, and the activations below the tuned layer."""

    rows: Tensor
    """[M] int64: the indices of these examples in the session."""
    encoded: Encoded
    run: Runner
    run_prefix: Runner | None = None
    """Runs the shared prefix, if there is one."""
    layer: int = 0
    """The layer that ``hidden`` enters."""
    hidden: Tensor | None = None
    """[1, M, S, H]: the activations below ``layer`` for the committed prompts; None for the embedded texts."""

    @property
    def entering(self) -> Tensor:
        """The input of ``layer``: [1, M, S, H]."""
        return self.encoded.hidden if self.hidden is None else self.hidden

    def rewind(self) -> None:
        """Discard the activations."""
        self.layer, self.hidden = 0, None


@dataclass(frozen=True, eq=False)
class Part:
    """Some candidates on a bucket's examples: the work of one call."""

    bucket: Bucket
    candidates: slice
    tokens: int

    def __len__(self) -> int:
        """Return the number of candidates."""
        size: int = self.candidates.stop - self.candidates.start
        return size


def bucket_rows(lengths: Tensor, overhead: int, most: int) -> list[Tensor]:
    """Split examples into buckets of similar length, so that little padding is computed.

    The boundaries have the least total cost: a bucket costs its number of examples times its longest length, plus an
    overhead for one more batch.

    Args:
        lengths: [N] int64, tokens per example.
        overhead: the cost of one more bucket, in tokens; 0 gives every length its own bucket.
        most: the maximum number of examples times tokens of a bucket; larger ones are split.

    Returns:
        The rows of each bucket ([M] int64), shortest first; each row is in exactly one.
    """
    order = torch.argsort(lengths, stable=True)
    values, counts = torch.unique_consecutive(lengths[order], return_counts=True)
    ends = counts.cumsum(0)
    starts = ends - counts
    best: list[tuple[int, int]] = [(0, 0)]
    """For the first k distinct lengths: the least cost of bucketing them, and the start of the last bucket."""
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
    """Split examples into rows of packed texts.

    Args:
        lengths: [N] int64, tokens per example.
        most: the maximum number of tokens of a row, at least the longest example's.

    Returns:
        The examples of each row ([M] int64, M > 1 if N > 1), shortest first; each is in exactly one.
    """
    order = torch.argsort(lengths, stable=True)
    count = -(-int(lengths.sum()) // most)
    number = (lengths[order].cumsum(0) - 1) * count // int(lengths.sum())
    rows = [order[number == one] for one in range(count)]
    rows = [row for row in rows if len(row)]
    return rows if all(len(row) > 1 for row in rows) else [order]
