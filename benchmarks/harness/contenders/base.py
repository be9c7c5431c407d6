"""What a contender is: something that answers a generation's candidates with label logits, its own way."""

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
"""What a baseline saves: nothing."""


class Clock:
    """Sums the seconds spent on each part of a generation; waits for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        """Start with nothing spent."""
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.unmeasured = 0.0
        """Seconds that were added for candidates that were not run."""

    @contextmanager
    def __call__(self, part: str, times: float = 1.0) -> Iterator[None]:
        """Count the block as this part, so many times over."""
        began = time.perf_counter()
        yield
        synchronise(self._device)
        spent = time.perf_counter() - began
        self.seconds[part] += spent * times
        self.unmeasured += spent * (times - 1)


class Contender(ABC):
    """One way to evaluate a population of prompts on one model and one set of texts."""

    library: ClassVar[str] = "torch"
    """Whose matrix product it is measured against."""
    overlaps: ClassVar[bool] = False
    """Whether BBTv2's asks and tells run beside the device's work."""
    algorithms: ClassVar[tuple[str, ...]] = ("bbt", "bbtv2")
    """What it can run at all."""
    precision: str = "fp32"
    savings: Savings = PLAIN

    def __init__(self, workload: Workload, model: PreTrainedModel) -> None:
        """Load everything that is needed before the first generation.

        Raises:
            UsageError: if it does not run the workload's algorithm.
        """
        if workload.algorithm not in self.algorithms:
            raise UsageError(f"it does not run {workload.algorithm}")
        self.workload = workload
        self.model = model
        self.device = torch.device(workload.device)

    @abstractmethod
    def answer(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer prompts [P, n, H] for a layer, the others' as committed: label logits [P, N, C] float32."""

    @abstractmethod
    def commit(self, prompt: Tensor, layer: int) -> None:
        """Fix a layer's prompt [n, H] for all later calls."""

    def evaluate(self, projection: Projection, candidates: Array, layer: int, clock: Clock) -> Tensor:
        """Project candidates [P, d] and answer them: [P, N, C]."""
        with clock("project"):
            prompts = projection(candidates)
        with clock("evaluate"):
            return self.answer(prompts, layer)

    @property
    def projection_device(self) -> torch.device:
        """Where A z is computed."""
        return self.device

    @property
    def export_seconds(self) -> float:
        """Time spent building and checking graphs while loading."""
        return 0.0

    @property
    def gate(self) -> dict[str, float]:
        """The parity gate's figures; empty where there is no gate."""
        return {}

    def attention_kernel(self) -> str:
        """Name the kernel that attention runs on."""
        return "unknown"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
