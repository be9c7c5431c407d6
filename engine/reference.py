"""Stages run as the PyTorch modules they are: the reference that every artifact is compared with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..export.model import StagedModel
from ..export.stages import Stage


class ModuleRunner:
    """Runs stages as PyTorch modules."""

    artifacts: tuple[Path, ...] = ()

    def __init__(self, staged: StagedModel, stages: tuple[Stage, ...]) -> None:
        """Take stages on the device and in the dtype that the tensors will have."""
        self._staged = staged
        self._stages = stages

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Join the prompt and run a stage."""
        part = self._stages[stage]
        out: Tensor = part(self._staged.join(stage)(hidden, prompt), *(tensors[name] for name in part.names))
        return out
