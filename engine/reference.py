"""Run stages as PyTorch modules: the reference of the parity gate."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..export.stages import Stage


class ModuleRunner:
    """Runs stages as PyTorch modules."""

    artifacts: tuple[Path, ...] = ()

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        """Take stages; the tensors must have their device and dtype."""
        self._stages = stages

    def __call__(self, stage: int, hidden: Tensor, prompt: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Join the prompt and run a stage."""
        part = self._stages[stage]
        joined = part.join(hidden, prompt, *(tensors[name] for name in part.join.names))
        out: Tensor = part(*joined, *(tensors[name] for name in part.names))
        return out
