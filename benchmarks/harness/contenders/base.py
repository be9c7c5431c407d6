"""The interface of a contender: it answers a generation's candidates with label logits."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bbt_fast.engine import Savings
from bbt_fast.export.errors import UsageError
from bbt_fast.tuner.search.generation import Array
from bbt_fast.tuner.search.projection import Projection

from ..workload import Workload

PLAIN = Savings(**dict.fromkeys((saving.name for saving in fields(Savings)), False))
"""The savings of a baseline: none."""


class Clock:
    """Sums the seconds of each part of a generation; synchronises the device at the end of a part."""

    def __init__(self, device: torch.device) -> None:
        """Start at zero."""
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.unmeasured = 0.0
        """Seconds that were added for candidates that did not run."""

    @contextmanager
    def __call__(self, part: str, times: float = 1.0) -> Iterator[None]:
        """Add the seconds of the block, times a factor, to a part."""
        began = time.perf_counter()
        yield
        synchronise(self._device)
        spent = time.perf_counter() - began
        self.seconds[part] += spent * times
        self.unmeasured += spent * (times - 1)


class Contender(ABC):
    """One way to evaluate a population of prompts on one model and one set of texts."""

    library: ClassVar[str] = "torch"
    """The library whose matrix-product rate is its upper bound."""
    overlaps: ClassVar[bool] = False
    """Whether ask and tell overlap with the device's work."""
    algorithms: ClassVar[tuple[str, ...]] = ("bbt", "bbtv2")
    """The algorithms that it can run."""
    precision: str = "fp32"
    savings: Savings = PLAIN

    def __init__(self, workload: Workload, model: PreTrainedModel) -> None:
        """Load everything for the first generation.

        Raises:
            UsageError: if it cannot run the workload's algorithm.
        """
        if workload.algorithm not in self.algorithms:
            raise UsageError(f"it cannot run {workload.algorithm}; it runs {', '.join(self.algorithms)}.")
        self.workload = workload
        self.model = model
        self.device = torch.device(workload.device)

    @abstractmethod
    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer prompts [P, n, H] for a layer under the other layers' commits: label logits [P, N, C] float32."""

    @abstractmethod
    def commit(self, prompt: Tensor, layer: int) -> None:
        """Fix a layer's prompt [n, H] for later calls."""

    def evaluate(self, projection: Projection, candidates: Array, layer: int, clock: Clock) -> Tensor:
        """Project candidates [P, d] and answer them: [P, N, C]."""
        with clock("project"):
            prompts = projection(candidates)
        with clock("evaluate"):
            return self.answer(prompts, layer)

    @property
    def projection_device(self) -> torch.device:
        """The device that computes A z."""
        return self.device

    @property
    def export_seconds(self) -> float:
        """The time of building and checking graphs."""
        return 0.0

    @property
    def gate(self) -> dict[str, float]:
        """The parity gate's figures; empty without a gate."""
        return {}

    def attention_kernel(self) -> str:
        """Name the kernel of attention."""
        return "unknown"


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
