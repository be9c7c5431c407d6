"""Whole populations in batches of the size that is fastest on this device."""

from __future__ import annotations

import math
import time
from abc import abstractmethod

import torch
from torch import Tensor

from bbt_fast.engine.faults import is_out_of_memory, release_memory
from bbt_fast.engine.ort import ORT_ERRORS

from .base import synchronise
from .stock import Stock

FAILURES: tuple[type[Exception], ...] = (MemoryError, *ORT_ERRORS)


class Batched(Stock):
    """A contender that runs several candidates at once, on all texts."""

    batch: int
    """The number of candidates in a batch."""

    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer the population in batches of equal size; copies of the first prompt fill the last one."""
        missing = -len(prompts) % self.batch
        filled = torch.cat([prompts, prompts[:1].expand(missing, -1, -1)]) if missing else prompts
        answers = torch.cat([self._forward(some, layer) for some in torch.split(filled, self.batch)])
        return answers[: len(prompts)]

    @abstractmethod
    def _forward(self, prompts: Tensor, layer: int) -> Tensor:
        """Run K candidates [K, n, H] on all texts in one forward pass: [K, N, C]."""

    def _best_batch(self) -> int:
        """Return the batch size with the least time per candidate."""
        sizes = sorted({1, min(4, self.workload.population), self.workload.population})
        return min(sizes, key=lambda size: self._seconds(size) / size)

    def _seconds(self, batch: int) -> float:
        """Time a forward pass of a batch, after a warm-up; infinite if memory is too small."""
        prompts = self.committed[:1].repeat(batch, 1, 1)
        try:
            for _ in range(2):
                began = time.perf_counter()
                self._forward(prompts, 0)
                synchronise(self.device)
            return time.perf_counter() - began
        except FAILURES as error:
            if not is_out_of_memory(error):
                raise
        release_memory()
        return math.inf
