"""The PyTorch engine: the stages as they are. The reference, and what runs everywhere."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch

from ..export.model import Encoded, StagedModel
from .base import Engine
from .cuda import Queue
from .reference import ModuleRunner
from .replay import Replay
from .savings import Savings
from .session import Runner


class TorchEngine(Engine):
    """PyTorch with SDPA attention."""

    name = "torch"
    shares_prefix = True
    precisions: ClassVar[dict[str, tuple[str, ...]]] = {
        "cpu": ("fp32", "bf16", "fp16"),
        "cuda": ("fp16", "bf16", "fp32"),
    }

    def __init__(self, staged: StagedModel, precision: str, device: torch.device, savings: Savings) -> None:
        """Take a model cut into stages; load_engine() checks the rest."""
        super().__init__(staged, precision, device, savings)
        if savings.graph and device.type == "cuda":
            queue = Queue(device)
            self.replay = Replay(queue, str(queue.gpu))

    def _load(self, encoded: Encoded) -> Runner:
        if self.dtype is torch.float32 and self.device == encoded.hidden.device:
            return ModuleRunner(encoded.stages)
        stages = copy.deepcopy(encoded.stages)
        return ModuleRunner(tuple(stage.to(self.device, self.dtype) for stage in stages))

    def _gated(self, encoded: Encoded) -> Runner:
        return self._load(encoded) if self.dtype is torch.float32 else super()._gated(encoded)
